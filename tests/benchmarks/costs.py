"""What each part costs beside plain Adam, and how costs grow with the number of leaves.

    python tests/benchmarks/costs.py [--quick] [--only growth] [--out PICTURE]

The first two tables: a donated step on 8 M parameters in 51 leaves with names, in float32
and in bfloat16, clocked as in step.py. The decay rules stand around a finished Adam, in
`with_weight_decay`; masks, monitors and rounding go into or around `adamw` and `adam`. Next
to it, in bytes a parameter: the state, the temporary memory, and what the compiled program
reads and writes. Masks are resolved while tracing, so what they cost is in the last column.

The next two: the same step, but with its gradients, of a network of dense layers. Alone on
the CPU, most of what a monitor or `compensate_rounding` costs is temporary memory, which
the system has to provide anew at each step; gradients need such memory anyway. The clock of
these is that of the processor, all threads together, which others on the machine disturb
less.

The last: trace, lower and compile with cold caches, and a call, of a step of 10 to 5000
leaves of 100 elements on average, where a call is all dispatch. Compiling the largest takes
too long for many rounds, so the clock is that of the processor again, and of all rounds the
least counts; ratios of two compilations still vary by a fifth on a busy machine. With
`--out` these are drawn.
"""

import argparse
import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import (
    OPTIMIZERS,
    STAGES,
    Clock,
    Jax,
    alternate,
    normal,
    ratio,
    seconds,
    show,
    size,
    small,
    time_compilation,
)

import optwd
from optwd import decay, masks

RATE, DECAY = 1e-3, 1e-2
ADAM = optwd.adam(RATE)


def chained(*parts: Any) -> Any:
    return optwd.in_float32(optax.chain(*parts))


def decayed(part: Any) -> Any:
    return optwd.with_weight_decay(ADAM, part)


def masked(mask: Any) -> Any:
    return optwd.adamw(RATE, weight_decay=DECAY, mask=mask)


RULES = {
    "linear": decay.linear(RATE * DECAY),
    "cautious": decay.cautious(RATE * DECAY),
    "proximal": decay.proximal(RATE * DECAY),
    "toward_init": decay.toward_init(RATE * DECAY),
    "constrained": decay.constrained(0.9, update_rate=RATE),
}
MASKS = {
    "None": None,
    "path": masks.path("**/kernel"),
    "regex": masks.regex(r".*/kernel"),
    "ndim": masks.ndim(2),
    "standard": masks.standard(),
    "multipliers": masks.multipliers({"wte/**": 0.1, "**/kernel": 1.0}),
}
FLOAT32 = {
    "adam": ADAM,
    **{f"decay.{name}": decayed(rule) for name, rule in RULES.items()},
    **{f"adamw, mask {name}": masked(mask) for name, mask in MASKS.items()},
    "monitor of decay.linear": decayed(optwd.monitor(RULES["linear"], "decay")),
    "monitor_rounding": chained(ADAM, optwd.monitor_rounding()),
    "monitor_rotation": chained(ADAM, optwd.monitor_rotation(RATE, DECAY)),
    "optax.adam": optax.adam(RATE),
    "optax.adamw": optax.adamw(RATE, weight_decay=DECAY),
}
NARROW = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
BFLOAT16 = {
    "adam": ADAM,
    "adam, bfloat16 moments": optwd.adam(RATE, **NARROW),
    "compensate_rounding": chained(ADAM, optwd.compensate_rounding(optax.identity())),
    "round_stochastically": chained(ADAM, optwd.round_stochastically(optax.identity(), 0)),
    "monitor_rounding": chained(ADAM, optwd.monitor_rounding()),
    "monitor_rotation": chained(ADAM, optwd.monitor_rotation(RATE, DECAY)),
    "optax.adam": optax.adam(RATE, mu_dtype=jnp.float32),
}


IN_TRAINING = (
    "adam",
    "monitor of decay.linear",
    "monitor_rounding",
    "monitor_rotation",
    "compensate_rounding",
    "round_stochastically",
)


def with_gradients(optimizer: Any, batch: int = 256) -> Any:
    """The optimizer behind the gradients of tanh layers; what comes in is their data."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for kernel in params:
            x = jnp.tanh(x @ kernel / kernel.shape[0] ** 0.5)
        return jnp.mean(x.astype(jnp.float32) ** 2)

    def update(data: Any, state: Any, params: Any) -> Any:
        return optimizer.update(jax.grad(loss)(params, data[0][:batch]), state, params)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def named(blocks: int = 4, d: int = 384) -> dict[str, Any]:
    """The shapes of a small transformer."""
    norm = {"scale": (d,), "bias": (d,)}
    dense = {
        name: {"kernel": (d * fan_in, d * fan_out), "bias": (d * fan_out,)}
        for name, fan_in, fan_out in (
            ("qkv", 1, 3),
            ("out", 1, 1),
            ("up", 1, 4),
            ("down", 4, 1),
        )
    }
    block = {"norm_1": norm, "norm_2": norm, **dense}
    return {
        "wte": {"embedding": (2048, d)},
        **{f"block_{i}": block for i in range(blocks)},
        "norm": norm,
    }


def costs(
    optimizers: dict[str, Any],
    shapes: Any,
    dtype: Any,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> list:
    """A row for each: a visit is one untimed step and two timed ones."""
    flat, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    params, grads = (treedef.unflatten(normal(flat, seed, dtype)) for seed in (0, 1))
    stages, entered = time_compilation(optimizers, params, grads, max(1, rounds // 10))

    def visit(contestant: Jax) -> float:
        contestant()
        return seconds(contestant, 2, clock)

    visits = {n: functools.partial(visit, c) for n, c in entered.items()}
    times, n = alternate(visits, rounds), size(flat)
    rows = []
    for name, contestant in entered.items():
        each = (
            sum(x.nbytes for x in jax.tree.leaves(contestant.state)),
            contestant.step.memory_analysis().temp_size_in_bytes,
            contestant.step.cost_analysis()["bytes accessed"],
        )
        rows.append(
            [
                name,
                f"{np.median(times[name]) * 1e3:.2f} ms",
                ratio(times[name], times["adam"]),
                *(f"{nbytes / n:.1f}" for nbytes in each),
                f"{np.median(stages[name]['trace + lower']) * 1e3:.0f} ms",
            ]
        )
    return rows


def show_costs(shapes: Any, layers: Any, rounds: int) -> None:
    header = ["", "step", "to adam", "state", "temporary", "bytes", "trace + lower"]
    both = ((FLOAT32, "float32"), (BFLOAT16, "bfloat16"))
    for optimizers, dtype in both:
        show(f"One donated step, {dtype}", header, costs(optimizers, shapes, dtype, rounds))
    for optimizers, dtype in both:
        whole = {n: with_gradients(optimizers[n]) for n in IN_TRAINING if n in optimizers}
        rows = costs(whole, layers, dtype, rounds, time.process_time)
        show(f"One with its gradients, a batch of 256, {dtype}", header, rows)


def growth(counts: list[int], most: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of processor time for each number of leaves, by stage and then by package."""
    found = {stage: {name: [] for name in OPTIMIZERS} for stage in (*STAGES, "call")}
    for leaves in counts:
        print(f"{leaves} leaves …", file=sys.stderr, flush=True)
        params = normal(small(leaves, rows=2), 0)
        rounds = max(1, min(most, 2000 // leaves))
        clock = time.process_time
        stages, entered = time_compilation(OPTIMIZERS, params, params, rounds, clock)
        calls = {n: functools.partial(seconds, c, 20, clock) for n, c in entered.items()}
        for name, times in alternate(calls, 10).items():
            found["call"][name].append(float(times.min()))
            for stage in STAGES:
                found[stage][name].append(float(stages[name][stage].min()))
    return found


def show_growth(counts: list[int], found: dict[str, dict[str, list[float]]]) -> None:
    header = ["leaves", *(cell for stage in found for cell in (f"{stage} ms", "/ optax"))]
    rows = [[str(leaves)] for leaves in counts]
    for curves in found.values():
        for row, mine, theirs in zip(rows, curves["optwd"], curves["optax"], strict=True):
            row += [f"{mine * 1e3:.4g}", f"{mine / theirs:.2f}"]
    show("A step of tiny leaves: processor time, and the ratio to Optax's", header, rows)


def finding(counts: list[int], found: dict[str, dict[str, list[float]]]) -> str:
    last = {s: np.array([curves[n][-1] for n in OPTIMIZERS]) for s, curves in found.items()}
    first, compiled, call = (
        f"{mine / theirs:.2f}"
        for mine, theirs in (last["trace"] + last["lower"], last["compile"], last["call"])
    )
    return (
        f"A step of {counts[-1]} leaves: optwd traces and lowers it in {first} of Optax's "
        f"time, compiles it in {compiled} and calls it in {call}"
    )


def draw(counts: list[int], found: dict[str, dict[str, list[float]]], out: Path) -> None:
    from matplotlib.figure import Figure

    looks = {"optwd": ("o-", "black"), "optax": ("s--", "0.55")}
    picture = Figure(figsize=(9, 3.2), layout="constrained", dpi=120)
    panels = picture.subplots(1, len(found), sharex=True, sharey=True)
    for panel, (stage, curves) in zip(panels, found.items(), strict=True):
        for name, curve in curves.items():
            line, colour = looks[name]
            panel.loglog(counts, curve, line, color=colour, ms=3.5, lw=1.2, label=name)
        linear = [curves["optwd"][-1] * n / counts[-1] for n in counts]
        panel.loglog(counts, linear, ":", color="0.7", lw=1, label="∝ leaves")
        panel.set(title=stage, xlabel="leaves")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("processor seconds")
    panels[0].legend(frameon=False)
    picture.suptitle(finding(counts, found), fontsize=11)
    picture.savefig(out)
    print(f"Wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller trees, to 300 leaves")
    parser.add_argument("--only", choices=("costs", "growth"), help="of the tables")
    parser.add_argument("--out", type=Path, metavar="PICTURE", help="draw the growth there")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    quick = arguments.quick
    if arguments.only != "growth":
        layers = [(256, 256)] * 2 if quick else [(1024, 1024)] * 8
        show_costs(named(1, 64) if quick else named(), layers, rounds=2 if quick else 20)
    if arguments.only != "costs":
        counts = [10, 30, 100, 300] + [1000, 2000, 5000] * (not quick)
        found = growth(counts, most=1 if quick else 2)
        show_growth(counts, found)
        if arguments.out:
            draw(counts, found, arguments.out)


if __name__ == "__main__":
    main()
