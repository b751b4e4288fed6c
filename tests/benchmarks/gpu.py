"""Is optwd right on this accelerator, and how near is it to the speed of its memory?

    python tests/benchmarks/gpu.py [--quick] [--trees mlp,small,leaf,gpt2] [--rounds N]

It runs on the device that JAX takes by default and needs jax, optax and this package; torch
takes part where it is installed for that kind of device.

First every optimizer of tests/registry.py makes 100 updates, and each is held to the
float64 reference on the same numbers. The script fails where one is further from it than
the bound: 2e-6 of the element's largest update, or of the learning rate if that is more, in
float32; half a spacing more in bfloat16, in which the update is returned.

Then a step of AdamW is timed, on the trees and with the clocks of step.py. "Step" is the
time of one, when 50 ms of them are queued and waited for together: the device's own, unless
the host is slower. "Call" is how long the host is busy with one while the device is idle;
where it is as long as a step, dispatch is the bound. "Copy" is the share of a copy's speed
in bytes a second; the copy, of one large array to another, takes its turns like everybody
else. A step's bytes are those that it cannot avoid: parameters and state read and written,
gradients read. In float32 that is 28 a parameter; in bfloat16 22 with moments in float32,
as optwd keeps them, and 14 with moments in bfloat16, as Optax and torch keep them. A tree
that fits in the cache can be faster than a copy.

Targets on a GPU: at least 0.85 of the copy on leaf and gpt2, optwd over Optax ≤ 1.0 on
every tree, over torch ≤ 1.0 on leaf and gpt2.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from step import (
    HYPERPARAMETERS,
    LEARNING_RATE,
    OPTIMIZERS,
    TREES,
    alternate,
    enter,
    ratio,
    seconds,
    show,
    size,
)

import optwd

sys.path.append(str(Path(__file__).parents[2]))
from tests import reference, registry

NARROW = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
CONTESTANTS = {
    "float32": OPTIMIZERS,
    "bfloat16": OPTIMIZERS
    | {"optwd, narrow moments": optwd.adamw(LEARNING_RATE, **HYPERPARAMETERS, **NARROW)},
}

# --- right? --------------------------------------------------------------------------

BOUNDS = {"float32": 2e-6, "bfloat16": 2e-6 + 2.0**-8}
DIRECTIONS = {
    optwd.adam: reference.adam,
    optwd.adam_l2: reference.adam,
    optwd.adamw: reference.adam,
    optwd.amsgrad: reference.amsgrad,
    optwd.amsgradw: reference.amsgrad,
    optwd.nadam: reference.nadam,
    optwd.nadamw: reference.nadam,
    optwd.sgd_l2: reference.trace,
    optwd.sgdw: reference.trace,
}


def exact_updates(entry: registry.Entry, gradients: np.ndarray, p: np.ndarray) -> Any:
    """In float64, of parameters that stay where they are."""
    a = entry.arguments
    eta, decay = a["learning_rate"], a.get("weight_decay", 0.0)
    coupling = a.get("scaled_by", "learning_rate")
    if coupling != "nothing":
        decay *= eta / (a["peak_learning_rate"] if coupling == "schedule" else 1)
    direction = DIRECTIONS[entry.factory]
    if direction is reference.trace:
        direction = functools.partial(direction, momentum=a.get("momentum", 0.0))
    return -eta * np.stack(direction(gradients + a.get("l2", 0.0) * p)) - decay * p


def error(entry: registry.Entry, dtype: str, steps: int) -> float:
    """The largest over steps and elements: vector bodies and a tail."""
    rng = np.random.default_rng(0)
    gradients = jnp.asarray(rng.normal(1.0, 2.0, (steps, 4099)), dtype)
    p = jnp.asarray(rng.normal(size=4099), dtype)
    optimizer = entry.make()

    def body(state: Any, g: jax.Array) -> tuple[Any, jax.Array]:
        u, state = optimizer.update(g, state, p)
        return state, u

    run = jax.jit(lambda g: jax.lax.scan(body, optimizer.init(p), g)[1])
    exact = exact_updates(entry, np.float64(gradients), np.float64(p))
    errors = np.abs(np.float64(run(gradients)) - exact)
    largest = np.abs(exact).max(axis=0)
    return float(np.max(errors / np.maximum(largest, entry.arguments["learning_rate"])))


def check(steps: int) -> list[str]:
    """Print all errors; the names of those that are not within their bound."""
    errors = {
        entry.name: [error(entry, dtype, steps) for dtype in BOUNDS]
        for entry in registry.OPTIMIZERS
    }
    title = f"Largest error of {steps} updates against float64"
    rows = [[name, *(f"{e:.2g}" for e in row)] for name, row in errors.items()]
    rows.append(["must be", *(f"≤ {bound:.6g}" for bound in BOUNDS.values())])
    show(title, ["", *BOUNDS], rows)
    limits = list(BOUNDS.values())
    return [name for name, row in errors.items() if not np.all(np.less_equal(row, limits))]


# --- fast? ---------------------------------------------------------------------------


class Copy:
    """Reads one large array and writes another."""

    state = grads = ()

    def __init__(self, elements: int) -> None:
        self.params = jax.random.normal(jax.random.key(0), elements)
        self.step = jax.jit(lambda x: 2 * x)

    def queue(self) -> None:
        self.result = self.step(self.params)

    def wait(self) -> None:
        jax.block_until_ready(self.result)

    def __call__(self) -> None:
        self.queue()
        self.wait()


def moved(contestant: Any) -> int:
    """The bytes that a step cannot avoid to read and write."""
    once, twice = (
        sum(x.nbytes for x in jax.tree.leaves(trees))
        for trees in (contestant.grads, (contestant.params, contestant.state))
    )
    return once + 2 * twice


def queued(contestant: Any, steps: int) -> float:
    """Seconds a step, of some that are waited for together."""
    contestant()
    start = time.perf_counter()
    for _ in range(steps):
        contestant.queue()
    contestant.wait()
    return (time.perf_counter() - start) / steps


def called(contestant: Any) -> float:
    """Seconds until a call returns, with nothing queued before it."""
    contestant()
    duration = seconds(contestant.queue)
    contestant.wait()
    return duration


def time_tree(tree: str, dtype: str, elements: int, span: float, rounds: int) -> list:
    """A row for the copy and each contestant; a timing lasts about `span` seconds."""
    # all in bfloat16, Optax is some percent of a step off
    atol = 1e-6 if dtype == "float32" else 0.05 * LEARNING_RATE
    entered = enter(TREES[tree], CONTESTANTS[dtype], dtype, atol)
    entered = {"copy": Copy(elements), **entered}
    many = {name: 1 + round(span / queued(c, 5)) for name, c in entered.items()}
    steps, calls = (
        alternate({n: functools.partial(clock, n) for n in entered}, rounds)
        for clock in (
            lambda name: queued(entered[name], many[name]),
            lambda name: called(entered[name]),
        )
    )
    per_byte = {name: steps[name] / moved(entered[name]) for name in entered}
    rows = []
    for name, contestant in entered.items():
        against = (
            ratio(steps[name], steps[other]) if other in steps else "–"
            for other in ("optax", "torch")
        )
        rows.append(
            [
                name,
                f"{moved(contestant) / size(TREES[tree]):.1f}",
                f"{np.median(steps[name]) * 1e6:,.0f}",
                f"{np.median(calls[name]) * 1e6:,.0f}",
                f"{1e-9 / np.median(per_byte[name]):,.0f}",
                ratio(per_byte["copy"], per_byte[name]),
                *against,
            ]
        )
    rows[0][1], rows[0][6:] = "", ["", ""]  # of the copy
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small run, for any device")
    parser.add_argument("--trees", default=",".join(TREES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    trees = arguments.trees.split(",")
    if unknown := set(trees) - set(TREES):
        parser.error(f"no tree {', '.join(unknown)}; there are {', '.join(TREES)}")

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs some too
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    wrong = check(20 if arguments.quick else 100)
    elements, span = (2**22, 0.005) if arguments.quick else (2**28, 0.05)
    header = ["", "bytes", "step µs", "call µs", "GB/s", "copy", "/ optax", "/ torch"]
    for tree in trees:
        shapes = TREES[tree]
        for dtype in CONTESTANTS:
            what = f"{tree}: {len(shapes)} leaves, {size(shapes) / 1e6:.2f} M, {dtype}"
            show(what, header, time_tree(tree, dtype, elements, span, arguments.rounds))
    if wrong:
        raise SystemExit(f"further from float64 than allowed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
