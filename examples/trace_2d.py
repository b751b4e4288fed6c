"""Six optimizers on f(x) = 0.1 x₁² + 2 x₂², 20 steps from (−5, −2), in float64.

The bowl is twenty times steeper along x₂. An L2 penalty only makes it steeper still, by
another factor along each axis, and Adam divides such factors out: Adam + L2 takes Adam's
path. Decoupled decay does move it. Nothing here is random or long, so --seed and --quick
change nothing.
"""

from typing import Any

import _common as common  # isort: skip  # first: it says which extra is missing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

import optwd

START, STEPS = (-5.0, -2.0), 20
ADAM, RMSPROP = {"learning_rate": 0.1, "eps": 1e-6}, {"learning_rate": 0.4, "eps": 1e-6}
DECAY = 0.5
# By panel; where paths coincide, the wide one is drawn first.
OPTIMIZERS: tuple[dict[str, optax.GradientTransformation], ...] = (
    {
        "SGD, η = 0.4": optax.sgd(0.4),
        "momentum 0.5, η = 0.6": optax.sgd(0.6, momentum=0.5),
    },
    {
        "RMSProp, η = 0.4": optax.rmsprop(decay=0.9, **RMSPROP),
        "Adam, η = 0.1": optwd.adam(**ADAM),
    },
    {
        "Adam, η = 0.1": optwd.adam(**ADAM),
        f"Adam + L2, λ = {DECAY}": optwd.adam_l2(l2=DECAY, **ADAM),
        f"AdamW, λ = {DECAY}": optwd.adamw(weight_decay=DECAY, **ADAM),
    },
)
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": common.SKY, "marker": "o", "ms": 6, "lw": 3},
    {"color": common.VERMILION, "marker": "^", "ms": 3.5, "lw": 1.2, "ls": "--"},
    {"color": common.BLACK, "marker": "s", "ms": 3.5, "lw": 1.2},
)


def f(x1, x2):
    return 0.1 * x1**2 + 2 * x2**2


def trace(optimizer: optax.GradientTransformation) -> np.ndarray:
    """The start and the point after each step: (STEPS + 1, 2)."""

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(lambda x: f(*x))(x), state, x)
        return (optax.apply_updates(x, updates), state), x

    start = jnp.array(START)
    (end, _), before = jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)
    return np.vstack([before, end])


def draw(paths: list[dict[str, np.ndarray]], title: str):
    picture, panels = common.figure(len(paths), 10, 3.6)
    x1, x2 = np.meshgrid(np.linspace(-5.7, 1.7, 100), np.linspace(-4.6, 3.1, 100))
    for panel, group in zip(panels, paths, strict=True):
        panel.grid(False)
        levels = 0.05 * 2.0 ** np.arange(9)
        panel.contour(x1, x2, f(x1, x2), levels, colors="0.8", linewidths=0.8)
        panel.plot([], [], color="0.8", lw=0.8, label="level lines of f")
        for (name, path), look in zip(group.items(), LOOKS, strict=False):
            panel.plot(*path.T, label=name, **look)
        panel.plot(0, 0, "k+", ms=10, label="minimum")
        panel.set(xlabel="x₁", ylabel="x₂")
        panel.legend(loc="lower right", fontsize=8)
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[str, np.ndarray]:
    """Trace, print, draw; returns the path of every optimizer."""
    args = common.parser(__doc__).parse_args(argv)
    paths = []
    with common.float64(), common.progress(STEPS * sum(map(len, OPTIMIZERS))) as bar:
        for group in OPTIMIZERS:
            paths.append({})
            for name, optimizer in group.items():
                paths[-1][name] = trace(optimizer)
                bar.update(STEPS)

    table = common.table("", "x₁", "x₂", "f(x)")
    named = {name: path for group in paths for name, path in group.items()}
    for name, path in named.items():
        end = path[-1]
        table.add_row(name, *(f"{x:.8f}" for x in end), f"{f(*end):.2g}")
    print(f"After {STEPS} steps from {START}:", table, sep="\n")

    adam, l2, adamw = paths[-1].values()
    finding = (
        f"L2 moves Adam's path by {np.abs(l2 - adam).max():.0e}, "
        f"decoupled decay by {np.abs(adamw - adam).max():.2f}"
    )
    print(
        f"{finding}: on a bowl around 0 the penalty rescales each coordinate's gradient, "
        "and Adam divides that out."
    )
    title = f"f(x) = 0.1 x₁² + 2 x₂², {STEPS} steps: at λ = {DECAY}, {finding}"
    common.save(draw(paths, title), args.out, "trace_2d.png")
    return named


if __name__ == "__main__":
    main()
