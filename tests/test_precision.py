"""Low-precision parameters follow the trajectory of exact arithmetic.

- `compensate_rounding`: decay far below the spacing of a weight arrives; the weight and its
  residual are the exact sum; steps unrolled in one program equal steps one by one, and the
  rounding is in the compiled program; wide leaves cost nothing unless asked for;
- `round_stochastically`: a neighbour by chance, whose mean is exact; chances are uniform
  and independent; the same seed gives the same run under scan and vmap;
- rounding to nearest as NumPy does it, subnormals of float16 among it;
- leaves of every dtype live in one tree; memory; overflow, infinity and NaN.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import optwd
from optwd import _rounding
from tests.helpers import cases

NARROW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}
WIDE = {"float32": jnp.float32, "complex64": jnp.complex64, "float64": jnp.float64}
narrow = pytest.mark.parametrize("dtype", cases(NARROW, {"bfloat16"}))
RATE, DECAY = 1e-3, 0.1
ONES = jnp.ones(64, jnp.bfloat16)


def compensated(optimizer=None, **arguments):
    optimizer = optimizer or optwd.adamw(RATE, weight_decay=DECAY)
    return optwd.compensate_rounding(optimizer, **arguments)


def stochastic(seed):
    return optwd.round_stochastically(optwd.adamw(RATE, weight_decay=DECAY), seed)


def stepper(transformation):
    def step(params, state, gradients):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def follow(transformation, params, gradients, jit=True):
    """The parameters after each step."""
    step, state, path = stepper(transformation), transformation.init(params), []
    step = jax.jit(step) if jit else step
    for g in gradients:
        params, state = step(params, state, g)
        path.append(params)
    return path, state


def decayed(optimizer, start, steps):
    """The parameters after so many steps of zero gradients."""

    def body(_, carry):
        return stepper(optimizer)(*carry, jnp.zeros_like(start))

    carry = (start, optimizer.init(start))
    return jax.jit(lambda c: jax.lax.fori_loop(0, steps, body, c))(carry)[0]


def spacing(x, dtype):
    return np.float64(np.spacing(np.abs(np.asarray(x)).astype(dtype)))


def normal(shape, dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --- decay that rounding would take away ---------------------------------------------


def test_decay_of_bfloat16_over_10_000_steps():
    start = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, 4096), jnp.bfloat16)
    exact = (1 - RATE * DECAY) ** 10_000  # 0.3679
    some = start[:256]
    for plain in (optwd.adamw, optax.adamw):
        assert (decayed(plain(RATE, weight_decay=DECAY), some, 10_000) == some).all()
    ratio = np.float64(decayed(compensated(), some, 10_000)) / np.float64(some)
    np.testing.assert_allclose(ratio, exact, rtol=0.01)  # every single one
    by_chance = decayed(stochastic(0), start, 10_000)
    ratio = np.float64(by_chance) / np.float64(start)
    assert ratio.mean() == pytest.approx(exact, rel=0.01)


@narrow
@pytest.mark.parametrize("rate", [1e-2, 1e-5])
def test_decay_at_every_rate(dtype, rate):
    """A residual that rounds to nearest stops at 1e-5·0.1 in bfloat16."""
    start, steps = jnp.linspace(1, 2, 16).astype(dtype), round(1 / rate)
    optimizer = compensated(optimizer=optwd.sgdw(rate, weight_decay=DECAY))
    ratio = np.float64(decayed(optimizer, start, steps)) / np.float64(start)
    half_spacing = float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(ratio, (1 - rate * DECAY) ** steps, rtol=1.1 * half_spacing)


of_dtype = pytest.mark.parametrize(
    "gradients", cases({"narrow": None, "wide": jnp.float32}, {"narrow"})
)


# --- compensate_rounding -------------------------------------------------------------


@narrow
@of_dtype
def test_weight_and_residual_are_the_exact_sum(dtype, gradients):
    """For steps of every size, across zero, and for subnormal weights of float16."""
    rng, steps = np.random.default_rng(0), 300
    start = jnp.asarray(rng.normal(size=256) * 10.0 ** rng.uniform(-7, 0, 256), dtype)
    u = rng.normal(size=(steps, 256)) * 10.0 ** rng.uniform(-7, -0.5, (steps, 256))
    u = jnp.asarray(u, gradients or dtype)
    path, state = follow(optwd.compensate_rounding(optax.identity()), start, u)
    exact = np.float64(start) + np.cumsum(np.float64(u), axis=0)
    largest = np.maximum(np.abs(np.float64(start)), np.abs(exact).max(0))
    # half a spacing of the sum; where a step is not exact, three more of up to `largest`
    assert (np.abs(np.float64(path) - exact) <= 2 * spacing(largest, dtype)).all()
    total = np.float64(path[-1]) + np.float64(state.residual)
    drift = np.sqrt(steps) * spacing(spacing(largest, dtype), dtype)
    assert (np.abs(total - exact[-1]) <= drift).all()


@narrow
@of_dtype
def test_unrolled_steps_equal_single_steps(dtype, gradients):
    """XLA keeps sums of bfloat16 in float32 within one program; nothing may hang on it."""
    exact, start = optwd.compensate_rounding(optax.identity()), normal(512, dtype)
    u = (normal((8, 512), seed=1) * 0.001).astype(gradients or dtype)
    path, state = follow(exact, start, u)
    at_once, last_state = jax.jit(lambda p, u: follow(exact, p, u, jit=False))(start, u)
    np.testing.assert_array_equal(path, at_once)
    np.testing.assert_array_equal(state.residual, last_state.residual)


@narrow
def test_rounding_is_in_the_compiled_program(dtype):
    optimizer, p = compensated(), jnp.ones(64, dtype)
    step = jax.jit(stepper(optimizer)).lower(p, optimizer.init(p), p).compile()
    to = jnp.finfo(dtype)
    rounding = f"exponent_bits={to.nexp}, mantissa_bits={to.nmant}"
    lines = [line for line in step.as_text().splitlines() if "reduce-precision(" in line]
    assert lines
    assert all(rounding in line for line in lines)


@pytest.mark.parametrize("dtype", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize(
    "make",
    [
        lambda: optwd.compensate_rounding(optax.identity()),
        lambda: optwd.round_stochastically(optax.identity(), 0),
    ],
)
def test_wide_leaves_cost_nothing(make, dtype, x64):
    p = jnp.ones((8, 16), dtype)
    transformation = make()
    state = transformation.init({"w": p})
    assert sum(x.size for x in jax.tree.leaves(state)) <= 3
    u = {"w": normal((8, 16), dtype)}
    assert transformation.update(u, state, {"w": p})[0]["w"] is u["w"]


@pytest.mark.parametrize("dtype", cases(WIDE, {"float32"}))
def test_wide_leaves_when_asked_for(dtype, x64):
    unit = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    start = unit * jnp.linspace(1, 2, 8).astype(dtype)
    u = jnp.full(8, unit * float(jnp.finfo(dtype).eps) / 8, dtype)

    def end(transformation):
        body = lambda _, c: stepper(transformation)(*c, u)  # noqa: E731
        carry = (start, transformation.init(start))
        p = jax.jit(lambda c: jax.lax.fori_loop(0, 4000, body, c))(carry)[0]
        return np.asarray((p - start) / (4000 * u))

    np.testing.assert_array_equal(end(optax.identity()), 0)
    np.testing.assert_allclose(
        end(optwd.compensate_rounding(optax.identity(), wide=True)), 1, rtol=0.01
    )

    # and a small weight is not lost in a step that swamps it
    start, there = start * 2.0**-60, jnp.full(8, unit, dtype)
    _, state = follow(
        optwd.compensate_rounding(optax.identity(), wide=True), start, [there]
    )
    np.testing.assert_array_equal(state.residual, start)


@narrow
def test_memory(dtype):
    params = {"w": jnp.ones((64, 64), dtype), "n": jnp.arange(4096)}
    residual = optwd.compensate_rounding(optax.identity()).init(params).residual
    assert (residual["w"].shape, residual["w"].dtype) == ((64, 64), dtype)
    assert residual["n"].size == 1
    key = optwd.round_stochastically(optax.identity(), 0).init(params)
    assert sum(x.nbytes for x in jax.tree.leaves(key)) == 12


@narrow
@pytest.mark.parametrize("name", ["compensate_rounding", "round_stochastically"])
def test_overflow_and_values_that_are_no_numbers(dtype, name):
    make = {"round_stochastically": {"seed": 0}}.get(name, {})
    transformation = getattr(optwd, name)(optax.identity(), **make)
    top = float(jnp.finfo(dtype).max)
    canonical_on_gpus = np.uint32(0x7FFFFFFF).view(np.float32)
    p = jnp.asarray([top, 1, 1, 1, 1], dtype)
    u = jnp.asarray([top, np.inf, -np.inf, np.nan, canonical_on_gpus], jnp.float32)
    (new, *_), state = follow(transformation, p, [u, 0 * u, jnp.zeros(5)])
    np.testing.assert_array_equal(
        np.float32(new), [np.inf, np.inf, -np.inf, np.nan, np.nan]
    )
    if name == "compensate_rounding":
        np.testing.assert_array_equal(np.float32(state.residual), 0)


def test_a_weight_that_is_set_by_hand_needs_a_residual_of_0():
    """As `ResidualState` says: 100 − 0.2 is 100, and the 0.2 would move the new weight."""
    exact = optwd.compensate_rounding(optax.identity())
    theta, zero = jnp.full(1, 100, jnp.bfloat16), jnp.zeros(1)
    _, state = exact.update(jnp.full(1, -0.2), exact.init(theta), theta)
    np.testing.assert_allclose(np.float32(state.residual), -0.2, rtol=1 / 256)
    theta = jnp.ones(1, jnp.bfloat16)
    moved, _ = exact.update(zero, state, theta)
    np.testing.assert_allclose(np.float32(moved), -0.2, rtol=1 / 64)
    state = state._replace(residual=jnp.zeros_like(theta))
    np.testing.assert_array_equal(exact.update(zero, state, theta)[0], 0)


def test_without_parameters_a_narrow_gradient_gives_a_float32_update():
    third, g = optwd.in_float32(optax.scale(1 / 3)), jnp.full(1, 1.1, jnp.bfloat16)
    u, _ = third.update(g, third.init(g))
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, 1.1015625 / 3, rtol=1e-7)


@pytest.mark.parametrize(
    ("gradient", "parameter", "wider"),
    [
        (jnp.float32, jnp.float64, jnp.float64),
        (jnp.float64, jnp.float32, jnp.float64),
        (jnp.bfloat16, jnp.float64, jnp.float64),
        (jnp.complex64, jnp.float64, jnp.complex128),
        (jnp.bfloat16, jnp.float16, jnp.float32),
    ],
)
def test_an_update_has_the_wider_dtype(gradient, parameter, wider, x64):
    same = optwd.in_float32(optax.identity())
    g, p = jnp.full(1, 1 / 3, gradient), jnp.ones(1, parameter)
    u, _ = same.update(g, same.init(p), p)
    assert u.dtype == wider
    np.testing.assert_array_equal(u, g.astype(wider))


def test_leaves_of_every_dtype_in_one_tree(x64):
    dtypes = [jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]
    params = {d.__name__: normal(32, d) for d in dtypes}
    gradients = [{d.__name__: normal(32, d, seed) for d in dtypes} for seed in range(1, 4)]
    for wide in (False, True):
        optimizer = compensated(wide=wide)
        together = follow(optimizer, params, gradients)[0][-1]
        for name, p in params.items():
            alone = follow(optimizer, p, [g[name] for g in gradients])[0][-1]
            assert together[name].dtype == p.dtype
            ulp = float(jnp.finfo(p.dtype).eps)  # contraction may differ
            a, b = (np.asarray(x).astype(complex) for x in (together[name], alone))
            np.testing.assert_allclose(a, b, rtol=2 * ulp)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bool_])
def test_float0_gradients_become_zeros_and_others_stay(dtype):
    transformation = optwd.in_float32(optax.scale(-2.0))
    params = {"n": jnp.ones(3, dtype), "w": jnp.ones(2, jnp.bfloat16)}
    gradients = {"n": np.zeros(3, jax.dtypes.float0), "w": jnp.full(2, 0.5, jnp.bfloat16)}
    for leaves in (("n", "w"), ("n",)):
        p, g = ({name: tree[name] for name in leaves} for tree in (params, gradients))
        for given, expected in ((p, dtype), (None, jnp.int32)):
            u, _ = transformation.update(g, transformation.init(p), given)
            assert u["n"].dtype == expected
            np.testing.assert_array_equal(u["n"], 0)
    u, _ = transformation.update(gradients, transformation.init(params), params)
    assert u["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(u["w"]), -1)


# --- rounding to nearest -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_rounded_is_the_cast_of_numpy(dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            rng.normal(size=20_000) * 10.0 ** rng.uniform(-9, 6, 20_000),
            [0.0, -0.0, 65504, 65519, 65520, np.inf, -np.inf, np.nan],
            np.ldexp([1, 1.5, 2, 2.5, 3.5, 1023.5], -24),  # ties among subnormals
        ]
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    got = np.asarray(jax.jit(lambda x: _rounding.nearest(x, dtype))(x))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


# --- round_stochastically ------------------------------------------------------------


def neighbours(x, dtype):
    nearest = x.astype(dtype)
    down = np.where(
        nearest.astype(float) <= x, nearest, np.nextafter(nearest, dtype(-np.inf))
    )
    up = np.where(nearest.astype(float) >= x, nearest, np.nextafter(nearest, dtype(np.inf)))
    return down.astype(float), up.astype(float)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_neighbour_whose_mean_is_exact(dtype):
    rng, n = np.random.default_rng(0), 4096
    values = [1.001, -1.001, 3e-7, -3e-7, 4e-5, 65000.3, 1.9999, 2**-14 * 0.9999]
    for x in np.float32([*values, *rng.normal(size=8)]):
        chances = _rounding.for_elements(jnp.uint32([x.view(np.uint32), 7]), (n,))
        got = np.asarray(_rounding.by_chance(jnp.full(n, x), dtype, chances), float)
        down, up = neighbours(x[None].astype(float), dtype)
        assert set(got) == {*down, *up}
        share = (float(x) - down) / (up - down)
        error = 4 * np.sqrt(share * (1 - share) / n) + 2**-12  # chances have 13 bits or 16
        assert abs((got == up).mean() - share) <= error


@narrow
def test_what_needs_no_rounding_gets_none(dtype):
    x = jnp.asarray(normal(4096, dtype), jnp.float32)
    x = x.at[:3].set(jnp.array([0.0, -0.0, jnp.finfo(dtype).tiny / 4]))
    chances = jnp.full(4096, 2**32 - 1, jnp.uint32)
    np.testing.assert_array_equal(_rounding.by_chance(x, dtype, chances), x)


def fractions(words, shape):
    return np.asarray(_rounding.for_elements(jnp.uint32(words), shape) >> 16) / 2**16


def test_chances_are_uniform():
    rng = np.random.default_rng(0)
    for words in rng.integers(2**32, size=(8, 2)):
        for shape in [(2**16,), (256, 256), (3, 7, 31, 101)]:
            x = fractions(words, shape).ravel()
            for bits in (x, x * 2**8 % 1):  # the upper and the lower byte
                counts = np.histogram(bits, 256, (0, 1))[0]
                chi_square = ((counts - x.size / 256) ** 2).sum() / (x.size / 256)
                assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_chances_are_independent():
    """Between neighbours along each axis, leaves, steps and seeds: no correlation."""
    key, n = _rounding.key(0), 512

    def leaves(seed, step):
        words = _rounding.words(_rounding.key(seed), jnp.int32(step), 3)
        return [fractions(w, (n, n)) for w in words]

    first, *others = leaves(0, 0)
    others += [leaves(0, step)[0] for step in (1, 2, 3)] + [leaves(1, 0)[0]]
    others += [np.roll(first, k, axis) for k in (1, 2, 4, 256) for axis in (0, 1)]
    others += [first.T]
    for other in others:
        for x, y in [
            (first, other),
            (first > 0.5, other > 0.5),
            (first % 2**-8, other % 2**-8),
        ]:
            correlation = np.corrcoef(x.ravel(), y.ravel())[0, 1]
            assert abs(correlation) < 5 / n
    means = np.concatenate([first.mean(0), first.mean(1)])  # rows and columns too
    assert np.std(means) == pytest.approx(np.sqrt(1 / 12 / n), rel=0.2)
    assert key.shape == (2,)


def test_chances_are_those_of_the_hash():
    first, second = words = np.uint32([0x12345678, 0x9ABCDEF0])
    x = first + np.arange(3 * 5 * 7, dtype=np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D) + second
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    got = _rounding.for_elements(jnp.asarray(words), (3, 5, 7))
    np.testing.assert_array_equal(got, x.reshape(3, 5, 7))
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    np.testing.assert_array_equal(_rounding.hashed(got), x.reshape(3, 5, 7))


def test_a_sum_and_what_rounding_takes_from_it_are_exact():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, 512)) * 2.0 ** rng.integers(-12, 12, (2, 512))).astype("f4")
    total, lost = jax.jit(lambda x, y: _rounding.two_sum(x, y))(x, y)
    exact = x.astype(float) + y  # in float64, of numbers that are not too far apart
    np.testing.assert_array_equal(np.float64(total) + np.float64(lost), exact)
    assert np.count_nonzero(lost) > 100


def test_chances_of_steps_are_multiples_of_the_golden_ratio():
    t = np.arange(1000)
    golden = int((np.sqrt(5) - 1) / 2 * 2**32)
    got = np.asarray(_rounding.for_step(jnp.asarray(t)))
    np.testing.assert_array_equal(got, t * golden % 2**32)


def test_a_seed_is_the_same_run_in_every_release():
    """Which of 16 weights of 1 in two leaves a step of −2e-3 moves, in three steps."""
    rounding, theta = (
        optwd.round_stochastically(optax.identity(), 0),
        [jnp.ones(8, jnp.bfloat16)] * 2,
    )
    state, moved = rounding.init(theta), []
    for _ in range(3):
        u, state = rounding.update([jnp.full(8, -2e-3)] * 2, state, theta)
        moved.append("".join("01"[bool(x)] for x in jnp.concatenate(u)))
    assert moved == ["0110000001010010", "0111101101000011", "0110100000111111"]


def chance_run(seed, dtype=jnp.bfloat16, jit=True):
    optimizer = stochastic(seed)
    params = {"a": jnp.ones((8, 32), dtype), "b": jnp.ones((8, 32), dtype)}
    gradients = [jax.tree.map(jnp.zeros_like, params)] * 20
    return follow(optimizer, params, gradients, jit=jit)[0][-1]


@narrow
def test_the_seed_is_the_run(dtype):
    a, b = chance_run(0, dtype), chance_run(1, dtype)
    eager = chance_run(0, dtype, jit=False)
    assert not np.array_equal(a["a"], a["b"])  # though the weights of both are the same
    assert not np.array_equal(a["a"], b["a"])
    jax.tree.map(np.testing.assert_array_equal, a, chance_run(0, dtype))
    jax.tree.map(np.testing.assert_array_equal, a, eager)


def test_scan_and_vmap_equal_a_loop():
    gradients = normal((6, 3, 64), jnp.bfloat16, seed=1)
    starts = normal((3, 64), jnp.bfloat16)

    def scanned(seed, start, gradients):
        optimizer = stochastic(seed)
        body = lambda c, g: (stepper(optimizer)(*c, g), None)  # noqa: E731
        return jax.lax.scan(body, (start, optimizer.init(start)), gradients)[0][0]

    seeds = jnp.arange(3)
    batched = jax.vmap(scanned, (0, 0, 1))(seeds, starts, gradients)
    for i in range(3):
        optimizer = stochastic(i)
        path, _ = follow(optimizer, starts[i], gradients[:, i])
        np.testing.assert_array_equal(batched[i], path[-1])


@pytest.mark.parametrize("seed", [0.5, None, "0", (1, 2), True, jnp.arange(2)])
def test_the_seed_is_an_integer(seed):
    with pytest.raises(
        (TypeError, ValueError), match=r"seed must be (an|one) integer, got"
    ):
        optwd.round_stochastically(optax.identity(), seed)


def test_a_leaf_draws_by_its_place_in_the_tree():
    """A first leaf without a gradient does not change the chances of the second."""
    rounding, theta = optwd.round_stochastically(optax.identity(), 0), [ONES, ONES]
    state, step = rounding.init(theta), jnp.full(ONES.shape, -2e-3)
    (_, both), _ = rounding.update([step, step], state, theta)
    (_, alone), _ = rounding.update([None, step], state, theta)
    assert 0 < np.count_nonzero(both) < ONES.size
    np.testing.assert_array_equal(both, alone)


@pytest.mark.parametrize("seed", [2**32, -1])
def test_seeds_do_not_wrap(seed):
    with pytest.raises(ValueError, match=r"seed must be in \[0, 2³²\), got"):
        optwd.round_stochastically(optwd.adam(0.1), seed)


def shrunk(wrap, start, rate, steps, size, dtype):
    """What is left, beside the exact product, of weights that only decay."""
    optimizer, theta = wrap(optax.identity()), jnp.full(size, start, dtype)

    def body(carry, _):
        p, state = carry
        u, state = optimizer.update(-rate * p.astype(jnp.float32), state, p)
        return (optax.apply_updates(p, u), state), None

    run = jax.jit(lambda c: jax.lax.scan(body, c, length=steps)[0])
    end, state = run((theta, optimizer.init(theta)))
    left = np.float64(end)
    if hasattr(state, "residual"):
        left = left + np.float64(state.residual)
    return left.mean() / np.float64(theta[0]), (1 - rate) ** steps


SMALL_STEPS = {
    "below half an ulp of float32": (1.0, 2e-8, jnp.bfloat16),
    "of a subnormal weight": (3e-5, 3e-8, jnp.float16),
    "that grows": (3e-5, -3e-8, jnp.float16),
    "larger": (1e-4, 1e-6, jnp.float16),
}


@pytest.mark.slow
@pytest.mark.parametrize(("start", "rate", "dtype"), SMALL_STEPS.values(), ids=SMALL_STEPS)
def test_no_step_is_too_small_to_be_drawn(start, rate, dtype):
    wrap = lambda o: optwd.round_stochastically(o, 0)  # noqa: E731
    got, exact = shrunk(wrap, start, rate, 10_000, 4096, dtype)
    spread = np.sqrt(10_000 * abs(rate) * 2.0**-8 / 4096)  # at most: whole spacings moved
    assert abs(got - exact) <= 5 * spread
    assert abs(exact - 1) > 0.5 * spread or start == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("start", [1e-4, -1e-4, 1.0])
def test_residuals_among_the_subnormals_of_float16(start):
    """With a bias, ±1e-4 would end at 0.926 and 1.000."""
    got, exact = shrunk(optwd.compensate_rounding, start, 1e-8, 10**6, 8, jnp.float16)
    assert abs(got - exact) <= 1e-3
