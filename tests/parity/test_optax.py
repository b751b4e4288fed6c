"""Drop-in: the optimizers equal Optax's own, step by step.

- 200 steps on a nested tree with schedules and masks: float64 to 1e-12, float32 to 2e-5,
  which is how far Optax's own bias correction is off;
- nesterov, eps_root, mu_dtype; complex leaves;
- decay.linear and add_l2 equal optax.add_decayed_weights.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from tests.helpers import cases, enable_x64

SHAPES = {"dense": {"kernel": (4, 3), "bias": (3,)}, "heads": [(2, 2, 2), ()]}
MASK = {"dense": {"kernel": True, "bias": False}, "heads": [True, False]}
ETA = optax.warmup_cosine_decay_schedule(0.0, 0.02, 20, 200)
LAMBDA = optax.linear_schedule(0.2, 0.05, 200)


def tree(rng, dtype):
    def leaf(shape):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return np.asarray(x, dtype)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def path_of(optimizer, dtype, steps=200):
    rng = np.random.default_rng(0)
    params = tree(rng, dtype)
    noise = jax.tree.map(lambda *g: np.stack(g), *(tree(rng, dtype) for _ in range(steps)))

    def body(carry, n):
        p, state = carry
        updates, state = optimizer.update(
            jax.tree.map(lambda p, n: 0.3 * p + n, p, n), state, p
        )
        p = optax.apply_updates(p, updates)
        return (p, state), (p, updates)

    run = jax.jit(lambda p, n: jax.lax.scan(body, (p, optimizer.init(p)), n)[1])
    return run(params, noise)


# Optax takes a schedule as weight_decay from 0.2.7 on
RATE = LAMBDA if tuple(map(int, optax.__version__.split(".")[:3])) > (0, 2, 6) else 0.2
DECAY = {"weight_decay": RATE, "mask": MASK}
CASES = {
    "adam": (optwd.adam, optax.adam, {}),
    "adam, eps_root": (optwd.adam, optax.adam, {"eps_root": 1e-3, "b2": 0.99}),
    "adam, nesterov": (optwd.adam, optax.adam, {"nesterov": True}),
    "nadam": (optwd.nadam, optax.nadam, {}),
    "amsgrad": (optwd.amsgrad, optax.amsgrad, {"b2": 0.9}),
    "adamw": (optwd.adamw, optax.adamw, {}),
    "adamw, mask": (optwd.adamw, optax.adamw, {"weight_decay": 0.3, "mask": MASK}),
    "adamw, schedule": (optwd.adamw, optax.adamw, DECAY),
    "adamw, nesterov": (optwd.adamw, optax.adamw, {"nesterov": True, **DECAY}),
    "adamw, eps_root": (optwd.adamw, optax.adamw, {"eps_root": 1e-4, **DECAY}),
    "nadamw": (optwd.nadamw, optax.nadamw, DECAY),
}


RUNS = {
    f"{name}, {dtype}": (name, dtype)
    for name in CASES
    for dtype in ("float64", "float32", "complex128")
    if dtype != "complex128" or name in ("adam", "nadam", "amsgrad", "adamw, schedule")
}
QUICK = {"adamw, float32", "adamw, schedule, float64", "adam, complex128"}


@pytest.mark.parametrize(("name", "dtype"), cases(RUNS, QUICK))
def test_equal_over_200_steps(name, dtype):
    ours, theirs, arguments = CASES[name]
    assert "optwd" not in inspect.getmodule(theirs).__name__  # the real one
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    with enable_x64(dtype != "float32"):
        got, expected = (
            path_of(make(ETA, **arguments), jnp.dtype(dtype)) for make in (ours, theirs)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
            got,
            expected,
        )


@pytest.mark.slow
@pytest.mark.parametrize("make", ["adam", "adamw", "nadam", "nadamw", "amsgrad"])
def test_mu_dtype(make):
    """In the dtype of the parameters: equal. In bfloat16: nearer to the unrounded moment.

    Optax multiplies the bfloat16 moment by b1 in bfloat16; here only the stored moment is
    rounded, so the two differ by design.
    """

    def path(module, dtype):
        return path_of(getattr(module, make)(ETA, mu_dtype=dtype), jnp.float32)[0]

    def distance(a, b):
        return max(
            np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )

    assert distance(path(optwd, jnp.float32), path(optax, jnp.float32)) <= 2e-5
    assert (
        getattr(optwd, make)(ETA, mu_dtype="bfloat16").init(1.0)[0].mu.dtype == jnp.bfloat16
    )
    ours, theirs = (distance(path(m, jnp.bfloat16), path(m, None)) for m in (optwd, optax))
    assert 0 < ours < theirs < 0.1


@pytest.mark.parametrize("make", [optwd.add_l2, optwd.decay.linear])
@pytest.mark.parametrize("mask", [MASK, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)])
def test_add_decayed_weights(make, mask, x64):
    def path(f):
        chain = optax.chain(f(0.3, mask), f(RATE))  # a number, a schedule, no mask
        return path_of(chain, jnp.float64, 20)

    got, expected = path(make), path(optax.add_decayed_weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), got, expected)


def test_state_of_optax_continues_in_ours(x64):
    """A checkpoint of scale_by_adam is one of ours, and the other way round."""
    ours, theirs = optwd.scale_by_adam(), optax.scale_by_adam()
    g = [jnp.asarray(x) for x in np.random.default_rng(0).normal(size=(4, 5))]
    for first, second in ((theirs, ours), (ours, theirs)):
        state, plain = first.init(g[0]), first.init(g[0])
        for t, x in enumerate(g):
            got, state = (first if t < 2 else second).update(x, state)
            expected, plain = first.update(x, plain)
            np.testing.assert_allclose(got, expected, rtol=1e-12)
