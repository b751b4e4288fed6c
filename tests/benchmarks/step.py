"""What one AdamW step costs: optwd, Optax and, where installed, torch fused, on the CPU.

    python tests/benchmarks/step.py [--quick] [--trees mlp,small,leaf,gpt2] [--rounds N]

All contestants run in one process and take turns, so that a busy machine slows all of
them. A round visits them in random order and then in the reverse order; a visit is one
untimed step, which brings the contestant's own threads and caches back, and some timed
ones. After some rounds all enter anew, in the reverse order: one and the same program
differs by up to 10 % from compilation to compilation, by where its code and its buffers
happen to lie, and who enters first is often slower. Ratios are medians of the ratios within
a round, with the quartiles beside them.

Targets, optwd over Optax: step ≤ 1.0 on every tree (1.03 allows for noise), trace + lower
≤ 0.60 and compile ≤ 1.0 at 2000 leaves, no byte of temporary memory more.
"""

import argparse
import functools
import gc
import importlib.util
import math
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import optwd

Shapes = list[tuple[int, ...]]
Clock = Callable[[], float]
HYPERPARAMETERS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}
LEARNING_RATE = 1e-3
STAGES = ("trace", "lower", "compile")
OPTIMIZERS = {
    "optwd": optwd.adamw(LEARNING_RATE, **HYPERPARAMETERS),
    "optax": optax.adamw(LEARNING_RATE, **HYPERPARAMETERS),
}


# --- trees ---------------------------------------------------------------------------


def mlp() -> Shapes:
    return [(784, 512), (512,), (512, 512), (512,), (512, 10), (10,)]


def small(leaves: int = 1000, rows: int = 64) -> Shapes:
    """Kernels and biases in 8 shapes, as many as in a transformer, of 2194 on average."""
    widths = (66 + i % 4 for i in range(leaves // 2))
    return [shape for width in widths for shape in ((rows, width), (width,))]


def gpt2(blocks: int = 12, d: int = 768) -> Shapes:
    attention = [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,)]
    feed_forward = [(d,), (d,), (d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    return [(50257, d), (1024, d), *blocks * (attention + feed_forward), (d,), (d,)]


TREES = {"mlp": mlp(), "small": small(), "leaf": [(8192, 4096)], "gpt2": gpt2()}


def size(shapes: Shapes) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def normal(shapes: Shapes, seed: int, dtype: Any = np.float32) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jax.numpy.asarray(rng.standard_normal(s, np.float32), dtype) for s in shapes]


# --- contestants ---------------------------------------------------------------------


def jitted(optimizer: optax.GradientTransformationExtraArgs) -> Any:
    """The donated step; its results stand in the order of what it donates."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


class Jax:
    """A donated step of an Optax optimizer and what it works on.

    `stages` are the seconds that its program took, with cold caches, by that clock.
    """

    def __init__(
        self, optimizer: Any, params: Any, grads: Any, clock: Clock = time.perf_counter
    ) -> None:
        self.params = jax.tree.map(jax.numpy.copy, params)
        self.state, self.grads = optimizer.init(self.params), grads
        jax.clear_caches()
        ticks = [clock()]
        stage = jitted(optimizer)
        for method in STAGES:
            arguments = (self.params, self.state, grads) if method == "trace" else ()
            stage = getattr(stage, method)(*arguments)
            ticks.append(clock())
        self.step, self.stages = stage, dict(zip(STAGES, np.diff(ticks), strict=True))

    def queue(self) -> None:
        self.params, self.state = self.step(self.params, self.state, self.grads)

    def wait(self) -> None:
        jax.block_until_ready((self.params, self.state))

    def __call__(self) -> None:
        self.queue()
        self.wait()


class Torch:
    """The same for torch's fused AdamW, on the same gradients and the same device."""

    def __init__(self, params: list[jax.Array], grads: list[jax.Array]) -> None:
        import torch

        self.params = [torch.from_dlpack(p).clone() for p in params]
        self.grads = [torch.from_dlpack(g) for g in grads]  # one copy of them for all
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        h = dict(HYPERPARAMETERS)
        betas = h.pop("b1"), h.pop("b2")
        self.optimizer = torch.optim.AdamW(
            self.params, LEARNING_RATE, betas, **h, fused=True
        )
        self.wait = torch.cuda.synchronize if self.params[0].is_cuda else lambda: None

    @property
    def state(self) -> list[Any]:
        return [x for kept in self.optimizer.state.values() for x in kept.values()]

    def queue(self) -> None:
        self.optimizer.step()

    def __call__(self) -> None:
        self.queue()
        self.wait()


def torch_is_here() -> bool:
    """Installed, and for the kind of device that JAX uses."""
    if not importlib.util.find_spec("torch"):
        return False
    # waiting in a loop, its threads stall whenever anything else wants their core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    return jax.default_backend() == "cpu" or torch.cuda.is_available()


def enter(
    shapes: Shapes,
    optimizers: dict[str, Any] = OPTIMIZERS,
    dtype: Any = np.float32,
    atol: float = 1e-6,
) -> dict[str, Any]:
    """The contestants, each after one step, which must have been the same step."""
    params, grads = normal(shapes, 0, dtype), normal(shapes, 1, dtype)
    entered: dict[str, Any] = {n: Jax(tx, params, grads) for n, tx in optimizers.items()}
    if torch_is_here():
        entered["torch"] = Torch(params, grads)
    rtol = jax.numpy.finfo(dtype).eps
    for contestant in entered.values():
        contestant()
    for contestant in entered.values():
        for mine, reference in zip(contestant.params, entered["optax"].params, strict=True):
            both = (np.float32(jax.numpy.from_dlpack(x)) for x in (mine, reference))
            np.testing.assert_allclose(*both, rtol, atol)
    return entered


# --- clocks --------------------------------------------------------------------------


def seconds(
    call: Callable[[], Any], repeats: int = 1, clock: Clock = time.perf_counter
) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def alternate(visits: dict[str, Callable[[], float]], rounds: int) -> dict[str, np.ndarray]:
    """The mean of the two visits of every round, per name."""
    rng, times = random.Random(0), {name: np.zeros(rounds) for name in visits}
    gc.collect()
    gc.disable()
    for i in range(rounds):
        order = rng.sample(list(visits), len(visits))
        for name in order + order[::-1]:
            times[name][i] += visits[name]() / 2
    gc.enable()
    return times


def time_steps(
    shapes: Shapes, entries: int, budget: float, rounds: int | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Times of one step in all rounds of all entries, and what each step allocates."""

    def visit(contestant: Any) -> float:
        contestant()
        return seconds(contestant, repeats)

    parts = []
    for i in range(entries):
        entered = enter(shapes, dict(list(OPTIMIZERS.items())[:: (-1) ** i]))
        each = {name: seconds(contestant, 3) for name, contestant in entered.items()}
        repeats = max(1, round(0.01 / max(each.values())))  # a visit of at least 10 ms
        fit = int(budget / entries / (2 * (repeats + 1) * sum(each.values())))
        visits = {n: functools.partial(visit, c) for n, c in entered.items()}
        parts.append(
            alternate(visits, math.ceil(rounds / entries) if rounds else max(2, fit))
        )
        memory = {name: entered[name].step.memory_analysis() for name in OPTIMIZERS}
    return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}, memory


def time_compilation(
    optimizers: dict[str, Any],
    params: Any,
    grads: Any,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Jax]]:
    """Times of every stage with cold caches, by name, and the contestants."""
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in optimizers}
    entered = {}

    def visit(name: str) -> float:
        entered[name] = Jax(optimizers[name], params, grads, clock)
        stages[name].append(entered[name].stages)
        return sum(entered[name].stages.values())

    alternate({name: functools.partial(visit, name) for name in optimizers}, rounds)
    times = {
        name: {stage: np.array([visit[stage] for visit in visits]) for stage in STAGES}
        for name, visits in stages.items()
    }
    for each in times.values():
        each["trace + lower"] = each["trace"] + each["lower"]
    return times, {name: entered[name] for name in optimizers}


# --- tables --------------------------------------------------------------------------


def ratio(mine: np.ndarray, theirs: np.ndarray) -> str:
    low, middle, high = np.quantile(mine / theirs, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.2f}–{high:.2f})"


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    if importlib.util.find_spec("rich"):
        import rich.box
        import rich.console
        import rich.table
        import rich.text

        table = rich.table.Table(*header, title=title, box=rich.box.SIMPLE)
        for row in rows:
            table.add_row(*map(rich.text.Text, row))
        rich.console.Console(width=120).print(table)
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        print(
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--trees", default=",".join(TREES), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="per tree; default: as time allows")
    arguments = parser.parse_args()
    trees = arguments.trees.split(",")
    if unknown := set(trees) - set(TREES):
        parser.error(f"no tree {', '.join(unknown)}; there are {', '.join(TREES)}")

    jax.config.update("jax_platforms", "cpu")
    budget, entries = (5.0, 2) if arguments.quick else (60.0, 6)
    steps, memory = [], []
    for tree in trees:
        print(f"{tree} …", file=sys.stderr, flush=True)
        shapes = TREES[tree]
        label = [tree, str(len(shapes)), f"{size(shapes) / 1e6:.2f} M"]
        times, allocated = time_steps(shapes, entries, budget, arguments.rounds)
        medians = [f"{np.median(t) * 1e3:.2f} ms" for t in times.values()]
        medians += ["–"] * (3 - len(medians))
        torch = ratio(times["optwd"], times["torch"]) if "torch" in times else "–"
        rounds = str(len(times["optwd"]))
        steps.append(
            [*label, *medians, ratio(times["optwd"], times["optax"]), torch, rounds]
        )
        for name, m in allocated.items():
            sizes = (m.argument_size_in_bytes, m.alias_size_in_bytes)
            sizes += (m.output_size_in_bytes, m.temp_size_in_bytes)
            memory.append([*label, name, *(f"{n:,}" for n in sizes)])
    header = ["tree", "leaves", "size"]
    peers = ["optwd", "optax", "torch", "optwd/optax", "optwd/torch", "rounds"]
    show("One donated AdamW step, float32: medians", [*header, *peers], steps)
    kinds = ["", "arguments", "donated", "results", "temporary"]
    show("Its memory in bytes", [*header, *kinds], memory)

    leaves = 400 if arguments.quick else 2000
    print(f"{leaves} leaves …", file=sys.stderr, flush=True)
    rounds = 2 if arguments.quick else 5
    params, grads = normal(small(leaves), 0), normal(small(leaves), 1)
    stages, _ = time_compilation(OPTIMIZERS, params, grads, rounds)
    rows = [
        [k, *(f"{np.median(s[k]):.3f} s" for s in stages.values()),
         ratio(stages["optwd"][k], stages["optax"][k])]
        for k in ("trace", "lower", "trace + lower", "compile")
    ]  # fmt: skip
    show(f"The same step of {leaves} leaves, cold caches", ["", *OPTIMIZERS, "ratio"], rows)


if __name__ == "__main__":
    main()
