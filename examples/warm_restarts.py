"""AdamWR and SGDWR: warm restarts, with a weight decay for each cycle.

In each cycle the learning rate falls from its peak to 0 along a cosine, and the decay with
it; the next cycle starts at the peak again, from the weights that it finds, and lasts twice
as long. The longer a cycle, the smaller the decay that suits it: λ = λ_norm·√(b/(B·T)),
with b of B scans per step and T epochs in the cycle, so that one λ_norm serves all cycles.
AdamW and SGDW without restarts, in one cosine of the same length, run beside them.

Nothing here is a new optimizer. Two schedules of the step, given to `adamw` and `sgdw`, are
AdamWR and SGDWR as their paper defines them (arXiv 1711.05101, Appendix B).
"""

from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

import optwd
from optwd import rates

EPOCH = digits.TRAIN // digits.BATCH  # steps
CYCLES = 10, 20, 40, 80  # epochs
NORM = 0.5  # λ_norm
ADAM_RATE, SGD_RATE = 0.01, 0.1  # peaks
LOOKS: dict[str, dict[str, Any]] = {
    "AdamWR": {"color": common.BLUE},
    "AdamW, no restarts": {"color": common.BLUE, "ls": ":", "lw": 2},
    "SGDWR": {"color": common.VERMILION, "ls": "--"},
    "SGDW, no restarts": {"color": common.ORANGE, "ls": "-.", "lw": 2},
}


class Schedules(NamedTuple):
    """ηₜ, and the λ of the cycle that a step is in."""

    learning_rate: optax.Schedule
    weight_decay: optax.Schedule


def restarts(peak: float, cycles: tuple[int, ...]) -> Schedules:
    """A cosine from the peak to 0 for each cycle, and its normalized weight decay."""
    lengths = [epochs * EPOCH for epochs in cycles]
    cosines = [
        {"init_value": peak, "peak_value": peak, "warmup_steps": 0, "decay_steps": n}
        for n in lengths
    ]
    decays = [
        optax.constant_schedule(
            rates.normalized(NORM, digits.BATCH, digits.TRAIN, epochs=epochs)
        )
        for epochs in cycles
    ]
    return Schedules(
        optax.sgdr_schedule(cosines),
        optax.join_schedules(decays, list(accumulate(lengths[:-1]))),
    )


def adamwr(peak: float, cycles: tuple[int, ...]) -> optax.GradientTransformation:
    """θ ← θ − sₜ(α û + λᵢθ), sₜ = ηₜ/η_max, with λᵢ of the cycle."""
    eta, lam = restarts(peak, cycles)
    return optwd.adamw(eta, weight_decay=lam, scaled_by="schedule", peak_learning_rate=peak)


def sgdwr(peak: float, cycles: tuple[int, ...]) -> optax.GradientTransformation:
    """The same with the momentum of SGD for û."""
    eta, lam = restarts(peak, cycles)
    return optwd.sgdw(
        eta, 0.9, weight_decay=lam, scaled_by="schedule", peak_learning_rate=peak
    )


def train(optimizer, data, keys, params, steps: int, bar) -> np.ndarray:
    """Test accuracy after every epoch, the mean over seeds."""
    advance = jax.jit(jax.vmap(partial(digits.advance, optimizer), (0, 0, 0, 0, None)))
    measure = jax.jit(jax.vmap(digits.measure))
    state, accuracy = jax.vmap(optimizer.init)(params), []
    for ts in jnp.arange(steps).reshape(-1, EPOCH):
        params, state = advance(params, state, data, keys, ts)
        accuracy.append(measure(params, data)[:, 1].mean())
        bar.update(EPOCH)
    return np.array(accuracy)


def draw(curves: dict[str, np.ndarray], cycles: tuple[int, ...], title: str):
    """The decay over epochs, and the test accuracy: means over seeds."""
    picture, (left, right) = common.figure(2, 9, 3.6)
    t = np.arange(sum(cycles) * EPOCH)
    for name, lengths, look in (
        ("with restarts", cycles, {"color": common.BLACK}),
        ("no restarts", (sum(cycles),), {"color": "0.5", "ls": ":", "lw": 2}),
    ):
        eta, lam = restarts(1.0, lengths)
        left.plot(t / EPOCH, eta(t) * jax.vmap(lam)(t), label=name, **look)
    left.set(xlabel="epoch", ylabel="weight decay per step, λ·ηₜ/η_max", ylim=(0, None))
    for name, accuracy in curves.items():
        epochs = np.arange(1, len(accuracy) + 1)
        right.plot(epochs, 100 * accuracy, label=name, **LOOKS[name])
    for end in accumulate(cycles[:-1]):
        label = "restart" if end == cycles[0] else None
        right.axvline(end, color="black", lw=0.6, ls=":", label=label)
    right.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(60, 95))
    for panel in (left, right):
        panel.set(xlim=(0, None))
        panel.legend()
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[str, np.ndarray]:
    """Train, print, draw; returns the accuracy at the end of every cycle."""
    args = common.parser(__doc__).parse_args(argv)
    cycles = CYCLES[:2] if args.quick else CYCLES
    steps, ends = sum(cycles) * EPOCH, np.array(list(accumulate(cycles)))
    recipes = (
        adamwr(ADAM_RATE, cycles),
        adamwr(ADAM_RATE, (sum(cycles),)),
        sgdwr(SGD_RATE, cycles),
        sgdwr(SGD_RATE, (sum(cycles),)),
    )
    optimizers = dict(zip(LOOKS, recipes, strict=True))

    curves, columns = {}, [f"{end} epochs" for end in ends]
    seeds = range(args.seed, args.seed + (2 if args.quick else 5))
    with common.float64(), common.progress(len(optimizers) * steps) as bar:
        begin = digits.start(seeds)
        for name, optimizer in optimizers.items():
            bar.set_description(name)
            curves[name] = train(optimizer, *begin, steps, bar)

    print(f"{digits.SETTING}; mean test accuracy over {len(seeds)} seeds after")
    table = common.table("", *columns)
    for name, accuracy in curves.items():
        table.add_row(name, *(f"{a:.1%}" for a in accuracy[ends - 1]))
    _, lam = restarts(1.0, cycles)
    table.add_row("λ of that cycle", *(f"{lam(end * EPOCH - 1):.4f}" for end in ends))
    print(table)
    names = list(LOOKS)
    finding = "; ".join(
        f"{name[:-1]} {curves[name][-1]:.1%} and {curves[alone][-1]:.1%}"
        for name, alone in zip(names[::2], names[1::2], strict=True)
    )
    title = (
        f"{digits.SETTING}: test accuracy\nafter {ends[-1]} epochs with and without "
        f"restarts: {finding}"
    )
    common.save(draw(curves, cycles, title), args.out, "warm_restarts.png")
    return {name: accuracy[ends - 1] for name, accuracy in curves.items()}


if __name__ == "__main__":
    main()
