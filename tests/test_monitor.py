"""What is measured of a step.

- `monitor` measures what a transformation did, `monitor_rounding` the share of elements
  that a step leaves where they are; neither changes a bit of the step.
- All monitors record under scan, vmap and MultiSteps what they record step by step.
- `metrics` finds both at any depth of a state, and what is off is absent.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optwd
from optwd import decay, metrics, monitor, monitor_rounding
from tests.helpers import cases

PARAMS = {
    "embed": {"embedding": jnp.ones((10, 4), jnp.bfloat16)},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    "steps": jnp.ones((), jnp.int32),
}


# --- monitor -------------------------------------------------------------------------

THETA = {
    "w": jnp.array([3.0, 4.0]),
    "b": jnp.array([12.0], jnp.bfloat16),
    "n": jnp.ones((), int),
}
U = {
    "w": jnp.array([0.0, 2.0]),
    "b": jnp.array([1.0], jnp.bfloat16),
    "n": jnp.ones((), int),
}


def monitored(weight_decay=0.5, mask=None):
    return monitor(decay.linear(weight_decay, mask), "decay")


@pytest.mark.parametrize(("u", "lost"), [(-0.003, 0), (0.003, 1), (0.0, 0)])
def test_one_weight_of_1_is_lost_upwards_only(u, lost):
    """Its spacing is 1/256 below and 1/128 above."""
    tx, theta = monitor_rounding(), jnp.ones(1, jnp.bfloat16)
    _, state = tx.update(jnp.full(1, u), tx.init(theta), theta)
    assert metrics(state)["rounding/lost"] == lost


def test_a_monitor_measures_and_changes_nothing():
    tx = monitored()
    u, state = tx.update(U, tx.init(THETA), THETA)
    expected, inner = decay.linear(0.5).update(U, decay.linear(0.5).init(THETA), THETA)
    jax.tree.map(np.testing.assert_array_equal, (u, state.inner), (expected, inner))
    norm_in, added = 5**0.5, 0.5 * 13
    got = metrics(state)
    assert sorted(got) == ["decay/norm_added", "decay/norm_in", "decay/ratio"]
    assert all(value.shape == () and value.dtype == jnp.float32 for value in got.values())
    np.testing.assert_allclose(got["decay/norm_in"], norm_in, rtol=1e-6)
    np.testing.assert_allclose(got["decay/norm_added"], added, rtol=1e-6)
    np.testing.assert_allclose(got["decay/ratio"], added / norm_in, rtol=1e-6)


def test_norms_of_complex_low_precision_and_missing_leaves():
    u = {"c": jnp.array([3 + 4j]), "h": jnp.full(10, 300, jnp.float16), "x": None}
    u["f0"] = np.zeros(3, jax.dtypes.float0)
    tx = monitor(optax.identity(), "same")
    _, state = tx.update(u, tx.init(u))
    np.testing.assert_allclose(metrics(state)["same/norm_in"], (25 + 9e5) ** 0.5, rtol=1e-6)
    assert metrics(state)["same/ratio"] == 0.0
    _, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)))
    assert metrics(state)["same/ratio"] == 0.0  # and not 0/0
    tx = monitor(decay.linear(1.0), "from nothing")
    _, state = tx.update(jnp.zeros(2), tx.init(jnp.zeros(2)), jnp.ones(2))
    assert metrics(state)["from nothing/ratio"] == np.inf


def test_one_trace_and_a_fixed_state():
    tx = optax.chain(
        optwd.scale_by_adam(), monitored(), optax.scale(-1), monitor_rounding()
    )
    theta = {"w": jnp.ones(3), "b": jnp.ones(2, jnp.bfloat16)}
    state, traces = tx.init(theta), []

    @jax.jit
    def step(state, theta):
        traces.append(1)
        u, state = tx.update(theta, state, theta)
        return state, optax.apply_updates(theta, u)

    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state)
    for _ in range(3):
        state, theta = step(state, theta)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), state) == before
    assert len(traces) == 1
    again = jax.lax.fori_loop(0, 3, lambda _, s: tx.update(theta, s, theta)[1], state)
    assert jax.tree.structure(again) == jax.tree.structure(state)


def test_off_means_absent():
    def program(tx):
        state = tx.init(THETA)
        return jax.jit(tx.update).lower(U, state, THETA).compile().as_text()

    plain, watched = program(decay.linear(0.5)), program(monitored())
    assert "reduce" not in plain
    assert "reduce" in watched
    assert metrics(decay.linear(0.5).init(THETA)) == {}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("wide", [False, True])
def test_rounding_against_apply_updates(dtype, wide):
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.normal(size=999), dtype)
    eps = float(jnp.finfo(dtype).eps)
    u = jnp.asarray(rng.normal(size=999) * eps / 2).at[:100].set(0.0)
    u = u.astype(jnp.float32 if wide else dtype)
    new = optax.apply_updates(theta, u)
    lost = np.mean(np.asarray(new == theta) & np.asarray(u != 0))
    tx = monitor_rounding()
    got, state = jax.jit(tx.update)(u, tx.init(theta), theta)
    np.testing.assert_array_equal(got, u)
    assert 0.1 < lost < 0.9
    np.testing.assert_allclose(metrics(state)["rounding/lost"], lost, rtol=1e-6)


def test_rounding_of_a_tree_counts_elements():
    theta = {
        "lost": jnp.ones(6, jnp.bfloat16),
        "moved": jnp.ones((3, 3)),
        "complex": jnp.ones(1, jnp.complex64),
        "frozen": None,
        "steps": jnp.ones(100, int),
        "no gradient": jnp.ones(100),
    }
    u = jax.tree.map(lambda x: jnp.full_like(x, 1e-4), theta) | {"no gradient": None}
    tx = monitor_rounding()
    _, state = tx.update(u, tx.init(theta), theta)
    np.testing.assert_allclose(metrics(state)["rounding/lost"], 6 / 16, rtol=1e-6)
    _, state = tx.update({}, tx.init({}), {})
    assert metrics(state)["rounding/lost"] == 0.0
    with pytest.raises(ValueError, match="monitor_rounding needs the parameters"):
        tx.update(u, state)


WRAPPERS = {
    "chain": lambda tx: optax.chain(optax.scale(1), optax.chain(tx)),
    "in_float32": optwd.in_float32,
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.identity()}, {"w": "a", "b": "b"}
    ),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "inject": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(rate=0.5),
    "with_weight_decay": lambda tx: optwd.with_weight_decay(optax.identity(), tx),
    "monitor": lambda tx: monitor(optax.chain(tx), "outer"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_metrics_are_found_at_any_depth(wrapper):
    theta = {"w": jnp.array([3.0, 4.0]), "b": jnp.zeros(1)}
    tx = WRAPPERS[wrapper](monitored())
    state = tx.init(theta)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    for _ in range(2):
        _, state = jax.jit(tx.update)(zeros, state, theta)
    got = metrics({"step": 3, "optimizer": state})
    np.testing.assert_allclose(got["decay/norm_added"], 2.5, rtol=1e-6)
    optax.tree.map_params(tx, lambda x: x, state)


def test_metrics_of_an_nnx_optimizer():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = optax.chain(monitored(), optax.scale(-1), monitor_rounding())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)

    expected = 0.5 * float(jnp.linalg.norm(model.kernel[...]))
    step(model, optimizer)
    for state in (optimizer, optimizer.opt_state):
        got = metrics(state)
        assert sorted(got)[-1] == "rounding/lost"
        assert all(isinstance(value, jax.Array) for value in got.values())
        np.testing.assert_allclose(got["decay/norm_added"], expected, rtol=1e-6)


def test_names_must_differ():
    tx = optax.chain(monitored(), monitored())
    with pytest.raises(ValueError, match="two monitors record 'decay/norm_in'"):
        metrics(tx.init(THETA))
    for bad in ("", None, 3):
        with pytest.raises(ValueError, match="name must be a string"):
            monitor(optax.identity(), bad)


def test_a_monitor_passes_extra_arguments():
    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda u: u * value, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
    tx = monitor(inner, "scaled")
    u, state = tx.update(jnp.ones(4), tx.init(jnp.ones(4)), value=3.0)
    np.testing.assert_array_equal(u, 3.0)
    assert metrics(state)["scaled/norm_added"] == 4.0


def all_monitors():
    rate = optax.linear_schedule(0.1, 0.2, 10)
    parts = (
        optwd.trace(0.9),
        monitor(decay.linear(0.5), "decay.linear"),
        optax.scale_by_learning_rate(rate),
        optwd.monitor_rotation(rate, 0.5, stacked="stack"),
        monitor_rounding(),
    )
    return optwd.monitor_decay(optax.chain(*parts), "all decay")


@pytest.mark.slow
def test_scan_vmap_and_multi_steps():
    """Each of three steps records what it records in a loop of jitted steps."""
    tx, members, rng = all_monitors(), 2, np.random.default_rng(0)
    shapes = {"w": (3, 4), "stack": (2, 3, 3), "b": (5,)}

    def normal(*axes):
        return {k: rng.normal(size=axes + s).astype(np.float32) for k, s in shapes.items()}

    start, gradients, noise = normal(members), normal(members, 3), normal(members, 3)
    start["b"] = jnp.asarray(start["b"], jnp.bfloat16)

    def step(carry, g, tx=tx):
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), metrics(state)

    def run(params, gradients):
        return jax.lax.scan(step, (params, tx.init(params)), gradients)[1]

    scanned = jax.jit(jax.vmap(run))(start, gradients)
    assert len(scanned) == 3 + 3 + 1 + 5
    jitted, twice = jax.jit(step), optax.MultiSteps(tx, 2)
    two = jax.jit(lambda carry, g: step(carry, g, twice))
    for i in range(members):
        params, gs, ns = jax.tree.map(lambda x, i=i: x[i], (start, gradients, noise))
        carry, slow = (params, tx.init(params)), (params, twice.init(params))
        for t in range(3):
            g, n = jax.tree.map(lambda x, t=t: x[t], (gs, ns))
            before, (carry, want) = slow[1].inner_opt_state, jitted(carry, g)
            for name, value in want.items():
                np.testing.assert_allclose(scanned[name][i, t], value, rtol=2e-6)
            slow, _ = two(slow, jax.tree.map(jnp.add, g, n))
            same = metrics(slow[1]), metrics(before)  # nothing is applied, or recorded
            jax.tree.map(np.testing.assert_array_equal, *same)
            slow, got = two(slow, jax.tree.map(jnp.subtract, g, n))
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


# --- NaN ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_a_number_stays_so(bad):
    tx, theta = monitor(decay.linear(0.1), "decay"), jnp.ones(2)
    _, state = tx.update(jnp.array([bad, 1.0]), tx.init(theta), theta)
    assert not np.isfinite(metrics(state)["decay/norm_in"])
    assert np.isnan(metrics(state)["decay/ratio"])
    assert np.isnan(metrics(state)["decay/norm_added"])


def test_nothing_is_divided_by_nothing():
    tx, theta = monitor(decay.linear(0.1), "decay"), jnp.zeros(2)
    with jax.debug_nans(True):
        state = tx.init(theta)
        _, state = tx.update(jnp.zeros(2), state, theta)
    assert metrics(state)["decay/ratio"] == 0
    _, state = tx.update(jnp.zeros(2), state, jnp.ones(2))  # decay alone
    assert metrics(state)["decay/ratio"] == np.inf


# --- the decay inside a finished optimizer -----------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda wd: optwd.adamw(0.01, weight_decay=wd),
        lambda wd: optwd.sgdw(0.01, 0.9, weight_decay=wd),
        lambda wd: optax.adamw(0.01, weight_decay=wd),
        lambda wd: optax.lion(0.01, weight_decay=wd),
    ],
    ids=["adamw", "sgdw", "optax.adamw", "optax.lion"],
)
def test_the_share_of_decay(make):
    rng = np.random.default_rng(0)
    theta = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(3)}
    plain, tx = make(0.1), optwd.monitor_decay(make(0.1))
    state, bare = tx.init(theta), plain.init(theta)
    step = jax.jit(tx.update)
    for seed in range(3):
        g = jax.tree.map(lambda p, seed=seed: jnp.sin(p * 7 + seed), theta)
        u, state = step(g, state, theta)
        expected, bare = plain.update(g, bare, theta)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), u, expected)
        flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(theta)])
        recorded = metrics(state)
        np.testing.assert_allclose(
            recorded["decay/norm_added"], 0.01 * 0.1 * np.linalg.norm(flat), rtol=1e-4
        )
        np.testing.assert_allclose(
            recorded["decay/ratio"],
            recorded["decay/norm_added"] / recorded["decay/norm_in"],
            rtol=1e-6,
        )
        theta = optax.apply_updates(theta, u)


def test_the_state_of_a_coupled_optimizer_has_seen_the_weights():
    tx = optwd.monitor_decay(optwd.sgd_l2(0.1, momentum=0.9, l2=0.5))
    theta = jnp.ones(2)
    _, state = tx.update(3 * theta, tx.init(theta), theta)
    np.testing.assert_array_equal(optax.tree.get(state, "trace"), 3.5)  # g + λθ


@pytest.mark.parametrize("state", [1.0, optax.adam(0.1), jnp.ones(3)])
def test_metrics_of_no_state(state):
    with pytest.raises(TypeError, match=r"the state of an optimizer, .* got "):
        metrics(state)


# --- pmap --------------------------------------------------------------------------------

MEASURING = {
    "monitor": monitor(decay.linear(0.1), "decay"),
    "monitor_rounding": monitor_rounding(),
    "monitor_rotation": optwd.monitor_rotation(0.1, 0.1),
    "decay.constrained": decay.constrained(0.1, update_rate=0.1),
    "decay.to_norm": decay.to_norm(0.5, radius=1.0),
    "scale_by_weight_norm": optwd.scale_by_weight_norm(),
    "compat.timm.adamw": optwd.compat.timm.adamw(0.1, caution=True),
}


QUICK = {"monitor", "compat.timm.adamw"}


@pytest.mark.parametrize("name", cases({n: n for n in MEASURING}, QUICK))
def test_pmap_measures_replicated_leaves_if_told_so(name):
    """Refused before and after: what was traced for one is not used for the other."""
    tx = MEASURING[name]
    theta, g = jnp.array([[3.0, -4.0]]), jnp.array([[0.5, 0.25]])
    expected = jax.jit(tx.update)(g, tx.init(theta), theta)

    def inside(tx):
        step = jax.pmap(lambda g, p: tx.update(g, tx.init(p), p))
        return jax.tree.map(lambda x: x[0], step(g[None], theta[None]))

    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"^{name}.* wrap the optimizer in optwd.repl"
        ):
            inside(tx)
        for a, b in zip(
            jax.tree.leaves(inside(optwd.replicated(tx))),
            jax.tree.leaves(expected),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)
