"""The cases that go wrong silently elsewhere, for every optimizer that they apply to.

Those that one module alone decides are in that module's test. Here:

- float16 gradients of 0, 1e-4, 3e-3 and 300: no NaN, no infinity, and a step of ±η;
- a learning rate of any dtype, as a number or a schedule, widens nothing, also under x64
  and strict promotion; `inject_hyperparams` on bfloat16 parameters;
- one NaN or infinite gradient: as in Optax, and harmless inside of its guards;
- a meta-gradient at g = 0 is finite; the first step of a schedule is 0; a count at its
  largest stays; a changing integer leaf costs no trace; the domain is in the docstring.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from tests.helpers import each
from tests.registry import ALL, OPTIMIZERS, Entry


def takes(*names):
    return [e for e in ALL if set(names) <= set(inspect.signature(e.factory).parameters)]


ADAMS = takes("b2")
every, every_adam, every_optimizer = map(each, (ALL, ADAMS, OPTIMIZERS))


def without_decay(entry, **changes):
    return entry.make(**({entry.decay: 0.0} if entry.decay else {}), **changes)


def first_update(transformation, gradients, params):
    return transformation.update(gradients, transformation.init(params), params)[0]


def test_the_table_holds_what_these_tests_ask_for():
    assert {"adamw", "amsgrad", "nadam", "scale_by_adam"} <= {e.name for e in ADAMS}


# --- float16 -------------------------------------------------------------------------


@every
@pytest.mark.parametrize("eps", [{}, {"eps": 0.0}], ids=["eps", "eps=0"])
def test_float16_gradient_of_zero(entry: Entry, eps):
    if entry in ADAMS or not eps:
        transformation, p = without_decay(entry, **eps), jnp.ones(3, jnp.float16)
        state = transformation.init(p)
        for _ in range(3):
            u, state = transformation.update(jnp.zeros(3, jnp.float16), state, p)
            np.testing.assert_array_equal(u, 0)


@every_adam
@pytest.mark.parametrize("params", [jnp.float16, jnp.float32])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_float16_gradients_step_as_float32_ones_do(entry: Entry, params, eps):
    """That Adam's step is then ±1 times the learning rate stands in test_moments."""
    g, p = jnp.asarray([1e-4, -3e-3, 300.0], jnp.float16), jnp.ones(3, params)
    u = first_update(without_decay(entry, eps=eps), g, p)
    expected = first_update(without_decay(entry, eps=eps), np.float32(g), np.float32(p))
    assert u.dtype == (params if entry.optimizer else jnp.float16)
    assert np.all(expected != 0)
    # one rounding to float16, whose spacing is 6e-8 below 6e-5
    np.testing.assert_allclose(np.float64(u), expected, rtol=2**-11, atol=3e-8)


# --- dtypes --------------------------------------------------------------------------

RATES = [
    jnp.float32(0.1),
    jnp.bfloat16(0.1),
    np.float64(0.1),
    jnp.asarray(0.1, jnp.float16),
]


@every_optimizer
def test_a_learning_rate_of_any_dtype(entry: Entry, x64):
    """Traced for every rate, as a number and as a schedule; run for all in one program."""
    p = {"w": jnp.ones(3, jnp.bfloat16), "v": jnp.ones(3, jnp.float32)}

    def first(given):
        optimizer = entry.make(learning_rate=given)
        state = optimizer.init(p)
        u, new = optimizer.update(p, state, p)
        types = jax.tree.map(lambda x: jnp.result_type(x), (state, new))
        assert types[0] == types[1]
        assert jax.tree.map(jnp.result_type, u) == jax.tree.map(jnp.result_type, p)
        return u

    for strict in ("strict", "standard"):
        with jax.numpy_dtype_promotion(strict):
            for rate in RATES:
                jax.eval_shape(first, rate)
                jax.eval_shape(lambda rate=rate: first(lambda t: rate))
    with jax.numpy_dtype_promotion("strict"):
        got = jax.jit(lambda: [first(lambda t, rate=rate: rate) for rate in RATES])()
    expected = jax.jit(lambda: [first(float(rate)) for rate in RATES])()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(np.float64(x), np.float64(y), rtol=2**-8),
        got,
        expected,
    )


@every_optimizer
def test_inject_hyperparams_on_bfloat16(entry: Entry):
    p, g = jnp.ones(4, jnp.bfloat16), jnp.asarray([1, -2, 0, 3], jnp.bfloat16)
    make = optax.inject_hyperparams(entry.factory, hyperparam_dtype=jnp.float32)
    u = first_update(make(**entry.arguments), g, p)
    assert u.dtype == jnp.bfloat16
    expected = first_update(entry.make(), g, p)
    np.testing.assert_allclose(np.float32(u), np.float32(expected), rtol=2**-8)
    if entry in ADAMS:  # in bfloat16 b2 = 0.999 is 1
        with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got .*1"):
            optax.inject_hyperparams(entry.factory)(**entry.arguments).init(p)


@every
def test_an_integer_leaf_costs_no_trace(entry: Entry):
    transformation, traces = entry.make(), []

    @jax.jit
    def step(params, state, gradients):
        traces.append(1)
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.ones(2), "n": jnp.arange(3), "flag": jnp.array(True)}
    gradients = {**params, "n": jnp.ones(3, int), "flag": jnp.array(False)}
    state = transformation.init(params)
    for _ in range(3):
        params, state = step(params, state, gradients)
    assert len(traces) == 1
    np.testing.assert_array_equal(params["n"], np.arange(3))
    assert params["flag"]


# --- gradients that are no numbers ---------------------------------------------------

LIKE_OPTAX = {
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
    "amsgrad": lambda: optax.amsgrad(0.01),
    "nadam": lambda: optax.nadam(0.01),
    "nadamw": lambda: optax.nadamw(0.01, weight_decay=0.1),
    "scale_by_adam": optax.scale_by_adam,
    "scale_by_amsgrad": optax.scale_by_amsgrad,
    "trace": lambda: optax.trace(0.9),
}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LIKE_OPTAX)
def test_a_bad_gradient_spoils_what_it_spoils_in_optax(name, bad):
    (ours,) = (entry.make() for entry in ALL if entry.name == name)
    theirs, p, ends = LIKE_OPTAX[name](), jnp.ones(2), []
    for transformation in (ours, theirs):
        state = transformation.init(p)
        for g in (1.0, bad, 1.0, 1.0):
            u, state = transformation.update(jnp.array([1.0, g]), state, p)
        ends.append(np.asarray(u))
    np.testing.assert_array_equal(np.isfinite(ends[0]), np.isfinite(ends[1]))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=2e-5)


@every_optimizer
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_skip_not_finite(entry: Entry, bad):
    guarded = optax.MultiSteps(entry.make(), 1, should_skip_update_fn=optax.skip_not_finite)
    plain, p, g = entry.make(), jnp.ones(2), jnp.array([1.0, -2.0])
    state = guarded.init(p)
    u, skipped = guarded.update(jnp.array([1.0, bad]), state, p)
    np.testing.assert_array_equal(u, 0)
    inner = (state.inner_opt_state, skipped.inner_opt_state)
    jax.tree.map(np.testing.assert_array_equal, *inner)
    u, _ = guarded.update(g, skipped, p)
    np.testing.assert_allclose(u, first_update(plain, g, p), rtol=1e-6)


@every
def test_meta_gradient_at_zero_is_finite(entry: Entry):
    transformation = entry.make(**({"eps": 1e-3} if entry in ADAMS else {}))

    def loss(g, p):
        state = transformation.init(p)
        for _ in range(2):
            u, state = transformation.update(g, state, p)
        return (u**2).sum() + u.sum()

    for gradient in jax.grad(loss, (0, 1))(jnp.zeros(2), jnp.zeros(2)):
        assert np.isfinite(gradient).all()


def test_the_meta_gradient_where_the_next_weights_are_0():
    """There `to_norm` returns the direction as it is."""
    tx, p = optwd.decay.to_norm(radius=0.7), jnp.array([1.0, -2.0])
    state = tx.init(p)
    gradients = jax.grad(lambda u, p: tx.update(u, state, p)[0].sum(), (0, 1))(p, p)
    np.testing.assert_array_equal(gradients, [[1, 1], [0, 0]])


# --- steps ---------------------------------------------------------------------------


@every
def test_the_first_step_of_a_schedule_is_0(entry: Entry):
    names = {"learning_rate", entry.decay} & set(
        inspect.signature(entry.factory).parameters
    )
    for name in names:
        seen = []
        transformation = entry.make(**{name: lambda t, seen=seen: seen.append(t) or 0.1})
        p = jnp.ones(2)
        state = transformation.init(p)
        for _ in range(3):
            _, state = transformation.update(p, state, p)
        assert sorted({int(t) for t in seen}) == [0, 1, 2]
        assert list(map(int, seen)) == sorted(map(int, seen))


@every
def test_a_count_at_its_largest_stays(entry: Entry):
    largest = 2**31 - 1
    transformation, p = entry.make(), {"w": jnp.ones(2, jnp.bfloat16), "v": jnp.ones(2)}

    def counts(state):
        return [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32 and x.shape == ()]

    state = jax.tree.map(
        lambda x: jnp.int32(largest) if x.dtype == jnp.int32 else x, transformation.init(p)
    )
    u, new = jax.jit(transformation.update)(p, state, p)
    assert all(count == largest for count in counts(new))
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(u))


# --- documented ----------------------------------------------------------------------


def test_the_domain_is_in_the_docstring():
    said = " ".join(optwd.scale_by_adam.__doc__.split())
    assert "up to 1.8e19" in said
    assert "Clip, or wrap the optimizer in ``optax.apply_if_finite``" in said
    assert "within 1e-5 for ``b2 = 0.999``" in said  # where b is traced
    said = " ".join(optwd.decay.constrained.__doc__.split())
    assert "weights at most halve in a step" in said
    assert "1, which is made for initial weights of common size" in said
    said = " ".join(optwd.decay.__doc__.split())
    assert "After the sign flip the weights grow" in said
    assert "with_weight_decay" in said


# --- what goes into a finished optimizer, and comes out ----------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "make", [optwd.adam, optwd.adamw, optwd.sgdw], ids=lambda f: f.__name__
)
def test_low_precision_gradients_of_float32_weights(make, dtype):
    """The update is float32, to the last digits, also where float16 would be 0."""
    rate = 1e-8
    p = jnp.asarray([1.0, -2.0, 3.0])
    g = jnp.asarray([1e-3, -3e-2, 30.0], dtype)
    optimizer = make(rate)
    u, _ = optimizer.update(g, optimizer.init(p), p)
    wide, _ = optimizer.update(g.astype(jnp.float32), optimizer.init(p), p)
    assert u.dtype == jnp.float32
    np.testing.assert_array_equal(u, wide)
    assert np.all(np.asarray(u) != 0)


def test_decay_beside_the_low_precision_step_of_another_optimizer():
    """Optax rounds its step; a decay of 1e-4 of that is not rounded away."""
    p, g = jnp.asarray([1.0, -2.0, 3.0]), jnp.ones(3, jnp.bfloat16)
    optimizer = optwd.with_weight_decay(optax.sgd(1.0), optwd.decay.linear(1e-4))
    u, _ = optimizer.update(g, optimizer.init(p), p)
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, -1 - 1e-4 * p, rtol=1e-6)


def test_float32_gradients_of_bfloat16_weights():
    """The update is float32, and not rounded: adding it rounds once, to the weights."""
    g, p = jnp.asarray([1e-3, -3e-2, 30.0]), jnp.asarray([1, -2, 3], jnp.bfloat16)
    optimizer = optwd.sgdw(0.1, weight_decay=0.1)
    u, _ = optimizer.update(g, optimizer.init(p), p)
    wide, _ = optimizer.update(g, optimizer.init(p), p.astype(jnp.float32))
    assert u.dtype == jnp.float32
    np.testing.assert_array_equal(u, wide)


def test_a_gradient_of_none_at_the_root():
    optimizer = optwd.adam(0.1)
    with pytest.raises(ValueError, match="needs a tree of gradients, got None"):
        optimizer.update(None, optimizer.init(jnp.ones(2)), jnp.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x, "decay.linear: the state is of type EmptyState, not DecayState"),
        (optwd.compensate_rounding, "compensate_rounding: .* tuple, not ResidualState"),
        (lambda x: optwd.round_stochastically(x, 0), "round_stochas.* tuple, not KeyState"),
        (lambda x: optwd.monitor(x, "all"), "monitor: .* tuple, not MonitorState"),
        (lambda x: optwd.monitor_decay(x), "monitor_decay: .* tuple, not MonitorState"),
        (lambda x: optwd.monitor_rotation(0.1, 0.1), "monitor_rotation: .* not Monitor"),
    ],
)
def test_the_state_of_another_optimizer(make, message):
    p, tx = jnp.ones(2), make(optwd.adamw(0.1))
    with pytest.raises(TypeError, match=f"{message}.*compat.optax.state_from"):
        tx.update(p, optax.adamw(0.1).init(p), p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optwd.with_weight_decay(optax.lion(0.1), 1e-5), "decay must be a transf"),
        (lambda: optwd.with_weight_decay(1e-5, optax.lion(0.1)), "optimizer must be a tr"),
        (lambda: optwd.adamw("0.1"), "learning_rate must be a number or a schedule"),
    ],
)
def test_arguments_of_the_wrong_kind(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_rule_that_returns_nothing():
    tx = optwd.decay.from_rule(lambda u, p, rho: None, 0.1)
    with pytest.raises(TypeError, match="returned None; a rule returns the new u"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


def test_b2_that_rounded_to_one_names_the_way_out():
    optimizer = optax.inject_hyperparams(optwd.adamw)(0.1)
    with pytest.raises(ValueError, match="hyperparam_dtype"):
        optimizer.init(jnp.ones(2, jnp.bfloat16))


def test_a_learning_rate_of_0_is_what_the_error_names():
    with pytest.raises(ValueError, match=r"^learning_rate=0 leaves nothing to divide"):
        optwd.adamw(0.0, scaled_by="schedule")
    with pytest.raises(ValueError, match=r"^a learning rate of 0 .* give initial_lr"):
        optwd.compat.composer.decoupled_adamw(0.0)
    with pytest.raises(ValueError, match=r"^a learning rate of 0 .* give max_lr"):
        optwd.compat.timm.adamw(0.0, corrected_weight_decay=True)


@pytest.mark.parametrize(
    "make", [lambda: optwd.decay.linear(0.1), optwd.scale_by_adam], ids=["decay", "moments"]
)
def test_a_float0_gradient_gives_zeros_in_the_dtype_of_its_parameter(make):
    p, g = {"n": jnp.ones(2, jnp.int8)}, {"n": np.zeros(2, jax.dtypes.float0)}
    u = first_update(make(), g, p)
    assert u["n"].dtype == jnp.int8
    np.testing.assert_array_equal(u["n"], 0)


def test_a_boolean_is_no_number():
    with pytest.raises(TypeError, match=r"eps must be a real number .* got True"):
        optwd.adamw(0.1, eps=True)
