"""Which form of weight decay can be tuned apart from the learning rate? It depends.

Test error over learning rate and weight decay for Adam + L2, AdamW scaled by the learning
rate, and AdamW scaled by the schedule only. Each grid with its seeds is one vmapped
program, in float32, which is enough for an error rate. Two settings differ in one number,
the size of the initial weights:

- usual initial weights (Lecun's). The best decay sets where the weights end: a steady
  gradient and decay balance at |θ| = |û|/λ, whatever η is. Scaled by the learning rate, the
  best λ is then the same at every η.
- initial weights 20 times larger. The best decay sets how soon they are forgotten, which
  takes some multiple of 1/(ηλ) steps, and the run is short. The best ηλ is then the same at
  every η: this is the λ of the form scaled by the schedule, and the AdamW paper's finding.

The two AdamW are the same runs with ηλ for λ, so their slopes differ by 1: at most one of
the two can be tuned apart from η. A slope of 0 means that λ can be tuned at any one η.
"""

from functools import partial
from typing import NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from rich import print

import optwd

HIDDEN = 64
LARGE = 20.0
USUAL_START, LARGE_START = "usual initial weights", f"initial weights × {LARGE:g}"
STARTS = {USUAL_START: 1.0, LARGE_START: LARGE}  # in units of Lecun's initialization
RATES = np.linspace(-2.25, -0.75, 7)  # log₁₀ of the peaks
HELPS = 0.8  # a best decay is told where it cuts the error to this share, or below
REGION = 1.5  # drawn: where the error is below this many times the panel's least


def by_schedule(rate, peak, λ):
    return optwd.adamw(rate, weight_decay=λ, scaled_by="schedule", peak_learning_rate=peak)


BY_RATE, BY_SCHEDULE = "AdamW × learning rate", "AdamW × schedule"
FORMS = {  # log₁₀ of the decays, and the optimizer
    "Adam + L2": (np.linspace(-4, 0, 9), lambda η, _, λ: optwd.adam_l2(η, l2=λ)),
    BY_RATE: (
        np.linspace(-2, 2, 9),
        lambda η, _, λ: optwd.adamw(η, weight_decay=λ),
    ),
    BY_SCHEDULE: (np.linspace(-4, 0, 9), by_schedule),
}


class Panel(NamedTuple):
    """One form of decay from one start."""

    errors: np.ndarray  # (rates, decays): means over seeds
    best: np.ndarray  # log₁₀ λ, (rates, seeds); NaN where decay helps too little to tell
    slope: float  # of the best log λ over log η: the mean over seeds
    spread: float  # and the deviation


@partial(jax.jit, static_argnums=(0, 1))
def train(form: str, steps: int, rates, decays, data, keys, params):
    """Final test errors: (rates, decays, seeds). A short warm-up, then a cosine."""
    fraction = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 20, steps)

    def run(rate, decay, data, key, params):
        optimizer = FORMS[form][1](lambda t: rate * fraction(t), rate, decay)
        state, ts = optimizer.init(params), jnp.arange(steps)
        params, _ = digits.advance(optimizer, params, state, data, key, ts)
        return 1 - digits.measure(params, data)[1]

    grid = jax.vmap(run, (None, None, 0, 0, 0))
    grid = jax.vmap(grid, (None, 0, None, None, None))
    return jax.vmap(grid, (0, None, None, None, None))(rates, decays, data, keys, params)


def summary(errors: np.ndarray, rates: np.ndarray, decays: np.ndarray) -> Panel:
    """Per rate and seed, the vertex of a parabola about the least error."""
    i = np.clip(errors.argmin(1, keepdims=True), 1, len(decays) - 2)
    a, b, c = (np.take_along_axis(errors, i + k, 1)[:, 0] for k in (-1, 0, 1))
    bend = np.maximum(a - 2 * b + c, 1e-9)  # flat or hollow: an end of the three
    best = decays[i[:, 0]] + np.clip((a - c) / (2 * bend), -1, 1) * np.diff(decays)[0]
    best = np.where(errors.min(1) <= HELPS * errors[:, 0], best, np.nan)
    known = (np.isfinite(λ) for λ in best.T)
    slopes = [
        np.polyfit(rates[at], λ[at], 1)[0] if at.sum() > 1 else np.nan
        for at, λ in zip(known, best.T, strict=True)
    ]
    return Panel(errors.mean(-1), best, float(np.mean(slopes)), float(np.std(slopes)))


def draw(panels: dict[tuple[str, str], Panel], rates: np.ndarray, title: str):
    """A heat map per start and form, with the region of the best and each seed's best."""
    picture, axes = common.figure(len(FORMS), 10, 6.8, rows=len(STARTS))
    look = {"norm": LogNorm(7, 90), "cmap": "cividis", "shading": "nearest"}
    image, dots = None, None
    for axis, ((start, form), panel) in zip(axes, panels.items(), strict=True):
        decays, percent = FORMS[form][0], 100 * panel.errors.T
        image = axis.pcolormesh(rates, decays, percent, **look)
        region = [REGION * percent.min()]
        axis.contour(rates, decays, percent, region, colors="white", linewidths=1.5)
        dots, *_ = axis.plot(rates, panel.best, "o", color="white", mec="black", ms=4)
        axis.set(xlabel="log₁₀ peak learning rate η", ylabel="log₁₀ weight decay λ")
        slope = f"{panel.slope:.2f} ± {panel.spread:.2f}"
        axis.set_title(f"{form}\n{start}: slope {slope}", fontsize=9)
        axis.grid(False)
    ticks = [7, 10, 20, 40, 80]
    bar = picture.colorbar(image, ax=axes, label="test error (%)", ticks=ticks)
    bar.ax.set_yticklabels(map(str, ticks))
    bar.ax.minorticks_off()
    line = Line2D([], [], color="white", lw=1.5)
    picture.legend(
        [dots, line],
        [
            f"best λ of one seed, where decay cuts the error by {1 - HELPS:.0%} or more",
            f"inside the line: error below {REGION:g} times the panel's least",
        ],
        loc="outside lower center",
        ncols=2,
        facecolor="0.6",
        frameon=True,
    )
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[tuple[str, str], Panel]:
    """Train, print, draw; returns a panel for each start and form."""
    args = common.parser(__doc__).parse_args(argv)
    n, rates, steps = (2, RATES[::2], 300) if args.quick else (5, RATES, 300)
    data, keys, params = digits.start(range(args.seed, args.seed + n), HIDDEN)
    panels = {}
    with common.progress(steps * len(STARTS) * len(FORMS)) as bar:
        for start, scale in STARTS.items():
            begin = jax.tree.map(lambda w, scale=scale: scale * w, params)
            for form, (decays, _) in FORMS.items():
                bar.set_description(f"{start}, {form}")
                grid = jnp.array(10**rates), jnp.array(10**decays)
                errors = np.array(train(form, steps, *grid, data, keys, begin), float)
                panels[start, form] = summary(errors, rates, decays)
                bar.update(steps)

    print(
        f"{digits.SETTING}; {HIDDEN} hidden units, {steps} steps of {digits.BATCH}, "
        f"{n} seeds, float32. Slope: of the best log λ over log η."
    )
    table = common.table("", "", "least error", "slope")
    for (start, form), panel in panels.items():
        slope = f"{panel.slope:.2f} ± {panel.spread:.2f}"
        table.add_row(start, form, f"{panel.errors.min():.1%}", slope)
    print(table)

    λ, ηλ = panels[USUAL_START, BY_RATE], panels[LARGE_START, BY_SCHEDULE]
    shrunk = 10 ** np.nanmean(ηλ.best) * steps / 2  # the schedule's mean is a half
    print(
        "Why: λ alone sets where the weights end, ηλ how soon they forget their start. "
        f"The best ηλ shrinks the large initial weights by about e^{shrunk:.1f}; they are "
        f"e^{np.log(LARGE):.1f} times too large.\nWhich to tune first: λ as Optax and "
        "PyTorch define it, unless a run is short against what it has to forget; then ηλ, "
        "the paper's λ."
    )
    title = (
        "The best weight decay hardly changes with the learning rate for\n"
        f"{BY_RATE} from usual initial weights (slope of log λ over log η: "
        f"{λ.slope:.2f})\nand {BY_SCHEDULE} from weights {LARGE:g} times larger "
        f"(slope {ηλ.slope:.2f})"
    )
    common.save(draw(panels, rates, title), args.out, "landscape.png")
    return panels


if __name__ == "__main__":
    main()
