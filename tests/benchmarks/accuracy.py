"""How far directions and parameters are from exact: optwd, Optax and, if installed, torch.

    python tests/benchmarks/accuracy.py

Every figure is measured in this run, against the same recursion in float64 on the same
numbers, on the path that a user takes: `optwd.adam(1.0)`, its updates as they come back.
The column "must" is what optwd has to hold; the script fails if it does not.
"""

import argparse
import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from step import show

import optwd
from optwd import _moments

sys.path.append(str(Path(__file__).parents[2]))
from tests import reference

MAKERS = {
    "Optax": functools.partial(optax.adam, 1.0),
    "optwd": functools.partial(optwd.adam, 1.0),
}
BFLOAT16_ULP = 2.0**-8
RATE, DECAY = 1e-3, 0.1


def normal(steps: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 1.0, (steps, size)).astype(np.float32)


def ones(steps: int) -> np.ndarray:
    return np.ones((steps, 1), np.float32)


# --- directions, one for each step ---------------------------------------------------


def directions(optimizer: Any, gradients: Any, params_dtype: Any = None) -> np.ndarray:
    """With learning rate 1 an update is the direction, negated."""
    start = jnp.zeros(gradients.shape[1:], params_dtype or gradients.dtype)

    def body(state, g):
        u, state = optimizer.update(g, state, start)
        return state, -u

    run = jax.jit(lambda g: jax.lax.scan(body, optimizer.init(start), g)[1])
    return np.asarray(run(gradients), np.float64)


def torch_directions(gradients: Any, **betas: float) -> np.ndarray | None:
    """From torch's Adam: with learning rate 1, the step that leads away from 0."""
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    narrow = gradients.dtype == jnp.bfloat16
    g = torch.from_numpy(np.array(gradients, np.float32))
    p = torch.zeros(g.shape[1:], dtype=torch.bfloat16 if narrow else torch.float32)
    b1, b2 = betas.get("b1", 0.9), betas.get("b2", 0.999)
    optimizer, steps = torch.optim.Adam([p], lr=1.0, betas=(b1, b2)), []
    for row in g:
        p.zero_()
        p.grad = row.to(p.dtype)
        optimizer.step()
        steps.append(-p.double().numpy())
    return np.stack(steps)


def against_reference(gradients: np.ndarray, *, torch: bool = True, **betas: float) -> dict:
    exact = np.stack(reference.adam(gradients.astype(np.float64), **betas))
    got = {name: directions(make(**betas), gradients) for name, make in MAKERS.items()}
    got["torch"] = torch_directions(gradients, **betas) if torch else None
    return {k: None if u is None else np.abs(u - exact).max() for k, u in got.items()}


def first_step_in_ulp() -> dict:
    gradients = normal(1, 4096)
    exact = np.stack(reference.adam(gradients.astype(np.float64)))
    ulp = np.spacing(np.float32(np.abs(exact)))
    got = {name: directions(make(), gradients) for name, make in MAKERS.items()}
    got["torch"] = torch_directions(gradients)
    return {
        k: None if u is None else (np.abs(u - exact) / ulp).max() for k, u in got.items()
    }


def bias_correction() -> dict:
    """In ulp, over b ≤ 0.999999 and every decade of t up to 2³¹ − 1."""
    t, worst = np.unique(np.geomspace(1, 2**31 - 1, 2000).astype(np.int32)), {}
    forms: dict[str, Callable] = {
        "Optax": lambda b, t: 1 / optax.tree.bias_correction(jnp.float32(1), b, t),
        "optwd": _moments.bias_correction,
    }
    for name, form in forms.items():
        for b in (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999):
            exact = -np.expm1(t * math.log(b))
            got = np.asarray(jax.jit(jax.vmap(lambda t, b=b, f=form: f(b, t)))(t), float)
            error = np.max(np.abs(got - exact) / np.spacing(np.float32(exact)))
            worst[name] = max(worst.get(name, 0.0), error)
    return worst


def narrow_gradients(dtype: Any) -> dict:
    """Gradients in that dtype, float32 parameters."""
    rounded = jnp.asarray(normal(50), dtype)
    tiny = jnp.full((1, 64), 3e-3, dtype)  # whose square float16 does not hold
    worst: dict[str, float] = {}
    for gradients in (rounded, tiny):
        exact = np.stack(reference.adam(np.float64(np.asarray(gradients, np.float32))))
        for name, make in MAKERS.items():
            u = directions(make(), gradients, jnp.float32)
            worst[name] = max(worst.get(name, 0.0), float(np.abs(u - exact).max()))
    return worst


def all_bfloat16() -> dict:
    gradients = jnp.ones((3000, 1), jnp.bfloat16)
    got = {name: directions(make(), gradients) for name, make in MAKERS.items()}
    got["torch"] = torch_directions(gradients)
    return {k: None if u is None else np.abs(u - 1).max() for k, u in got.items()}


# --- decay alone ---------------------------------------------------------------------


def decayed(optimizer: Any, dtype: Any, size: int) -> float:
    start = jnp.linspace(1, 2, size).astype(dtype)

    def body(_, carry):
        p, state = carry
        updates, state = optimizer.update(jnp.zeros_like(p), state, p)
        return optax.apply_updates(p, updates), state

    run = jax.jit(lambda c: jax.lax.fori_loop(0, 10_000, body, c)[0])
    ratios = np.float64(run((start, optimizer.init(start)))) / np.float64(start)
    return abs(ratios.mean() / (1 - RATE * DECAY) ** 10_000 - 1)


def torch_decayed(dtype: str) -> float | None:
    if not importlib.util.find_spec("torch"):
        return None
    import torch

    p = torch.linspace(1, 2, 16).to(getattr(torch, dtype))
    start, p.grad = p.double(), torch.zeros_like(p)
    optimizer = torch.optim.AdamW([p], lr=RATE, weight_decay=DECAY)
    for _ in range(10_000):
        optimizer.step()
    return abs((p.double() / start).mean().item() / (1 - RATE * DECAY) ** 10_000 - 1)


def decay(dtype: Any, size: int, rounding: Any = lambda optimizer: optimizer) -> dict:
    ours = rounding(optwd.adamw(RATE, weight_decay=DECAY))
    return {
        "Optax": decayed(optax.adamw(RATE, weight_decay=DECAY), dtype, size),
        "torch": torch_decayed(jnp.dtype(dtype).name),
        "optwd": decayed(ours, dtype, size),
    }


ROWS: list[tuple[str, float, Callable[[], dict]]] = [
    ("direction, first step (ulp)", 4, first_step_in_ulp),
    ("1000 steps, gradients N(3, 1)", 8e-7, lambda: against_reference(normal(1000))),
    ("1000 steps, gradient 1", 8e-7, lambda: against_reference(ones(1000))),
    ("100 000 steps, gradients N(3, 1)", 2e-6,
     lambda: against_reference(normal(100_000, 4), torch=False)),
    ("1000 steps, b2 = .9999", 1e-6, lambda: against_reference(normal(1000), b2=0.9999)),
    *(
        (f"first step, b2 = 1 − {gap:g}", 1e-6,
         lambda gap=gap: against_reference(ones(1), b2=1 - gap))
        for gap in (1e-6, 1e-7, 1e-8)
    ),
    ("bias correction (ulp)", 8, bias_correction),
    ("bfloat16 gradients, float32 weights", 1e-6, lambda: narrow_gradients(jnp.bfloat16)),
    ("float16 gradients, float32 weights", 1e-6, lambda: narrow_gradients(jnp.float16)),
    ("all in bfloat16, gradient 1, 3000 steps", BFLOAT16_ULP, all_bfloat16),
    ("decay alone, float32, relative", 2e-6, lambda: decay(jnp.float32, 16)),
    ("decay alone, bfloat16: as it is", math.inf, lambda: decay(jnp.bfloat16, 16)),
    ("… compensate_rounding", 0.01,
     lambda: decay(jnp.bfloat16, 16, optwd.compensate_rounding)),
    ("… round_stochastically, mean of 4096", 0.01,
     lambda: decay(jnp.bfloat16, 4096, lambda o: optwd.round_stochastically(o, 0))),
]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    jax.config.update("jax_platforms", "cpu")
    table, missed = [], []
    for what, limit, measure in ROWS:
        found = measure()
        cells = [f"{x:.2g}" if (x := found.get(k)) is not None else "–"
                 for k in ("Optax", "torch", "optwd")]  # fmt: skip
        table.append([what, *cells, f"≤ {limit:g}" if limit < math.inf else ""])
        if not found["optwd"] <= limit:
            missed.append(what)
    title = "Largest error against float64; absolute unless said otherwise"
    show(title, ["", "Optax", "torch", "optwd", "must"], table)
    if missed:
        raise SystemExit(f"optwd misses: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
