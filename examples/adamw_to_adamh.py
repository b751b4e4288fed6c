"""From AdamW to AdamH in the middle of a run, without a jump in the loss.

AdamW's matrices come to rest at a norm where what the steps add is what the decay takes
away, and from then on turn by the same angle in every step. AdamH holds that norm by
construction: it has no decay, but a learning rate that is the angle itself. So a run that
is at rest can go over, if it keeps Adam's moments and the angle.

For matrices whose gradients are noise the angle is known beforehand (Kosson et al., arXiv
2305.17212): η_s = rates.sphere_learning_rate(η, λ) ≈ √(2ηλ(1 − b1)/(1 + b1)). Here the
gradients also agree from step to step, which keeps the weights larger, and the angle is a
third of that. `optwd.monitor_rotation` tells by how much, as its ``angle_ratio``.
"""

from functools import partial

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

import optwd
from optwd import decay, masks, rates

EPOCH = digits.TRAIN // digits.BATCH  # steps
EPOCHS = 60, 60  # with AdamW, and after it
RATE, DECAY = 0.005, 2.0  # at rest after a few times 1/(ηλ) = 100 steps
KERNELS = masks.path("**/kernel")
GROUPS = {name: masks.path(f"{name}/kernel") for name in ("hidden", "logits")}
STAYS = "AdamW"


def adamw() -> optax.GradientTransformation:
    """θ ← θ − η(û + λθ), in its parts: the moments come first, and can be handed on."""
    return optax.chain(
        optwd.scale_by_adam(),
        decay.linear(DECAY, KERNELS),
        optax.scale_by_learning_rate(RATE),
        optwd.monitor_rotation(RATE, DECAY, groups=GROUPS),
    )


def adamh(angles: dict[str, float]) -> optax.GradientTransformation:
    """Kernels on their spheres, each with its learning rate; biases with Adam as before."""
    # The learning rate is that of the biases; on kernels the ratio makes it the angle.
    ratios = {f"{name}/kernel": angle / RATE for name, angle in angles.items()}
    return optax.chain(
        optwd.scale_by_adam(),
        optwd.scale_by_weight_norm(masks.multipliers(ratios)),
        optax.scale_by_learning_rate(RATE, flip_sign=False),
        decay.to_norm(mask=KERNELS),
        optax.scale(-1),
    )


def measured(state) -> dict[str, float]:
    """The angle of each kernel, the mean over seeds."""
    seen = optwd.metrics(state)
    return {name: float(seen[f"rotation/{name}/angle"].mean()) for name in GROUPS}


def go_over(old, optimizer: optax.GradientTransformation, params):
    """A state that keeps Adam's moments and takes everything else from the weights."""
    return (old[0], *optimizer.init(params)[1:])


def train(optimizer, begin, params, state, epochs: range, bar):
    """Training loss, test accuracy and norm of each seed after every epoch, and the end."""
    data, keys, _ = begin
    advance = jax.jit(jax.vmap(partial(digits.advance, optimizer), (0, 0, 0, 0, None)))
    measure, path = jax.jit(jax.vmap(digits.measure)), []
    for epoch in epochs:
        steps = jnp.arange(epoch * EPOCH, (epoch + 1) * EPOCH)
        params, state = advance(params, state, data, keys, steps)
        path.append(measure(params, data))
        bar.update(EPOCH)
    return params, state, np.array(path)


def draw(before: np.ndarray, after: dict[str, np.ndarray]):
    """Loss and norm, the mean over seeds."""
    picture, panels = common.figure(2, 8, 3.6)
    colors = common.BLACK, common.BLUE, common.VERMILION, common.ORANGE
    begin = len(before)
    for panel, column, label in zip(
        panels, (0, 2), ("training loss (nats)", "norm of all parameters"), strict=True
    ):
        panel.plot(np.arange(1, begin + 1), before[..., column].mean(1), color=common.BLACK)
        for (name, path), color, style in zip(
            after.items(), colors, ("-", "-", "--", ":"), strict=True
        ):
            epochs = np.arange(begin + 1, begin + len(path) + 1)
            panel.plot(epochs, path[..., column].mean(1), style, color=color, label=name)
        panel.axvline(begin, color="black", lw=0.6, ls=":")
        panel.set(xlabel="epoch; dotted: AdamH begins", ylabel=label)
    panels[1].legend(loc="upper right")
    stays, measured, theory, _ = (path[-10:, :, 0].mean() for path in after.values())
    picture.suptitle(
        f"With AdamH at the measured angle the loss ends at {measured:.3f} nats, with "
        f"AdamW at {stays:.3f},\nwith AdamH at the angle of independent gradients at "
        f"{theory:.3f}"
    )
    return picture


def main(argv: list[str] | None = None) -> dict[str, np.ndarray]:
    """Train, print, draw; returns loss, accuracy and norm of each run, epoch and seed."""
    args = common.parser(__doc__).parse_args(argv)
    first, second = (30, 15) if args.quick else EPOCHS
    seeds = range(args.seed, args.seed + (2 if args.quick else 5))
    after = {}
    with common.float64(), common.progress((first + 4 * second) * EPOCH) as bar:
        begin = digits.start(seeds)
        base = adamw()
        state = jax.vmap(base.init)(begin[2])
        params, state, before = train(base, begin, begin[2], state, range(first), bar)
        angles = measured(state)
        by_theory = dict.fromkeys(GROUPS, rates.sphere_learning_rate(RATE, DECAY))
        ways = {
            STAYS: base,
            "AdamH, measured": adamh(angles),
            "AdamH, theory": adamh(by_theory),
            "AdamH, ¼ measured": adamh({k: x / 4 for k, x in angles.items()}),
        }
        for name, optimizer in ways.items():
            bar.set_description(name)
            own = jax.vmap(lambda s, p, tx=optimizer: go_over(s, tx, p))(state, params)
            epochs = range(first, first + second)
            *_, after[name] = train(optimizer, begin, params, own, epochs, bar)

    print(
        f"{digits.SETTING}, {len(seeds)} seeds. Training loss after {first} epochs of "
        f"AdamW: {before[-1, :, 0].mean():.3f} ± {before[-1, :, 0].std():.3f} nats.\n"
        f"Angles per step: {', '.join(f'{k} {x:.4f}' for k, x in angles.items())}; η_s is "
        f"{by_theory['hidden']:.4f}."
    )
    columns = "loss 1 epoch later", f"{second} epochs later", "test accuracy", "norm"
    table = common.table("", *columns)
    for name, path in after.items():
        one, end = path[0, :, 0], path[-10:, :, 0].mean(0)
        table.add_row(
            name,
            f"{one.mean():.3f}",
            f"{end.mean():.3f} ± {end.std():.3f}",
            f"{path[-10:, :, 1].mean():.1%}",
            f"{path[-1, :, 2].mean():.2f}",
        )
    print(table)
    common.save(draw(before, after), args.out, "adamw_to_adamh.png")
    return {"before": before, **after}


if __name__ == "__main__":
    main()
