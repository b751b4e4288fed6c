"""Which weight decay suits a run of which length? What is measured beside what is planned.

A small network learns from labels of which 40 % are wrong, by AdamW, for 200 to 3200
steps; the learning rate warms up and falls to 0 along a line. For each length the best λ
of a grid is found, the vertex of a parabola through the least log test losses, and from all
lengths a slope: of the best log λ over the log of the steps. Three settings:

- forget, fresh data: weights that start 20 times too large, and the labels of a random
  network, drawn anew in every step. Decay has to end the first weights' influence.
- forget, repeated data: the same start, and 800 handwritten digits in every epoch.
- fit, repeated data: weights that start at their usual size. Decay has to keep a network
  that reads the same wrong labels again and again from learning them.

Planners differ in their slope. One average per run has −1; a power of the tokens per
parameter, fitted to language models, −0.47; the AdamW paper's λ_norm −0.5; a fixed number
of epochs, where data repeat, 0.
"""

import math
from functools import partial
from typing import NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich import print

import optwd
from optwd import rates

HIDDEN, RATE, BATCH = 64, 0.01, digits.BATCH
LENGTHS = 200, 400, 800, 1600, 3200  # steps
DECAYS = np.linspace(-3, 1.5, 10)  # log₁₀ λ
TEST = 2000  # fresh examples to test on
NORM = 0.05  # λ_norm
LARGE = 20.0  # times Lecun's initial weights
HELPS = 0.97  # the best decay counts where it cuts the loss to this share, or below


class Finding(NamedTuple):
    """One setting."""

    losses: np.ndarray  # on the test set: (lengths, decays, seeds)
    best: np.ndarray  # log₁₀ λ: (lengths, seeds); NaN where decay helps too little to tell
    slope: float  # of the best log λ over log steps: the mean over seeds
    error: float  # and its standard error, over seeds and about the line


def repeated(data, key, rows):
    """A batch of the digits, drawn with replacement."""
    del key
    return data[0][rows], data[1][rows]


def fresh(teacher, key, rows):
    """As many new inputs as rows, with the teacher's labels, as many of them wrong."""
    draw, swap, other = jax.random.split(key, 3)
    x = jax.random.normal(draw, (len(rows), 64))
    y = nnx.merge(digits.GRAPH, teacher)(x).argmax(-1)
    wrong = jax.random.uniform(swap, y.shape) < digits.WRONG
    return x, (y + wrong * jax.random.randint(other, y.shape, 1, 10)) % 10


def settings(seeds: range) -> dict:
    """For each setting: how it makes a batch, from what, and clean data to test on."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    data, _, params = digits.start(seeds, HIDDEN)
    teachers = digits.initial(jax.vmap(partial(jax.random.fold_in, data=1))(keys), HIDDEN)
    x = jax.random.normal(jax.random.key(2), (len(seeds), TEST, 64))
    y = jax.vmap(lambda p, x: nnx.merge(digits.GRAPH, p)(x).argmax(-1))(teachers, x)
    large = jax.tree.map(lambda w: LARGE * w, params)
    return {
        "forget, fresh data": (fresh, teachers, [x, y], keys, large),
        "forget, repeated data": (repeated, data[:2], data[2:], keys, large),
        "fit, repeated data": (repeated, data[:2], data[2:], keys, params),
    }


@partial(jax.jit, static_argnums=(0, 1))
def train(batch, steps: int, decays, data, test, keys, params):
    """Losses on the test set at the end: (decays, seeds)."""
    eta = optax.warmup_constant_schedule(0.0, RATE, max(steps // 10, 1))
    fall = optax.linear_schedule(1.0, 0.0, steps)

    def run(decay, data, test, key, params):
        optimizer = optwd.adamw(lambda t: eta(t) * fall(t), weight_decay=decay)

        def step(carry, t):
            params, state = carry
            key_t = jax.random.fold_in(key, t)
            rows = jax.random.randint(key_t, (BATCH,), 0, digits.TRAIN)
            grads = jax.grad(digits.loss)(params, *batch(data, key_t, rows))
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        begin = params, optimizer.init(params)
        (params, _), _ = jax.lax.scan(step, begin, jnp.arange(steps))
        return digits.loss(params, *test)

    seeds = jax.vmap(run, (None, 0, 0, 0, 0))
    return jax.vmap(seeds, (0, None, None, None, None))(decays, data, test, keys, params)


def summary(losses: np.ndarray, decays: np.ndarray, lengths) -> Finding:
    """Per length and seed the vertex of a parabola about the least log loss; its slope."""
    losses = np.log(losses)
    i = np.clip(losses.argmin(1, keepdims=True), 1, len(decays) - 2)
    a, b, c = (np.take_along_axis(losses, i + k, 1)[:, 0] for k in (-1, 0, 1))
    bend = np.maximum(a - 2 * b + c, 1e-9)
    best = decays[i[:, 0]] + np.clip((a - c) / (2 * bend), -1, 1) * np.diff(decays)[0]
    best = np.where(losses.min(1) <= losses[:, 0] + np.log(HELPS), best, np.nan)
    x, known = np.log10(lengths), np.isfinite(best)
    slopes = [
        np.polyfit(x[at], y[at], 1)[0]
        for at, y in zip(known.T, best.T, strict=True)
        if at.sum() > 1
    ]
    if len(slopes) < 2:
        return Finding(losses, best, math.nan, math.nan)
    some = known.any(1)
    about = off_line(x[some], np.nanmean(best[some], 1))
    error = np.hypot(np.std(slopes, ddof=1) / np.sqrt(len(slopes)), about)
    return Finding(losses, best, float(np.mean(slopes)), float(error))


def off_line(x: np.ndarray, y: np.ndarray) -> float:
    """The standard error of a line's slope, by how far points are off it; 0 for two."""
    if len(x) < 3:
        return 0.0
    off = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(np.sqrt(off @ off / (len(x) - 2) / np.sum((x - x.mean()) ** 2)))


def means(finding: Finding) -> np.ndarray:
    """λ, the geometric mean over seeds where all know it, else NaN."""
    return 10 ** finding.best.mean(1)


def plans(lengths) -> dict[str, np.ndarray]:
    """λ of each planner for every length."""
    parameters = 64 * HIDDEN + HIDDEN + HIDDEN * 10 + 10
    rules = {
        "one average per run": lambda t: rates.for_timescale(t, RATE),
        f"λ_norm = {NORM}": lambda t: rates.normalized(NORM, 1, t, 1) / RATE,
        "Power Lines": lambda t: rates.power_lines(RATE, BATCH, t * BATCH, parameters),
        "one average per epoch": lambda _: rates.for_timescale(digits.TRAIN / BATCH, RATE),
    }
    return {name: np.array([rule(t) for t in lengths]) for name, rule in rules.items()}


def slope_of(values: np.ndarray, lengths) -> float:
    return round(float(np.polyfit(np.log10(lengths), np.log10(values), 1)[0]), 9) + 0.0


def draw(findings: dict[str, Finding], lengths, title: str):
    """The best λ of every seed, and each planner's line, per setting."""
    picture, axes = common.figure(3, 12, 4.6)
    colors = common.ORANGE, common.GREEN, common.BLUE, common.PURPLE
    for axis, (name, finding) in zip(axes, findings.items(), strict=True):
        for (rule, values), color, style in zip(
            plans(lengths).items(), colors, ("-", "--", "-.", ":"), strict=True
        ):
            if rule != "one average per epoch" or "repeated" in name:
                label = f"{rule}: {slope_of(values, lengths):.2f}"
                axis.plot(lengths, values, style, color=color, label=label)
        look = {"color": "none", "mec": common.BLACK, "ms": 4}
        axis.plot(lengths, 10**finding.best, "o", **look)[0].set_label("best, each seed")
        axis.plot(lengths, means(finding), "s", color=common.BLACK, label="best, mean")
        axis.set(xscale="log", yscale="log", xlabel="steps", ylim=(0.02, 30))
        axis.set_xticks(lengths, [str(t) for t in lengths], minor=False)
        axis.minorticks_off()
        axis.set_title(
            f"{name}: slope {finding.slope:.2f} ± {finding.error:.2f}", fontsize=10
        )
    axes[0].set_ylabel("best weight decay λ")
    handles, labels = axes[1].get_legend_handles_labels()
    picture.legend(
        handles, labels, loc="outside lower center", ncols=6, title="planner: its slope"
    )
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[str, Finding]:
    """Train, print, draw; returns a finding for each setting."""
    args = common.parser(__doc__).parse_args(argv)
    lengths = LENGTHS[:2] if args.quick else LENGTHS
    decays = DECAYS[::2] if args.quick else DECAYS
    seeds = range(args.seed, args.seed + (2 if args.quick else 5))

    findings = {}
    with common.progress(3 * sum(lengths)) as bar:
        for name, (batch, *begin) in settings(seeds).items():
            losses = []
            for steps in lengths:
                bar.set_description(f"{name}, {steps} steps")
                losses.append(np.array(train(batch, steps, 10**decays, *begin), float))
                bar.update(steps)
            findings[name] = summary(np.stack(losses), decays, lengths)

    print(
        f"Peak η = {RATE}, batches of {BATCH}, {len(seeds)} seeds. Slope: of the best log "
        "λ over log steps, with its standard error."
    )
    table = common.table("", "slope", *(f"λ at {t}" for t in lengths))
    for name, finding in findings.items():
        values = (f"{x:.3g}" if np.isfinite(x) else "–" for x in means(finding))
        table.add_row(
            f"measured: {name}", f"{finding.slope:.2f} ± {finding.error:.2f}", *values
        )
    for rule, values in plans(lengths).items():
        slope = f"{slope_of(values, lengths):.2f}"
        table.add_row(rule, slope, *(f"{x:.3g}" for x in values))
    print(table)
    forget = [findings["forget, fresh data"], findings["forget, repeated data"]]
    planned = plans(lengths)["one average per run"]
    times = np.concatenate([means(finding) / planned for finding in forget])
    title = (
        "To forget large initial weights, the best λ falls with the length of the run "
        f"(slopes {forget[0].slope:.2f} and {forget[1].slope:.2f}), as one average per run "
        f"does,\nbut is {np.nanmin(times):.0f} to {np.nanmax(times):.0f} times as large. "
        "To keep wrong labels from being learned, it grows, which no planner says"
    )
    print(title.replace("\n", " ") + ".")
    common.save(draw(findings, lengths, title), args.out, "run_length.png")
    return findings


if __name__ == "__main__":
    main()
