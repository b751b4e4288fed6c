"""Residuals in eight bits: `compensate_rounding(optimizer, residual_dtype=jnp.int8)`.

- the unit is half the spacing that NumPy gives, over 127, for every narrow dtype; storing
  is one of the two neighbours, right on average over steps, also far below a unit;
- weight and residual follow the exact sum, within a few units and for steps of every size;
  decay far below the spacing arrives, with a rate of 1e-6 too; float32 weights on request;
- one byte per weight, in place, the same in one program as step by step; under vmap, scan,
  MultiSteps and inject_hyperparams; `map_params` gives the weight of each residual;
- a gradient of None, weights that overflow, and leaves that are not compensated;
- the audit says that all of the decay survives;
- what cannot be is an error: another dtype, complex leaves, a state of the other kind;
- the prototype of moments in eight bits, which is not part of the package, is as close in
  direction as docs/precision.md says.
"""

import eight_bits
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import optwd
from optwd import _eight_bits
from tests.helpers import stepper

NARROW = [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
narrow = pytest.mark.parametrize("dtype", NARROW[:2])


def compensated(optimizer=None, **arguments):
    optimizer = optimizer or optax.identity()
    return optwd.compensate_rounding(optimizer, residual_dtype=jnp.int8, **arguments)


def half_spacing(x):
    return np.spacing(np.abs(np.asarray(x))).astype(np.float64) / 2


def scattered(size, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=size) * 10.0 ** rng.uniform(-6, 2, size)).astype(dtype)


@jax.jit
def followed(params, state, gradients):
    """The parameters after each step, and the state."""

    def body(carry, g):
        carry = stepper(compensated())(*carry, g)
        return carry, carry[0]

    (_, state), path = jax.lax.scan(body, (params, state), gradients)
    return path, state


# --- the format ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*NARROW, np.float32])
def test_the_unit_is_half_the_spacing(dtype):
    x = scattered(999, dtype)
    x = x[np.isfinite(x.astype(np.float64))]  # float8 has overflowed
    np.testing.assert_array_equal(_eight_bits.half_spacing(jnp.asarray(x)), half_spacing(x))


def test_the_unit_of_what_has_no_spacing():
    x = jnp.array([0.0, 1e-40, jnp.inf, -jnp.inf, jnp.nan], jnp.bfloat16)
    unit = np.asarray(_eight_bits.half_spacing(x))
    assert np.isfinite(unit).all()
    assert (unit > 0).all()


@narrow
def test_a_neighbour_that_is_right_on_average(dtype):
    weight, steps = jnp.asarray(scattered(64, dtype)), 2**12
    unit = half_spacing(weight) / 127
    share = np.linspace(-127, 127, 64) + 1e-3
    residual = jnp.asarray(share * unit, jnp.float32)
    store = jax.vmap(_eight_bits.store, (None, None, 0))
    codes = np.asarray(store(residual, weight, jnp.arange(1, steps + 1)), np.float64)
    within = np.abs(share) < 127
    assert (np.abs(codes - share) < 1)[:, within].all()
    assert np.abs(codes).max() == 127
    np.testing.assert_allclose(codes.mean(0)[within], share[within], atol=2e-3)
    loaded = np.asarray(_eight_bits.load(jnp.int8(codes[0]), weight))
    np.testing.assert_allclose(loaded, codes[0] * unit, rtol=1e-6)


# --- the trajectory ------------------------------------------------------------------


@narrow
def test_weight_and_residual_are_the_exact_sum(dtype):
    """And the weight, for steps of every size, across zero and among subnormals too."""
    rng, steps, n = np.random.default_rng(0), 300, 256
    small, gentle, violent = 10.0 ** rng.uniform(
        [[-7], [-7], [-7]], [[0], [-2], [-0.5]], (3, n)
    )
    for size, step, in_sum in ((1.0, gentle, True), (small, violent, False)):
        start = jnp.asarray(rng.choice([-1, 1], n) * rng.uniform(1, 2, n) * size, dtype)
        u = jnp.asarray(rng.normal(size=(steps, n)) * step, jnp.float32)
        path, state = followed(start, compensated().init(start), u)
        exact = np.float64(start) + np.cumsum(np.float64(u), axis=0)
        largest = np.maximum(np.abs(np.float64(start)), np.abs(exact).max(0)).astype(dtype)
        assert (np.abs(np.float64(path) - exact) <= 4 * half_spacing(largest)).all()
        total = np.float64(path[-1]) + _eight_bits.load(state.residual, path[-1])
        drift = 2 * np.sqrt(steps) * half_spacing(largest) / 127
        # a weight that shrinks to less than half in one step may lose more
        assert not in_sum or (np.abs(total - exact[-1]) <= drift).all()


@pytest.mark.parametrize(("rate", "steps"), [(1e-4, 10_000), (1e-6, 100_000)])
def test_decay_far_below_the_spacing(rate, steps):
    """To nearest, a residual in eight bits would stand still at 1e-6."""
    start = jnp.linspace(0.5, 2, 64).astype(jnp.bfloat16)
    optimizer = compensated(optwd.sgdw(1.0, weight_decay=rate))

    def body(_, carry):
        return stepper(optimizer)(*carry, jnp.zeros_like(start))

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, body, carry))
    end, _ = run((start, optimizer.init(start)))
    ratio = np.float64(end) / np.float64(start) / (1 - rate) ** steps
    np.testing.assert_allclose(ratio, 1, rtol=2**-8)  # half a spacing, at most
    assert ratio.mean() == pytest.approx(1, abs=1e-3)


def test_float32_weights_when_asked_for():
    start, n = jnp.linspace(1, 2, 8), 4000
    u = jnp.full((n, 8), float(jnp.finfo(jnp.float32).eps) / 8)
    assert compensated().init(start).residual.shape == ()
    state = compensated(wide=True).init(start)
    assert state.residual.dtype == jnp.int8

    def body(carry, g):
        return stepper(compensated(wide=True))(*carry, g), None

    end = jax.lax.scan(body, (start, state), u)[0][0]
    np.testing.assert_allclose((end - start) / (n * u[0]), 1, rtol=0.01)


# --- a state like any other ----------------------------------------------------------


def test_one_byte_per_weight_in_place():
    params = {"w": jnp.ones((64, 64), jnp.bfloat16), "n": jnp.arange(4096)}
    state = compensated().init(params)
    assert state.residual["w"].nbytes == 64 * 64
    assert state.residual["w"].dtype == jnp.int8
    assert state.residual["n"].size == 1
    before = state.residual["w"].unsafe_buffer_pointer()
    step = jax.jit(stepper(compensated()), donate_argnums=(0, 1))
    params, state = step(params, state, {"w": params["w"] / 1024, "n": params["n"]})
    assert state.residual["w"].unsafe_buffer_pointer() == before
    assert (state.residual["w"] != 0).all()


@pytest.mark.slow
def test_unrolled_mapped_and_wrapped_steps_are_the_same():
    start = jnp.asarray(np.linspace(-2, 2, 48).reshape(3, 16), jnp.bfloat16)
    u = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3, 16)) * 1e-3, jnp.float32)

    def unrolled(optimizer, p, u):
        state = optimizer.init(p)
        for g in u:
            p, state = stepper(optimizer)(p, state, g)
        return p

    path, state = followed(start, compensated().init(start), u)
    at_once = jax.jit(lambda p, u: unrolled(compensated(), p, u))(start, u)
    np.testing.assert_array_equal(at_once, path[-1])
    states = jax.vmap(compensated().init)(start)
    paths, states = jax.vmap(followed, (0, 0, 1), (1, 0))(start, states, u)
    np.testing.assert_array_equal(paths, path)
    np.testing.assert_array_equal(states.residual, state.residual)

    several = optax.MultiSteps(compensated(optax.sgd(1.0)), 1)
    injected = compensated(optax.inject_hyperparams(optax.sgd)(1.0))
    for optimizer in (several, injected):
        end = jax.jit(lambda p, u, o=optimizer: unrolled(o, p, -u))(start, u)
        np.testing.assert_array_equal(end, path[-1])


def test_map_params_gives_the_weight_of_each_residual():
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones(4, jnp.float16)}
    state = compensated().init(params)
    doubled = optax.tree.map_params(
        compensated(), lambda x, p: x + 2 * p.astype(x.dtype), state, params
    )
    for name, p in params.items():
        np.testing.assert_array_equal(doubled.residual[name], 2 * np.ones(p.shape))
        assert doubled.residual[name].dtype == jnp.int8


def test_no_gradient_leaves_weight_and_residual():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    g, optimizer = jnp.full(3, 1e-3), compensated()
    _, state = optimizer.update({"a": g, "b": g}, optimizer.init(params), params)
    u, after = optimizer.update({"a": None, "b": g}, state, params)
    assert u["a"] is None
    np.testing.assert_array_equal(after.residual["a"], state.residual["a"])
    assert (after.residual["b"] > state.residual["b"]).all()


@narrow
def test_overflow_and_values_that_are_no_numbers(dtype):
    top = float(ml_dtypes.finfo(dtype).max)
    p = jnp.asarray([top, 1, 1, 1, 0], dtype)
    u = jnp.array([top, np.inf, -np.inf, np.nan, 0])
    path, state = followed(p, compensated().init(p), u[None])
    np.testing.assert_array_equal(np.float32(path[0]), [np.inf, np.inf, -np.inf, np.nan, 0])
    np.testing.assert_array_equal(state.residual, 0)


@pytest.mark.slow
def test_the_audit_says_that_all_decay_survives():
    def make(rate, decay):
        return compensated(optwd.adamw(rate, weight_decay=decay))

    found = optwd.audit(make, {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)})
    assert found.problems == ()
    assert found.leaves["kernel"].survives.own == pytest.approx(1, abs=0.01)


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.int16, jnp.float32, "uint8"])
def test_another_dtype(dtype):
    name = jnp.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"residual_dtype must be None.*int8, got {name}"):
        optwd.compensate_rounding(optax.identity(), residual_dtype=dtype)


def test_complex_leaves():
    params = {"z": jnp.ones(2, jnp.complex64)}
    assert compensated().init(params).residual["z"].shape == ()
    with pytest.raises(TypeError, match=r"^z: a complex leaf has no residual in int8"):
        compensated(wide=True).init(params)


@pytest.mark.parametrize("first", [None, jnp.int8])
def test_a_state_of_the_other_kind(first):
    params = {"a": {"w": jnp.ones(2, jnp.bfloat16)}}
    make = optwd.compensate_rounding
    second = None if first else jnp.int8
    state = make(optax.identity(), residual_dtype=first).init(params)
    with pytest.raises(TypeError, match=r"^a/w: a residual of dtype (int8|bfloat16)"):
        make(optax.identity(), residual_dtype=second).update(params, state, params)


# --- the benchmark -------------------------------------------------------------------


@pytest.mark.slow
def test_directions_of_the_prototype(monkeypatch):
    tables = []
    monkeypatch.setattr(eight_bits, "show", lambda *table: tables.append(table))
    monkeypatch.setattr(eight_bits, "FORMATS", {"cubes": eight_bits.CUBES})
    eight_bits.main(["--quick", "--only", "directions"])
    [(_, _, rows)] = tables
    assert len(rows) == 4
    assert all(0 < float(error.rstrip("%")) <= 5 for _, _, error, _ in rows)
