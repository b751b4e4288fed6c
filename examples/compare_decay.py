"""Seven optimizers on real handwritten digits, with 40% of the training labels wrong.

A wide network can memorize wrong labels; weight decay keeps it from doing so. Each λ
is the best of 1, 2 and 5 times the powers of ten on five other seeds (1000 to 1004), so
that each form of decay is shown at its best. Decay scaled by the schedule needs no search:
at one peak learning rate η, it is the other form with η times its λ.

The runs are in float64, so that the table's last column compares algorithms. In float32 it
would compare rounding: any two programs differ in the last bits, and training makes them
drift apart.
"""

from functools import partial
from typing import Any, NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import numpy as np
import optax
from rich import print

import optwd

SGD_RATE, ADAM_RATE = 0.1, 0.01  # peaks
POINTS = 50  # on each curve, beside the start
LOOKS: dict[str, dict[str, Any]] = {
    "SGD + L2": {"color": common.ORANGE, "lw": 3.5},
    "SGDW": {"color": common.BLACK, "ls": ":", "lw": 1.6},
    "Adam": {"color": common.BLACK, "lw": 1.2},
    "Adam + L2": {"color": common.VERMILION, "ls": "-.", "lw": 1.5},
    "AdamW × learning rate": {"color": common.BLUE, "lw": 3.5},
    "AdamW × schedule": {"color": common.SKY, "ls": "--", "lw": 1.5},
    "optax.adamw": {"color": "white", "ls": "", "marker": "o", "ms": 3.5, "mec": "black"},
}


class Row(NamedTuple):
    """What an optimizer reached: means over seeds, and the deviation of the accuracy."""

    weight_decay: float
    accuracy: float
    deviation: float
    loss: float
    norm: float
    difference: float  # of the weights from optax.adamw's, the largest in any seed


def optimizers(steps: int) -> dict[str, tuple[float, optax.GradientTransformation]]:
    """λ and the optimizer, by name; every schedule warms up, then falls as a cosine."""
    sgd_rate, adam_rate = (
        optax.warmup_cosine_decay_schedule(0.0, peak, steps // 20, steps)
        for peak in (SGD_RATE, ADAM_RATE)
    )
    by_schedule = {"scaled_by": "schedule", "peak_learning_rate": ADAM_RATE}
    recipes = (
        (0.01, lambda λ: optwd.sgd_l2(sgd_rate, 0.9, l2=λ)),
        (0.1, lambda λ: optwd.sgdw(sgd_rate, 0.9, weight_decay=λ)),
        (0.0, lambda λ: optwd.adam(adam_rate)),
        (0.01, lambda λ: optwd.adam_l2(adam_rate, l2=λ)),
        (2.0, lambda λ: optwd.adamw(adam_rate, weight_decay=λ)),
        (2.0 * ADAM_RATE, lambda λ: optwd.adamw(adam_rate, weight_decay=λ, **by_schedule)),
        (2.0, lambda λ: optax.adamw(adam_rate, weight_decay=λ)),
    )
    return {name: (λ, of(λ)) for name, (λ, of) in zip(LOOKS, recipes, strict=True)}


def train(optimizer, data, keys, params, steps: int, bar) -> tuple[np.ndarray, np.ndarray]:
    """All seeds at once: measurements, (POINTS + 1, 3, seeds), and the weights, flat."""
    advance = jax.vmap(partial(digits.advance, optimizer), in_axes=(0, 0, 0, 0, None))
    advance, measure = jax.jit(advance), jax.jit(jax.vmap(digits.measure, out_axes=1))
    state, measured = jax.vmap(optimizer.init)(params), [measure(params, data)]
    for ts in np.arange(steps).reshape(POINTS, -1):
        params, state = advance(params, state, data, keys, ts)
        measured.append(jax.block_until_ready(measure(params, data)))
        bar.update(len(ts))
    weights = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    return np.array(measured), np.concatenate(weights)


def draw(curves: dict[str, np.ndarray], rows: dict[str, Row], steps: int, title: str):
    """Loss, accuracy and parameter norm over steps: means over seeds."""
    picture, panels = common.figure(3, 10, 4)
    labels = "training loss (nats)", "test accuracy (%)", "parameter norm ‖θ‖₂"
    t = np.linspace(0, steps, POINTS + 1)
    for name, measured in curves.items():
        means = measured.mean(-1).T * [[1], [100], [1]]
        λ = rows[name].weight_decay
        legend = f"{name}, λ = {λ:g}" if λ else name
        for panel, mean, label in zip(panels, means, labels, strict=True):
            panel.plot(t, mean, label=legend, markevery=3, **LOOKS[name])
            panel.set(xlabel="step", ylabel=label)
    panels[1].set_ylim(50, 100)
    picture.suptitle(title)
    lines = panels[0].get_lines()
    picture.legend(handles=lines, loc="outside lower center", ncols=4)
    return picture


def main(argv: list[str] | None = None) -> dict[str, Row]:
    """Train, print, draw; returns the rows of the table."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="how many; 5, or 2 when quick"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="1500, or 400 when quick")
    args = parser.parse_args(argv)
    n, steps = (2, 400) if args.quick else (5, 1500)
    n = n if args.seeds is None else args.seeds
    steps = steps if args.steps is None else args.steps
    if n < 1 or steps < POINTS or steps % POINTS:
        parser.error(f"--seeds must be at least 1, and --steps a multiple of {POINTS}")
    print(
        f"{digits.SETTING}; tested on the clean rest. {digits.HIDDEN} hidden units, "
        f"{steps} steps of {digits.BATCH} scans, {n} seeds, float64. Peak learning rate: "
        f"{ADAM_RATE} for Adam, {SGD_RATE} for SGD (momentum 0.9); warm-up, then cosine."
    )

    recipes, curves, weights, rows = optimizers(steps), {}, {}, {}
    with common.float64(), common.progress(len(recipes) * steps) as bar:
        begin = digits.start(range(args.seed, args.seed + n))
        for name, (_, optimizer) in recipes.items():
            bar.set_description(name)
            curves[name], weights[name] = train(optimizer, *begin, steps, bar)

    columns = "", "λ", "test accuracy", "train loss", "‖θ‖", "max |Δθ|"
    table = common.table(*columns)
    for name, (λ, _) in recipes.items():
        loss, accuracy, norm = curves[name][-1]
        difference = np.abs(weights[name] - weights["optax.adamw"]).max()
        row = Row(λ, accuracy.mean(), accuracy.std(), loss.mean(), norm.mean(), difference)
        percent = f"{row.accuracy:.1%} ± {row.deviation:.1%}"
        numbers = f"{row.loss:.3f}", f"{row.norm:.1f}", f"{row.difference:.2g}"
        table.add_row(name, f"{λ:g}", percent, *numbers)
        rows[name] = row
    print(table, "±: standard deviation over seeds. Δθ: from optax.adamw.\n", sep="")

    adam, ours, paper = (
        rows[name] for name in ("Adam", "AdamW × learning rate", "AdamW × schedule")
    )
    decayed = [row.accuracy for row in rows.values() if row.weight_decay]
    finding = (
        f"test accuracy {adam.accuracy:.1%} with Adam alone, "
        f"{min(decayed):.1%} to {max(decayed):.1%} with weight decay"
    )
    print(
        f"{digits.SETTING}: {finding}, each form at its own λ. After {steps} steps no "
        f"weight of optwd.adamw is further than {ours.difference:.2g} from optax.adamw's; "
        f"scaled by the schedule, with λ = {paper.weight_decay:g} in place of "
        f"{ours.weight_decay:g}, {paper.difference:.2g}."
    )
    picture = draw(curves, rows, steps, f"{digits.SETTING}:\n{finding}")
    common.save(picture, args.out, "compare_decay.png")
    return rows


if __name__ == "__main__":
    main()
