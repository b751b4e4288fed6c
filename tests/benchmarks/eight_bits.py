"""Optimizer state in eight bits: residuals, which optwd has, and moments, which it has not.

    python tests/benchmarks/eight_bits.py [--only directions,bytes,training,time] [--quick]

The moments are a prototype that lives here alone. 32 neighbours along the last axis but
one share a scale; a moment is the cube of its code, m = s·(k/127)³ and √v = s·(k/255)³, so
that small ones are still told apart; codes are rounded up or down by the chance of the
step, as moments in bfloat16 are. It is compared with the code of FlashOptim (arXiv
2602.23349): m = s·φ⁻¹(k/127) with φ(x) = 2x/(1 + |x|), and √v = s·k/255.

- directions: their error over 1000 steps of gradients, beside moments in float32;
- bytes: what one step reads and writes, compiled for an H200 and a TPU v5e;
- training: three tasks, five seeds, beside float32;
- time: a step on this machine.
"""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import show

import optwd
from optwd import _rounding, masks

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / "examples")]
GROUP = 32
TINY = float(jnp.finfo(jnp.float32).tiny)


# --- the prototype -------------------------------------------------------------------


class Format(NamedTuple):
    """How magnitudes in [0, 1] become codes, and what else differs.

    Attributes:
      code: from magnitudes to codes in [0, 1], for m and for √v.
      magnitude: and back.
      by_chance: round by the chance of the step, else to nearest.
      powers: scales are powers of two, which rarely change, else numbers in bfloat16.
      least: the least code of a v that is not 0.
    """

    code: tuple[Callable[..., Any], Callable[..., Any]]
    magnitude: tuple[Callable[..., Any], Callable[..., Any]]
    by_chance: bool = True
    powers: bool = True
    least: int = 1


CUBES = Format(2 * (jnp.cbrt,), 2 * (lambda c: c * c * c,))
PHI = Format(
    (lambda y: 2 * y / (1 + y), lambda y: y),
    (lambda c: c / (2 - c), lambda c: c),
    by_chance=False,
    powers=False,
    least=0,
)
FORMATS = {
    "cubes": CUBES,
    "cubes, to nearest": CUBES._replace(by_chance=False),
    "cubes, scales in bfloat16": CUBES._replace(powers=False),
    "φ and root, to nearest": PHI,
    "φ and root, by chance, v > 0": PHI._replace(by_chance=True, least=1),
}


class Stored(NamedTuple):
    """Codes like the leaf, and one scale per group."""

    codes: jax.Array
    scales: jax.Array


def grouped(x: jax.Array) -> jax.Array:
    """In groups, (…, groups, 32, columns); where they do not divide, of the flat leaf."""
    if x.ndim >= 2 and x.shape[-2] % GROUP == 0:
        return x.reshape(*x.shape[:-2], -1, GROUP, x.shape[-1])
    x = jnp.ravel(x)
    return jnp.pad(x, (0, -x.size % GROUP)).reshape(-1, GROUP, 1)


def expanded(scales: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    wide = scales.astype(jnp.float32)[..., None, :]
    wide = jnp.broadcast_to(wide, (*wide.shape[:-2], GROUP, wide.shape[-1]))
    if wide.size == math.prod(shape):
        return wide.reshape(shape)
    return wide.ravel()[: math.prod(shape)].reshape(shape)


def up(scale: jax.Array, powers: bool) -> jax.Array:
    """The next power of two, or number of bfloat16, that is no less."""
    cut = jnp.uint32(2 ** (23 if powers else 16) - 1)
    bits = jax.lax.bitcast_convert_type(scale, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + cut) & ~cut, jnp.float32)


def store(x: jax.Array, square: bool, chance: jax.Array, of: Format) -> Stored:
    """The moment m as it is, v by its root; by chance, both are right on average."""
    size, top = (jnp.sqrt(x), 255) if square else (jnp.abs(x), 127)
    largest = jnp.max(grouped(x if square else size), -2)  # XLA would keep all the roots
    largest = jnp.sqrt(largest) if square else largest
    # a power of two would be a byte; here it is kept as what it stands for
    scales = up(largest, of.powers).astype(jnp.bfloat16)
    y = size / jnp.maximum(expanded(scales, x.shape), TINY)
    code, magnitude = of.code[square], of.magnitude[square]
    if of.by_chance:
        low = jnp.minimum(jnp.floor(code(y) * top), top - 1)
        ends = magnitude(low / top), magnitude((low + 1) / top)
        y, (a, b) = (y * y, (e * e for e in ends)) if square else (y, ends)
        k = low + (chance < (y - a) / (b - a))
    else:
        k = jnp.round(code(y) * top)
    if square:
        k = jnp.where(x > 0, jnp.maximum(k, of.least), k) - 128
    else:
        k = jnp.where(x < 0, -k, k)
    return Stored(k.astype(jnp.int8), scales)


def load(stored: Stored, square: bool, of: Format) -> jax.Array:
    k = stored.codes.astype(jnp.float32) + (128 if square else 0)
    size = of.magnitude[square](jnp.abs(k) / (255 if square else 127))
    size = size * expanded(stored.scales, k.shape)
    return size * size if square else jnp.where(k < 0, -size, size)


class EightBitState(NamedTuple):
    """As of Adam, but every leaf of the moments is a `Stored`."""

    count: jax.Array
    mu: Any
    nu: Any


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, of: Format = CUBES
) -> optax.GradientTransformation:
    """Adam's direction of moments in eight bits, as they are stored."""

    def zero(p: Any) -> Stored:
        scales = jax.eval_shape(lambda x: grouped(x)[..., 0, :], p).shape
        return Stored(jnp.zeros(p.shape, jnp.int8), jnp.zeros(scales, jnp.bfloat16))

    def init(params: Any) -> EightBitState:
        mu = jax.tree.map(zero, params)
        nu = jax.tree.map(lambda p: zero(p)._replace(codes=zero(p).codes - 128), params)
        return EightBitState(jnp.zeros([], jnp.int32), mu, nu)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        t = state.count + 1
        chance = _rounding.for_step(t).astype(jnp.float32) * 2.0**-_rounding.BITS
        first, second = (-jnp.expm1(t * math.log(b)) for b in (b1, b2))

        def leaf(g: Any, m: Stored, v: Stored) -> Any:
            wide = g.astype(jnp.float32)
            old_m, old_v = load(m, False, of), load(v, True, of)
            m = store(old_m + (1 - b1) * (wide - old_m), False, chance, of)
            v = store(old_v + (1 - b2) * (wide * wide - old_v), True, chance, of)
            new_m, new_v = load(m, False, of), load(v, True, of)
            u = new_m / first / (jnp.sqrt(new_v / second) + eps)
            return u.astype(g.dtype), m, v

        leaves, treedef = jax.tree.flatten(updates)
        moments = map(treedef.flatten_up_to, (state.mu, state.nu))
        columns = zip(*map(leaf, leaves, *moments), strict=True)
        return (out := [treedef.unflatten(c) for c in columns])[0], EightBitState(
            t, *out[1:]
        )

    return optax.GradientTransformation(init, update)


def adamw(rate: Any, weight_decay: float, mask: Any = None, *, eight: bool, **arguments):
    """`optwd.adamw`, or the same around the prototype."""
    if not eight:
        return optwd.adamw(rate, weight_decay=weight_decay, mask=mask, **arguments)
    return optwd.in_float32(
        optax.chain(
            scale_by_adam(**arguments),
            optwd.decay.linear(weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        )
    )


# --- directions ----------------------------------------------------------------------


def gradients(steps: int, size: int) -> dict[str, np.ndarray]:
    rng, shape = np.random.default_rng(0), (steps, size)
    return {
        "N(0, 1)": rng.normal(size=shape),
        "N(3, 1)": 3 + rng.normal(size=shape),
        "t, 3 degrees": rng.standard_t(3, size=shape),
        "1 in 100": rng.normal(size=shape) * (rng.random(shape) < 0.01),
    }


@functools.partial(jax.jit, static_argnums=0)
def errors(of: Format, noise: jax.Array) -> Any:
    """Squared error and square of the directions, how many are large, and how many off."""
    eight, exact = scale_by_adam(of=of), optwd.scale_by_adam()

    def body(states, g):
        u, first = eight.update(g, states[0])
        want, second = exact.update(g, states[1])
        large = jnp.abs(want) > 0.1
        off = large & ((u / want < 0.5) | (u / want > 2))
        return (first, second), ((u - want) ** 2, want**2, large, off)

    start = eight.init(noise[0]), exact.init(noise[0])
    return jax.tree.map(lambda x: x.sum((1, 2)), jax.lax.scan(body, start, noise)[1])


def directions(quick: bool) -> None:
    rows = []
    noise = gradients(200 if quick else 1000, 1024 if quick else 4096)
    for name, of in FORMATS.items():
        for what, g in noise.items():
            found = errors(of, jnp.asarray(g, jnp.float32).reshape(len(g), GROUP, -1))
            wrong, all_, large, off = (np.float64(x).sum() for x in found)
            rows.append(
                (
                    name,
                    what,
                    f"{math.sqrt(wrong / all_):.1%}",
                    f"{off:,.0f} of {large:,.0f}",
                )
            )
    columns = "moments", "gradients", "error (rms)", "off by more than 2"
    show("Directions", columns, rows)


# --- bytes ---------------------------------------------------------------------------


def compiled_steps() -> dict[str, tuple[Any, Any]]:
    def step(optimizer):
        return lambda eight, **moments: optimizer(adamw(1e-3, 0.1, eight=eight, **moments))

    int8 = functools.partial(optwd.compensate_rounding, residual_dtype=jnp.int8)
    narrow = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
    kept = step(optwd.compensate_rounding)
    return {
        "float32": (jnp.float32, step(lambda x: x)(False)),
        "residual in bfloat16": (jnp.bfloat16, kept(False)),
        "… moments too": (jnp.bfloat16, kept(False, **narrow)),
        "residual in int8": (jnp.bfloat16, step(int8)(False)),
        "… moments in bfloat16": (jnp.bfloat16, step(int8)(False, **narrow)),
        "… moments in int8 (prototype)": (jnp.bfloat16, step(int8)(True)),
        "moments in int8 (prototype)": (jnp.float32, step(lambda x: x)(True)),
    }


def bytes_moved(quick: bool) -> None:
    """Needs libtpu and JAX's CUDA plugin; no accelerator."""
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from tests import test_accelerators as aot

    os.environ.update(  # of a machine that has no TPU
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-8",
        TPU_WORKER_HOSTNAMES="localhost",
    )
    chips = {
        "H200": ("h200", "cuda", {"target_config": aot.H200, "topology": "1x1x1"}),
        "TPU v5e": ("v5e:2x4", "tpu", {}),
    }
    rows = []
    for chip, (name, platform, config) in chips.items():
        device = topologies.get_topology_desc(name, platform, **config).devices[0]
        here = SingleDeviceSharding(device)
        for title, (dtype, optimizer) in compiled_steps().items():
            p = jax.ShapeDtypeStruct((3072, 768), dtype, sharding=here)
            state = jax.eval_shape(optimizer.init, p)
            state = jax.tree.map(
                lambda x, at=here: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
                state,
            )

            def step(p, state, g, optimizer=optimizer):
                u, state = optimizer.update(g, state, p)
                return optax.apply_updates(p, u), state

            options = aot.NO_GRAPH if platform == "cuda" else {}
            lowered = jax.jit(step, donate_argnums=(0, 1)).lower(p, state, p)
            program = lowered.compile(compiler_options=options)
            if platform == "cuda":
                each = [k for k in aot.kernels(program) if k > 1000]
                moved, count = sum(each) / p.size, str(len(each))
            else:
                moved, count = program.cost_analysis()["bytes accessed"] / p.size, "–"
            temporary = program.memory_analysis().temp_size_in_bytes / p.size
            kept = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / p.size
            moved, temporary = f"{moved:.2f}", f"{temporary:.2f}"
            rows.append((chip, title, f"{kept:.2f}", moved, temporary, count))
    columns = "", "step", "state", "read and written", "temporary", "kernels"
    show("Bytes per parameter", columns, rows)


# --- training ------------------------------------------------------------------------

WAYS = {  # dtype of the weights, of the residual; moments in eight bits
    "float32": (jnp.float32, None, False),
    "bfloat16, residual in bfloat16": (jnp.bfloat16, jnp.bfloat16, False),
    "bfloat16, residual in int8": (jnp.bfloat16, jnp.int8, False),
    "float32, moments in int8 (prototype)": (jnp.float32, None, True),
    "bfloat16, both in int8 (prototype)": (jnp.bfloat16, jnp.int8, True),
}


class Task(NamedTuple):
    """What is trained, with a leading axis over seeds; `names` are of what is measured."""

    params: Any
    data: Any
    loss: Callable[..., Any]  # of params, data and step
    measured: Callable[..., Any]
    make: Callable[..., Any]
    steps: int
    names: tuple[str, ...]


def digits(seeds: range, quick: bool) -> Task:
    import _digits

    data, keys, params = _digits.start(seeds)

    def loss(params, data, t):
        x, y, _, _, key = data
        rows = jax.random.fold_in(key, t)
        rows = jax.random.randint(rows, (_digits.BATCH,), 0, _digits.TRAIN)
        return _digits.loss(params, x[rows], y[rows])

    def measured(params, data):
        return _digits.measure(params, data[:4])

    make = functools.partial(adamw, 3e-3, 1.0)
    names = "training loss", "test accuracy", "norm"
    return Task(params, (*data, keys), loss, measured, make, 50 if quick else 1500, names)


def grokking(seeds: range, quick: bool) -> Task:
    import grokking as example

    p, share = 31, 0.7
    tables = [example.split(p, share, seed) for seed in seeds]
    data = tuple(map(jnp.array, zip(*tables, strict=True)))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    params = jax.vmap(example.initial, (0, None))(keys, p)

    def measured(params, data):
        (a, b, y), test = data[1], example.loss(params, *data[1])
        right = example.logits(params, a, b).argmax(-1) == y
        return jnp.stack([example.loss(params, *data[0]), right.mean(), test])

    make = functools.partial(adamw, example.RATE, 2.0, **example.BETAS)
    names = "training loss", "test accuracy", "test loss"
    return Task(
        params,
        data,
        lambda params, data, t: example.loss(params, *data[0]),
        measured,
        make,
        50 if quick else 1000,
        names,
    )


def transformer(seeds: range, quick: bool) -> Task:
    import _manual
    import train_sharded
    from flax import nnx

    size = train_sharded.QUICK
    steps = 20 if quick else size.steps
    params = [nnx.state(size.model(seed), nnx.Param) for seed in seeds]
    graph = nnx.graphdef(nnx.eval_shape(lambda: size.model(0)))
    text, unseen = _manual.text()
    unseen = jnp.asarray(_manual.spaced(unseen, (2, size.rows), size.length))
    text, keys = jnp.asarray(text), jnp.stack([jax.random.key(seed) for seed in seeds])

    def of(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    def loss(params, key, t):
        rows = (train_sharded.MICROBATCHES * size.rows, 1)
        start = jax.random.randint(
            jax.random.fold_in(key, t), rows, 0, len(text) - size.length
        )
        return of(params, text[start + jnp.arange(size.length + 1)[None]].astype(jnp.int32))

    def measured(params, key):
        tokens = unseen.reshape(-1, unseen.shape[-1])
        return jnp.stack([of(params, tokens), optax.tree.norm(params)])

    rate = optax.warmup_cosine_decay_schedule(0, train_sharded.PEAK, steps // 10, steps)

    def make(**arguments):
        decayed = adamw(
            rate, train_sharded.WEIGHT_DECAY, masks.standard(), b2=0.95, **arguments
        )
        return optax.chain(optax.clip_by_global_norm(train_sharded.CLIP), decayed)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    return Task(stacked, keys, loss, measured, make, steps, ("unseen loss", "norm"))


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def trained(task: Task, dtype: Any, residual: Any, eight: bool) -> np.ndarray:
    """What is measured at the end, (seeds, …). The model itself computes in float32."""
    optimizer = task.make(eight=eight)
    if residual is not None:
        residual = None if residual == dtype else residual
        optimizer = optwd.compensate_rounding(optimizer, residual_dtype=residual)

    def one(params, data):
        def step(carry, t):
            params, state = carry
            g = jax.grad(lambda p: task.loss(cast(p, jnp.float32), data, t))(params)
            updates, state = optimizer.update(g, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = cast(params, dtype)
        start = start, optimizer.init(start)
        end = jax.lax.scan(step, start, jnp.arange(task.steps))[0][0]
        return task.measured(cast(end, jnp.float32), data)

    return np.float64(jax.jit(jax.vmap(one))(task.params, task.data))


def training(quick: bool) -> None:
    for build in (digits, grokking, transformer):
        task, rows, exact = build(range(2 if quick else 5), quick), [], None
        for name, (dtype, residual, eight) in WAYS.items():
            begin = time.perf_counter()
            found = trained(task, dtype, residual, eight)
            exact = found if exact is None else exact
            cells = []
            for i in range(len(task.names)):
                mean, deviation = found[:, i].mean(), found[:, i].std(ddof=1)
                apart, one = mean - exact[:, i].mean(), exact[:, i].std(ddof=1)
                apart = f"{apart / one:+.1f}" if one else f"{apart:+.2g}"
                cells.append(f"{mean:.4g} ± {deviation:.2g} ({apart})")
            rows.append((name, *cells, f"{time.perf_counter() - begin:.0f}"))
        title = (
            f"{build.__name__}, {task.steps} steps, {len(found)} seeds: mean ± deviation "
        )
        title += "(distance from float32, in deviations of float32)"
        show(title, ("", *task.names, "seconds"), rows)


# --- time ----------------------------------------------------------------------------


def clock(quick: bool) -> None:
    """A donated AdamW step on one leaf, nanoseconds per parameter, in turns."""
    shape = (512, 512) if quick else (2048, 2048)
    noise = np.random.default_rng(0).normal(size=shape)
    makers = {"optax": (jnp.float32, optax.adamw(1e-3))}
    makers |= {f"optwd, {name}": pair for name, pair in compiled_steps().items()}
    visits = {}
    for name, (dtype, optimizer) in makers.items():

        @functools.partial(jax.jit, donate_argnums=0)
        def step(carry, g, optimizer=optimizer):
            params, state = carry
            updates, state = optimizer.update(g, state, params)
            return optax.apply_updates(params, updates), state

        p, g = jnp.zeros(shape, dtype), jnp.asarray(noise, dtype)
        visits[name] = [step, (p, optimizer.init(p)), g, []]
    visits |= torch_fused(noise)
    for _ in range(3 if quick else 15):
        for visit in visits.values():
            step, carry, g, seen = visit
            carry = jax.block_until_ready(step(carry, g))
            begin = time.perf_counter()
            visit[1] = jax.block_until_ready(step(carry, g))
            seen.append((time.perf_counter() - begin) / noise.size * 1e9)
    base = np.array(visits["optax"][3])
    rows = [
        (name, f"{np.median(seen):.1f}", f"{np.median(np.array(seen) / base):.2f}")
        for name, (*_, seen) in visits.items()
    ]
    show("A step on this CPU", ("", "ns per parameter", "over Optax"), rows)


def torch_fused(noise: np.ndarray) -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {}
    p = torch.zeros(noise.shape, requires_grad=True)
    p.grad = torch.tensor(noise, dtype=torch.float32)
    optimizer = torch.optim.AdamW([p], 1e-3, fused=True)
    return {"torch fused": [lambda *_: optimizer.step(), None, None, []]}


SECTIONS = {
    "directions": directions,
    "bytes": bytes_moved,
    "training": training,
    "time": clock,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    for name in args.only.split(","):
        SECTIONS[name](args.quick)


if __name__ == "__main__":
    main()
