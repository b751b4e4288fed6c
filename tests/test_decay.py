"""The rules of decay, beyond what test_laws.py holds every transformation to.

- each against its reference over 100 steps: constant and scheduled rates, masks with
  floats, in float64, float32 and bfloat16, real and complex, jitted, vmapped and donated;
- cautious: equals linear where all agree, nothing where all disagree, zeros agree, also
  where the product would underflow;
- proximal: closed form, never across zero, linear to first order;
- toward: nothing at the anchor, linear towards zero, the anchor a copy of its own, one
  number or integers as well, and without memory for leaves that the mask leaves out;
- constrained: nothing below an infinite bound, holds the statistic to a tight one, takes
  its bound at the warm start;
- fixed points under a constant direction, with and without the learning rate;
- no parameter-sized temporary; state through Orbax;
- a rule is freed with its transformation;
- bad input raises, with the path, the value and the fix, also from schedules.
"""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay, masks
from tests import reference
from tests.helpers import cases

STEPS = 100
RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 3))
ANCHOR = RNG.normal(size=(4, 3))
DIRECTIONS = 0.1 * RNG.normal(size=(STEPS, 4, 3))
MASK = {"all": True, "half": 0.5, "none": False}
RATES = 0.1 * np.cos(np.arange(STEPS) / 70)


def rate_schedule(t):
    return jnp.asarray(RATES, jnp.result_type(float))[t]


def of_rate(factory):
    return lambda rate, mask=None, anchor=None: factory(rate, mask)


# name: (rate, mask, anchor) → transformation, and (anchor, start) → reference
RULES = {
    "linear": (of_rate(decay.linear), lambda a, p: reference.linear),
    "cautious": (of_rate(decay.cautious), lambda a, p: reference.cautious),
    "proximal": (of_rate(decay.proximal), lambda a, p: reference.proximal),
    "toward": (
        lambda rate, mask=None, anchor=None: decay.toward(anchor, rate, mask),
        lambda a, p: reference.toward(a),
    ),
    "toward_init": (of_rate(decay.toward_init), lambda a, p: reference.toward(p)),
    "constrained": (
        lambda rate, mask=None, anchor=None: decay.constrained(0.5, mask, update_rate=rate),
        lambda a, p: reference.constrained(0.5),
    ),
    "warm start": (
        lambda rate, mask=None, anchor=None: decay.constrained(
            mask=mask, warm_start=20, update_rate=rate
        ),
        lambda a, p: reference.warm_start(20),
    ),
    "to_norm": (
        of_rate(lambda rate, mask: decay.to_norm(rate, None, mask)),
        lambda a, p: reference.to_norm(np.linalg.norm(p)),
    ),
}
every_rule, some_rules = (
    pytest.mark.parametrize(("make", "expected"), cases(RULES, quick))
    for quick in (RULES, {"linear", "constrained", "to_norm"})
)


def cast(x, dtype):
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x * np.exp(1j * np.arange(3))
    return jnp.asarray(x, dtype)


def trees(dtype):
    """Start, anchor and 100 directions of three leaves, one for each multiplier."""
    return [{k: cast(x, dtype) for k in MASK} for x in (START, ANCHOR, DIRECTIONS)]


def step(transformation, params, state, u):
    u, state = transformation.update(u, state, params)
    return jax.tree.map(lambda p, u: p - u, params, u), state


def path_of(transformation, params, directions):
    def body(carry, u):
        carry = step(transformation, *carry, u)
        return carry, carry[0]

    @jax.jit
    def path(params, directions):
        return jax.lax.scan(body, (params, transformation.init(params)), directions)[1]

    return path(params, directions)


def reference_path(rule, params, directions, rho):
    path = []
    for t, u in enumerate(directions):
        params = params - rule(u, params, rho(t))
        path.append(params)
    return np.stack(path)


def at(rate, multiplier):
    return lambda t: multiplier * (RATES[t] if callable(rate) else rate)


# --- against the references ----------------------------------------------------------


# one rounding of the weights a step, for 100 steps
TOLERANCES = {"float64": 1e-13, "complex128": 1e-13, "float32": 2e-6}


@every_rule
@pytest.mark.parametrize(
    "rate", cases({"number": 0.1, "schedule": rate_schedule}, {"schedule"})
)
def test_against_reference(make, expected, rate, x64):
    each = {dtype: trees(jnp.dtype(dtype)) for dtype in TOLERANCES}
    start, anchor, directions = ({d: t[i] for d, t in each.items()} for i in range(3))
    transformation = make(rate, dict.fromkeys(TOLERANCES, MASK), anchor)
    got = path_of(transformation, start, directions)
    for dtype, tolerance in TOLERANCES.items():
        exact = np.complex128 if dtype == "complex128" else np.float64
        for name, multiplier in MASK.items():
            p, a, u = (np.asarray(x[name], exact) for x in each[dtype])
            rule = expected(a, p) if multiplier else lambda u, p, rho: u
            want = reference_path(rule, p, u, at(rate, multiplier))
            path = got[dtype][name]
            np.testing.assert_allclose(path, want, tolerance, tolerance, err_msg=name)


@some_rules
def test_bfloat16_rounds_once(make, expected):
    """Each step from the rounded weights; the update is the exact one, rounded."""
    params, anchor, directions = (t["all"] for t in trees(jnp.bfloat16))
    transformation = make(0.1, None, anchor)
    state, update = transformation.init(params), jax.jit(transformation.update)
    rule = expected(np.float64(anchor), np.float64(params))
    for u in directions:
        got, state = update(u, state, params)
        want = rule(np.float64(u), np.float64(params), 0.1)
        # half an ulp of bfloat16, and float32 where u and ρθ cancel
        np.testing.assert_allclose(np.float64(got), want, rtol=2**-8, atol=1e-6)
        params = params - got


@some_rules
def test_vmap_and_donation(make, expected):
    start, anchor, directions = trees(jnp.float32)
    transformation = make(0.1, MASK, anchor)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), start)
    state = jax.vmap(transformation.init)(both)
    one_step = functools.partial(step, transformation)
    donating = jax.jit(jax.vmap(one_step, (0, 0, None)), donate_argnums=(0, 1))
    directions = jax.device_get(directions)
    for t in range(30):
        before = jax.tree.leaves((both, state))
        both, state = donating(both, state, jax.tree.map(lambda u, t=t: u[t], directions))
        assert all(x.is_deleted() for x in before)
    for i, factor in enumerate((1, 2)):
        one = jax.tree.map(lambda x, factor=factor: factor * x, start)
        want = path_of(transformation, one, directions)
        jax.tree.map(
            lambda b, w, i=i: np.testing.assert_allclose(b[i], w[29], 1e-5, 1e-6),
            both,
            want,
        )


@pytest.mark.parametrize(
    ("rate", "mask"), [(0.0, None), (0.1, False), (lambda t: jnp.float32(0.1), False)]
)
def test_a_leaf_without_decay_is_as_it_was_whatever_its_weights(rate, mask):
    u, p = jnp.array([1.0, 2.0]), jnp.array([np.inf, np.nan])
    for make in (decay.linear, decay.cautious, decay.proximal, optwd.add_l2):
        transformation = make(rate, mask)
        got, _ = transformation.update(u, transformation.init(p), p)
        np.testing.assert_array_equal(got, u)


# --- cautious ------------------------------------------------------------------------


def one_update(transformation, u, p):
    u, p = jnp.asarray(u), jnp.asarray(p)
    return np.asarray(transformation.update(u, transformation.init(p), p)[0])


def test_cautious_where_all_agree_and_where_none_does():
    u = np.abs(DIRECTIONS[0]) * np.sign(START)
    agree, against = (one_update(decay.cautious(0.1), v, START) for v in (u, -u))
    linear = one_update(decay.linear(0.1), u, START)
    np.testing.assert_allclose(agree, linear, rtol=2.4e-7)  # two ulp: contraction
    np.testing.assert_array_equal(against, np.float32(-u))


def test_cautious_counts_zeros_as_agreeing():
    u = np.array([0.0, -0.0, 0.0, 1.0, -1.0, 1.0], np.float32)
    p = np.array([2.0, 2.0, -2.0, 0.0, 0.0, -0.0], np.float32)
    got = one_update(decay.cautious(0.5), u, p)
    np.testing.assert_array_equal(got, [1.0, 1.0, -1.0, 1.0, -1.0, 1.0])


def test_cautious_reads_signs_not_products():
    u, p = np.float32([-1e-30, 1e-30, -1e30]), np.float32([1e-30, 1e-30, 1e30])
    got = one_update(decay.cautious(0.5), u, p)  # uθ is 0 or inf in float32
    np.testing.assert_allclose(got, [-1e-30, 1.5e-30, -1e30], rtol=1e-6)


def test_cautious_counts_a_right_angle_as_agreeing():
    u, p = np.complex64([0, 0, 1j, 1]), np.complex64([2, 2j, 2, 0])
    got = one_update(decay.cautious(0.5), u, p)
    np.testing.assert_array_equal(got, np.complex64([1, 1j, 1 + 1j, 1]))


def test_cautious_passes_nan_on():
    nan = np.float32([np.nan, 1.0]), np.float32([1.0, np.nan])
    assert np.isnan(one_update(decay.cautious(0.5), *nan)).all()


def test_cautious_of_complex_turns_with_the_weights():
    """A rotation of direction and weight is a rotation of the result."""
    u, p = (x[0] + 1j * x[1] for x in (10 * DIRECTIONS[:2], np.stack([START, ANCHOR])))
    turn = np.exp(0.7j)
    got = one_update(decay.cautious(0.5), u, p)
    np.testing.assert_allclose(
        one_update(decay.cautious(0.5), u * turn, p * turn), got * turn, rtol=1e-5
    )
    shrinks = np.abs(p - 1e-3 * u) <= np.abs(p)
    np.testing.assert_allclose(got, np.where(shrinks, u + 0.5 * p, u), rtol=1e-5)
    assert 0 < shrinks.mean() < 1


# --- proximal ------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 2.0, 1e6])
def test_proximal_from_decay_alone(rate, x64):
    zeros = np.zeros_like(DIRECTIONS[:20])
    got = path_of(decay.proximal(rate), jnp.asarray(START), jnp.asarray(zeros))
    want = START * (1 + rate) ** -np.arange(1.0, 21)[:, None, None]
    np.testing.assert_allclose(got, want, rtol=1e-12 * max(1, rate), atol=1e-300)
    assert (np.sign(got)[0] == np.sign(START)).all()


def test_proximal_is_linear_to_first_order(x64):
    """Step and rate both of size η: the difference is −ρu + ρ²θ + …, of size η²."""
    errors = []
    for eta in (1e-2, 1e-3):
        u, rho = eta * DIRECTIONS[0], eta * 0.5
        ours, linear = (
            one_update(make(rho), u, START) for make in (decay.proximal, decay.linear)
        )
        np.testing.assert_allclose(
            ours - linear, -(rho * u + rho**2 * START) / (1 + rho), rtol=1e-10, atol=1e-15
        )
        errors.append(np.abs(ours - linear).max())
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.02)


# --- toward and toward_init ----------------------------------------------------------


def test_toward_does_nothing_at_the_anchor():
    for make in (decay.toward_init(0.3), decay.toward(jnp.asarray(START), 0.3)):
        got = one_update(make, DIRECTIONS[0], START)
        np.testing.assert_array_equal(got, np.float32(DIRECTIONS[0]))


def test_toward_zero_is_linear():
    toward = one_update(decay.toward(jnp.zeros((4, 3)), 0.3), DIRECTIONS[0], START)
    np.testing.assert_array_equal(
        toward, one_update(decay.linear(0.3), DIRECTIONS[0], START)
    )


@pytest.mark.parametrize("jit", [False, True])
def test_anchor_outlives_the_parameters(jit):
    params = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.arange(3), "none": None}
    given = jax.tree.map(jnp.copy, params)
    for transformation in (decay.toward_init(0.5), decay.toward(given, 0.5)):
        live = jax.tree.map(jnp.copy, params)
        init = jax.jit(transformation.init) if jit else transformation.init
        state = init(live)
        jax.tree.map(lambda x: x.delete(), live)  # as donation does
        jax.tree.map(np.testing.assert_array_equal, state.anchor, params)
        state = jax.tree.map(lambda x: x.delete(), state)
        jax.tree.map(np.testing.assert_array_equal, given, params)  # it was copied


def test_anchor_keeps_its_own_dtype():
    anchor = jnp.float32([1.001])  # not a bfloat16
    transformation, theta = decay.toward(anchor, 1.0), jnp.ones(1, jnp.bfloat16)
    state = transformation.init(theta)
    u, _ = transformation.update(jnp.zeros(1, jnp.bfloat16), state, theta)
    assert (state.anchor.dtype, u.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(np.float32(u), -0.001, rtol=2**-8)


def test_toward_inside_masked_partition_and_map_params():
    params = {"a": jnp.ones(2), "b": jnp.ones(3), "none": None}
    anchor = {"a": jnp.zeros(2), "b": jnp.zeros(3), "none": None}
    want = {"a": jnp.full(2, 0.5), "b": jnp.zeros(3), "none": None}
    labels = {"a": "ours", "b": "frozen", "none": None}
    for transformation in (
        optax.masked(decay.toward(anchor, 0.5), {"a": True, "b": False, "none": None}),
        optax.partition(
            {"ours": decay.toward(anchor, 0.5), "frozen": optax.set_to_zero()}, labels
        ),
    ):
        state = transformation.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        u, _ = transformation.update(zeros, state, params)
        jax.tree.map(np.testing.assert_array_equal, u, want)
    plain = decay.toward(anchor, 0.5)
    state = optax.tree.map_params(plain, lambda x: x + 7, plain.init(params))
    np.testing.assert_array_equal(state.anchor["a"], 7.0)
    assert state.step == 0


def test_toward_one_number():
    params = {"scale": jnp.float32([0.5, 3]), "w": jnp.ones((2, 2)), "n": jnp.arange(2)}
    full = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    mask = masks.path("scale")
    for number in (1, 1.0, np.float32(1), jnp.ones(())):
        one, all_of_it = decay.toward(number, 0.5, mask), decay.toward(full, 0.5, mask)
        state = one.init(params)
        assert all(x.shape == () for x in jax.tree.leaves(state.anchor))
        got, want = (
            tx.update(zeros, tx.init(params), params)[0] for tx in (one, all_of_it)
        )
        jax.tree.map(np.testing.assert_array_equal, got, want)
        np.testing.assert_allclose(got["scale"], [-0.25, 1.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_integer_anchors_take_the_dtype_of_the_parameter(dtype):
    """The gradient used to be dropped too."""
    params, u = {"w": jnp.ones(2, dtype)}, {"w": jnp.full(2, 4, dtype)}
    tx = decay.toward({"w": np.array([0, 3])}, 0.5)
    state = tx.init(params)
    assert state.anchor["w"].dtype == dtype
    np.testing.assert_allclose(tx.update(u, state, params)[0]["w"], [4.5, 3.0])


@pytest.mark.parametrize("how", ["plain", "masked", "partition", "MultiSteps"])
def test_no_anchor_where_nothing_decays(how):
    params = {"body": {"w": jnp.ones((512, 512))}, "head": {"w": jnp.ones((8, 8))}}
    mask = masks.path("head/**")
    for tx in (decay.toward_init(0.5, mask), decay.toward(params, 0.5, mask)):
        if how == "masked":
            tx = optax.masked(tx, True)
        if how == "partition":
            tx = optax.partition({"all": tx}, "all")
        if how == "MultiSteps":
            tx = optax.MultiSteps(tx, 2).gradient_transformation()
        moved = jax.tree.map(lambda p: p + 1, params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        state = tx.init(params)
        (anchors,) = (
            x.anchor
            for x in jax.tree.leaves(
                state, is_leaf=lambda x: isinstance(x, optwd.AnchorState)
            )
            if isinstance(x, optwd.AnchorState)
        )
        assert sum(x.nbytes for x in jax.tree.leaves(anchors)) == 4 * 64 + 4
        for _ in range(2 if how == "MultiSteps" else 1):
            updates, state = jax.jit(tx.update)(zeros, state, moved)
        np.testing.assert_allclose(updates["head"]["w"], 0.5)
        assert not updates["body"]["w"].any()


# --- constrained ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_infinite_bound_does_nothing(dtype):
    start, _, directions = trees(dtype)
    got = path_of(decay.constrained(np.inf), start, directions)
    want = path_of(optax.identity(), start, directions)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_tight_bound_is_held():
    """A constant push outwards; without the bound the weights end near 20."""
    push = -0.01 * jnp.sign(jnp.asarray(START))
    directions = jnp.broadcast_to(push, (2000, *push.shape))
    path = path_of(decay.constrained(0.25), 0.1 * jnp.sign(push), directions)
    squares = np.mean(np.square(path), axis=(1, 2))
    assert squares.max() < 0.5
    np.testing.assert_allclose(squares[-1], 0.25, rtol=1e-3)
    free = path_of(decay.constrained(0.25), 0.1 * jnp.sign(push), directions[:20] * 0.01)
    want = path_of(optax.identity(), 0.1 * jnp.sign(push), directions[:20] * 0.01)
    np.testing.assert_array_equal(free, want)  # below the bound


def test_warm_start_takes_the_bound_after_that_step():
    transformation = decay.constrained(warm_start=3, update_rate=0.1)
    params, state = jnp.asarray(START, jnp.float32), transformation.init(jnp.zeros((4, 3)))
    squares = []
    for t in range(5):
        assert np.isinf(state.bound) == (t <= 3)
        assert state.multiplier == 0
        squares.append(np.mean(np.square(params)))
        params, state = step(transformation, params, state, -0.1 * params)
    np.testing.assert_allclose(state.bound, squares[3], rtol=1e-6)
    assert state.multiplier > 0


def test_warm_start_of_0_takes_the_bound_at_once():
    transformation = decay.constrained(warm_start=0)
    _, state = transformation.update(
        jnp.ones(2), transformation.init(0), jnp.array([1.0, 3])
    )
    assert state.bound == 5
    far = jnp.full(2, 1e25)  # whose squares are inf in float32, which says "not taken yet"
    _, state = transformation.update(jnp.zeros(2), transformation.init(far), far)
    assert state.bound == jnp.finfo(jnp.float32).max


def test_bound_is_per_tensor():
    params = {
        "small": 0.1 * jnp.ones(3),
        "large": 10 * jnp.ones((2, 2)),
        "off": jnp.ones(2),
    }
    transformation = decay.constrained(
        0.5, {"small": True, "large": True, "off": False}, update_rate=1e-3
    )
    u, state = transformation.update(
        jax.tree.map(jnp.zeros_like, params), transformation.init(params), params
    )
    np.testing.assert_allclose(state.multiplier["large"], 1e-3 * 99.5, rtol=1e-6)
    np.testing.assert_allclose(u["large"], 2 * 1e-3 * 99.5 * 10, rtol=1e-6)
    for name in ("small", "off"):
        assert state.multiplier[name] == 0
        assert not u[name].any()


def test_statistic_does_not_depend_on_the_size_of_a_tensor():
    for shape in ((2,), (300, 400)):
        params = 2 * jnp.ones(shape)
        transformation = decay.constrained(3.9)
        u, state = transformation.update(
            jnp.zeros(shape), transformation.init(params), params
        )
        np.testing.assert_allclose(state.multiplier, 0.1, rtol=1e-5)
        np.testing.assert_allclose(u, 0.4, rtol=1e-5)


# --- fixed points --------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.1, 0.4])
def test_fixed_points_under_a_constant_direction(eta, x64):
    """−u/λ whatever the learning rate; −ηu/λ, which moves with it, when independent."""
    u, lam = jnp.array([1.0, -2.0]), 0.25
    scaled = optax.chain(decay.linear(lam), optax.scale(eta))
    independent = optax.chain(optax.scale(eta), decay.linear(lam))
    directions = jnp.broadcast_to(u, (1200, 2))
    for transformation, fixed in ((scaled, -u / lam), (independent, -eta * u / lam)):
        path = path_of(transformation, jnp.zeros(2), directions)
        np.testing.assert_allclose(path[-1], fixed, rtol=1e-12)


# --- cost and state ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "cautious", "proximal", "toward_init"])
def test_no_temporary_of_the_size_of_the_parameters(name):
    optimizer = optax.chain(
        optwd.scale_by_adam(), getattr(decay, name)(0.1), optax.scale_by_learning_rate(1e-3)
    )

    def train_step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    leaf = jax.ShapeDtypeStruct((1 << 20,), jnp.float32)
    state = jax.eval_shape(optimizer.init, leaf)
    compiled = jax.jit(train_step, donate_argnums=(0, 1)).lower(leaf, state, leaf).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (1 << 20) / 100


SAVED = {
    "toward_init": lambda: decay.toward_init(0.1),
    "constrained": lambda: decay.constrained(0.1),
    "warm start": lambda: decay.constrained(warm_start=2),
}


@pytest.mark.parametrize("make", cases(SAVED, {"warm start"}))
def test_orbax_round_trip(make, tmp_path):
    ocp, transformation = pytest.importorskip("orbax.checkpoint"), make()
    start, _, directions = trees(jnp.float32)
    first = jax.tree.map(lambda u: u[0], directions)
    params, state = step(transformation, start, transformation.init(start), first)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        like = jax.eval_shape(transformation.init, start)
        restored = checkpointer.restore(tmp_path / "state", like)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    got, want = (step(transformation, params, s, first)[0] for s in (restored, state))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@every_rule
def test_a_masked_leaf_keeps_every_bit(make, expected):
    u, p = jnp.array([-0.0, np.nan, 2.0, 1.0]), jnp.array([1.0, 1.0, np.inf, np.nan])
    transformation = make(0.1, False, jnp.zeros(4))
    got, _ = transformation.update(u, transformation.init(p), p)
    np.testing.assert_array_equal(*(np.asarray(x).view(np.uint32) for x in (got, u)))


def test_a_rule_is_freed_with_its_transformation():
    class Captured:
        pass

    captured = Captured()
    alive = weakref.ref(captured)

    def rule(u, p, rho, captured=captured):
        return u + rho * p

    tx, theta = decay.from_rule(rule, 0.1), jnp.ones(2)
    update = jax.jit(tx.update)
    update(theta, tx.init(theta), theta)
    tx.update(theta, tx.init(theta), theta)
    assert alive() is not None
    del tx, update, rule, captured
    gc.collect()
    assert alive() is None


# --- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either bound or warm_start, got bound=None, warm_start=None"),
        ({"bound": 1.0, "warm_start": 3}, "either .* got bound=1.0, warm_start=3"),
        ({"bound": -1.0}, r"bound must be in \[0, inf\], got -1.0"),
        ({"bound": np.nan}, r"bound must be in \[0, inf\], got nan"),
        ({"warm_start": -1}, "warm_start must be a number of steps ≥ 0, got -1"),
        ({"warm_start": 1.5}, "warm_start must be .* got 1.5"),
        ({"warm_start": True}, "warm_start must be .* got True"),
    ],
)
def test_constrained_is_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        decay.constrained(**arguments)


@pytest.mark.parametrize(
    ("anchor", "message"),
    [
        ({"w": jnp.ones(2)}, "only in the parameters: b"),
        ({"w": jnp.ones(2), "b": jnp.ones(3), "c": 0}, "only in the anchor: c"),
        ({"w": jnp.ones(3), "b": jnp.ones(3)}, r"w: .*\(2,\), the anchor \(3,\)"),
        ({"w": None, "b": jnp.ones(3)}, r"w: .*\(2,\), the anchor None"),
        ({"w": {"x": jnp.ones(2)}, "b": jnp.ones(3)}, r"w: .*the anchor \{'x': \(2,\)\}"),
        ([], "one number, or a tree like the parameters: only in the parameters: b, w"),
        (np.nan, "one finite number, or a tree like the parameters, got nan"),
    ],
)
def test_anchors_are_checked_at_init(anchor, message):
    with pytest.raises(ValueError, match=message):
        decay.toward(anchor, 0.1).init({"w": jnp.ones(2), "b": jnp.ones(3)})


def test_complex_anchors_of_real_weights_are_refused():
    with pytest.raises(TypeError, match="w: the parameter is of dtype float32, the anchor"):
        decay.toward({"w": 1j * jnp.ones(2)}, 0.1).init({"w": jnp.ones(2)})


VECTORS = {"vectors": masks.ndim(1)}


@pytest.mark.parametrize(
    "value", cases({"negative": -0.1, "nan": np.nan, "inf": np.inf}, {"nan"})
)
@pytest.mark.parametrize(
    "make",
    [
        *(decay.linear, optwd.add_l2, decay.toward_init, optwd.sgdw, optwd.adam),
        lambda rate: decay.constrained(warm_start=3, update_rate=rate),  # also before that
        lambda rate: optwd.monitor_rotation(rate, 0.1, groups=VECTORS),
        lambda rate: optwd.monitor_rotation(0.1, rate, groups=VECTORS),
    ],
)
def test_what_a_schedule_returns_is_checked(make, value):
    """The first value at init, also under jit and eval_shape; others if concrete."""
    params = jnp.ones(2)
    first = make(lambda t: jnp.where(t == 0, value, 0.1))
    for init in (
        first.init,
        jax.jit(first.init),
        functools.partial(jax.eval_shape, first.init),
    ):
        with pytest.raises(
            ValueError, match=rf"at step 0 must be in \[0, inf\), got .*{value}"
        ):
            init(params)
    later = make(lambda t: jnp.where(t == 2, value, 0.1))
    state = later.init(params)
    for _ in range(2):
        _, state = later.update(params, state, params)
    with pytest.raises(ValueError, match="at step 2 must be in"):
        later.update(params, state, params)
    jax.jit(later.update)(params, state, params)  # which cannot know


def test_warm_start_may_be_of_numpy_or_injected():
    params = jnp.asarray(START, jnp.float32)
    make = functools.partial(decay.constrained, update_rate=0.1)
    want = make(warm_start=5)
    for tx in (
        make(warm_start=np.int64(5)),
        make(warm_start=jnp.int32(5)),
        optax.inject_hyperparams(decay.constrained)(warm_start=5, update_rate=0.1),
    ):
        directions = jnp.asarray(DIRECTIONS[:10], jnp.float32)
        got, expected = (path_of(x, params, directions) for x in (tx, want))
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
