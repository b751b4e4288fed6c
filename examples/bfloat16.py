"""Weights in bfloat16: what rounding takes from weight decay, and two ways to keep it.

bfloat16 holds three significant digits. A step that shrinks a weight by less than 0.2%
is rounded away, and so is the next one. `compensate_rounding` keeps what was rounded away
for the next step; `round_stochastically` rounds up or down by chance, right on average.

First decay alone: AdamW on zero gradients, for 10 000 steps of η·λ = 1e-4. Then training on
handwritten digits, with weights and gradients in bfloat16, beside float32 from the same
seeds.
"""

from functools import partial
from typing import Any, NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

import optwd

DECAY_RATE, DECAY_LAMBDA, DECAY_STEPS, WEIGHTS = 1e-3, 0.1, 10_000, 4096
RATE, LAMBDA = 0.001, 2.0  # peak; rounding shows where steps are small
POINTS = 50  # on each curve, beside the start
LOOKS: dict[str, dict[str, Any]] = {
    "float32": {"color": common.BLACK, "lw": 3.5, "alpha": 0.4},
    "bfloat16": {"color": common.VERMILION, "lw": 1.5, "ls": "-."},
    "bfloat16, compensated": {"color": common.BLUE, "lw": 1.5},
    "bfloat16, stochastic": {"color": common.GREEN, "lw": 1.5, "ls": "--"},
}


class Row(NamedTuple):
    """Where training ended: means over seeds and their deviations."""

    accuracy: float
    accuracy_deviation: float
    norm: float
    norm_deviation: float


def ways(adamw: optax.GradientTransformation, seed: int) -> dict[str, tuple[Any, Any]]:
    """By name: the dtype of the weights, and how their steps are rounded."""

    def last(rounding: optax.GradientTransformation) -> optax.GradientTransformation:
        return optwd.in_float32(optax.chain(adamw, rounding))

    optimizers = (
        adamw,
        adamw,
        last(optwd.compensate_rounding(optax.identity())),
        last(optwd.round_stochastically(optax.identity(), seed)),
    )
    dtypes = jnp.float32, *3 * [jnp.bfloat16]
    return dict(zip(LOOKS, zip(dtypes, optimizers, strict=True), strict=True))


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def decay_alone(optimizer, start, bar) -> np.ndarray:
    """The norm of the weights, relative to the start."""

    @jax.jit
    def advance(params, state):
        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(jnp.zeros_like(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, DECAY_STEPS // POINTS, step, (params, state))

    params, state, norms = start, optimizer.init(start), [np.linalg.norm(np.float64(start))]
    for _ in range(POINTS):
        params, state = advance(params, state)
        norms.append(np.linalg.norm(np.float64(params)))
        bar.update(DECAY_STEPS // POINTS)
    return np.array(norms) / norms[0]


def train(optimizer, data, keys, params, steps: int, bar) -> np.ndarray:
    """All seeds at once: measurements, (POINTS + 1, 3, seeds)."""

    def measured(params):
        return jax.vmap(digits.measure, out_axes=1)(cast(params, jnp.float32), data)

    advance = jax.jit(jax.vmap(partial(digits.advance, optimizer), (0, 0, 0, 0, None)))
    state, points = jax.vmap(optimizer.init)(params), [measured(params)]
    for ts in np.arange(steps).reshape(POINTS, -1):
        params, state = advance(params, state, data, keys, ts)
        points.append(jax.block_until_ready(measured(params)))
        bar.update(len(ts))
    return np.array(points)


def draw(alone: dict[str, np.ndarray], curves: dict[str, np.ndarray], steps: int):
    """Decay alone, then the norm and the accuracy in training: means over seeds."""
    picture, panels = common.figure(3, 10, 3.6)
    left, middle, right = panels
    for name, look in LOOKS.items():
        left.plot(np.linspace(0, DECAY_STEPS, POINTS + 1), alone[name], label=name, **look)
        t, mean = np.linspace(0, steps, POINTS + 1), curves[name].mean(-1)
        middle.plot(t, mean[:, 2], **look)
        right.plot(t, 100 * mean[:, 1], **look)
    left.set(xlabel="step", ylabel="‖θ‖₂, start = 1", ylim=(0, 1.05))
    left.set_title("decay alone, ηλ = 1e-4")
    middle.set(xlabel="step", ylabel="parameter norm ‖θ‖₂", ylim=(0, None))
    middle.set_title("training on digits")
    right.set(xlabel="step", ylabel="test accuracy (%)", ylim=(50, 100))
    right.set_title("training on digits")
    picture.legend(handles=left.get_lines(), loc="outside lower center", ncols=4)
    lost, exact = (curves[name][-1, 2].mean() for name in ("bfloat16", "float32"))
    picture.suptitle(
        f"Rounding to bfloat16 undoes small decay: the norm ends {lost / exact - 1:.0%} "
        "too high; compensated or by chance, it is float32's"
    )
    return picture


def main(argv: list[str] | None = None) -> tuple[dict[str, float], dict[str, Row]]:
    """Decay, train, print, draw; returns the last norms and the rows of the table."""
    args = common.parser(__doc__).parse_args(argv)
    n, steps = (2, 1000) if args.quick else (5, 3000)
    alone, curves, rows = {}, {}, {}
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps)
    decaying = ways(optwd.adamw(DECAY_RATE, weight_decay=DECAY_LAMBDA), args.seed)
    training = ways(optwd.adamw(schedule, weight_decay=LAMBDA), args.seed)
    weights = jax.random.normal(jax.random.key(args.seed), (WEIGHTS,))
    data, keys, params = digits.start(range(args.seed, args.seed + n))
    with common.progress(len(LOOKS) * (DECAY_STEPS + steps)) as bar:
        for name, (dtype, optimizer) in decaying.items():
            bar.set_description(name)
            alone[name] = decay_alone(optimizer, weights.astype(dtype), bar)
        for name, (dtype, optimizer) in training.items():
            bar.set_description(name)
            curves[name] = train(optimizer, data, keys, cast(params, dtype), steps, bar)

    columns = "", "decay alone, ‖θ‖", "test accuracy", "‖θ‖ after training"
    table = common.table(*columns)
    for name in LOOKS:
        _, accuracy, norm = curves[name][-1]
        row = Row(accuracy.mean(), accuracy.std(), norm.mean(), norm.std())
        table.add_row(
            name,
            f"× {alone[name][-1]:.4f}",
            f"{row.accuracy:.1%} ± {row.accuracy_deviation:.1%}",
            f"{row.norm:.2f} ± {row.norm_deviation:.2f}",
        )
        rows[name] = row
    exact = (1 - DECAY_RATE * DECAY_LAMBDA) ** DECAY_STEPS
    print(
        f"Decay alone: {DECAY_STEPS} steps of ηλ = {DECAY_RATE * DECAY_LAMBDA:g}, exactly "
        f"× {exact:.4f}. Training: {digits.SETTING}, AdamW, η = {RATE}, λ = {LAMBDA:g}, "
        f"{steps} steps, {n} seeds.",
        table,
        "±: standard deviation over seeds.",
        sep="\n",
    )
    common.save(draw(alone, curves, steps), args.out, "bfloat16.png")
    return {name: float(norms[-1]) for name, norms in alone.items()}, rows


if __name__ == "__main__":
    main()
