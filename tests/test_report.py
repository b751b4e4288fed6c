"""What is shown of a mask and of a step.

- `tabulate` prints one row a leaf, the same every time: who decays, which pattern decided,
  how fast, and where rounding would undo it.
- `monitor` measures what a transformation did, `monitor_rounding` the share of elements
  that a step leaves where they are; neither changes a bit of the step.
- `metrics` finds both at any depth of a state, and what is off is absent.
"""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optwd
from optwd import decay, masks, metrics, monitor, monitor_rounding, tabulate

PARAMS = {
    "embed": {"embedding": jnp.ones((10, 4), jnp.bfloat16)},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    "steps": jnp.ones((), jnp.int32),
}


# --- tabulate ------------------------------------------------------------------------


def test_the_table_in_full():
    mask = masks.multipliers({"head/kernel": 100.0, "**/embedding": 0.1})
    assert tabulate(PARAMS, mask, weight_decay=0.1, learning_rate=1e-3).splitlines() == [
        "leaf             shape    dtype     elements  decay  decided by          "
        "per step  half-life",
        "embed/embedding  (10, 4)  bfloat16        40    0.1  **/embedding        "
        " ! 1e-05     69,314",
        "head/bias        (2,)     float32          2      –  default             "
        "       –          –",
        "head/kernel      (4, 2)   float32          8    100  head/kernel         "
        "    0.01         69",
        "steps            ()       int32            1      –  not floating point  "
        "       –          –",
        "decayed: 2 leaves, 48 elements; not decayed: 2 leaves, 3 elements",
        "! 1 bfloat16: below half an ulp (0.0039), so plain rounding undoes the decay of "
        "some weights or all; see optwd.compensate_rounding",
    ]


def test_without_rates_there_are_no_rates():
    table = tabulate(PARAMS)
    assert table.splitlines()[0].split() == [
        "leaf",
        "shape",
        "dtype",
        "elements",
        "decay",
        "decided",
        "by",
    ]
    assert table.splitlines()[-1].startswith("decayed: 3 leaves, 50 elements")
    assert table == tabulate(jax.eval_shape(lambda: PARAMS))
    assert tabulate({}) == (
        "leaf  shape  dtype  elements  decay  decided by\n"
        "decayed: 0 leaves, 0 elements; not decayed: 0 leaves, 0 elements"
    )


def test_undecided_leaves_are_listed():
    lines = tabulate({"A_log": jnp.ones((3, 2))}, masks.standard(), weight_decay=1.0)
    assert lines.splitlines()[1].split()[-4:] == ["?", "undecided", "–", "–"]
    assert lines.splitlines()[2].endswith("undecided: 1 leaf, 6 elements")
    with pytest.raises(masks.MaskError, match="nearest: A_log"):
        tabulate({"A_log": jnp.ones(3)}, masks.path("A_lag"))


@pytest.mark.parametrize(
    ("rate", "half_life"),
    [(1e-4, "6,931"), (0.5, "1"), (0.75, "0.5"), (1.0, "0"), (1.1, "flips")],
)
def test_half_life(rate, half_life):
    table = tabulate({"w": 1.0}, weight_decay=rate)
    assert table.splitlines()[1].split()[-1] == half_life
    if rate < 1:  # by its definition
        steps = np.log(0.5) / np.log1p(-rate)
        assert float(half_life.replace(",", "")) == pytest.approx(steps, rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_warning_begins_where_rounding_begins_to_lose(dtype):
    """Above half an ulp every weight moves; below, some weight does not."""
    eps = float(jnp.finfo(dtype).eps)
    weights, half = jnp.asarray([1.0, 1 + eps, 1.5, 2 - eps], dtype), eps / 2
    for rate, warned in ((half * 0.9, True), (half, False), (half * 1.1, False)):
        exact = np.asarray(weights, np.float64) * (1 - rate)
        moved = exact.astype(weights.dtype) != np.asarray(weights)
        assert (not moved.all()) == warned
        assert ("!" in tabulate({"w": weights}, weight_decay=rate)) == warned


def test_bad_rates():
    with pytest.raises(ValueError, match="give both"):
        tabulate(PARAMS, learning_rate=0.1)
    with pytest.raises(ValueError, match="weight_decay must be in"):
        tabulate(PARAMS, weight_decay=-0.1)
    with pytest.raises(TypeError, match="learning_rate must be a real number"):
        tabulate(PARAMS, weight_decay=0.1, learning_rate=optax.constant_schedule(0.1))


def test_a_terminal_gets_colour_and_the_same_words(monkeypatch):
    pytest.importorskip("rich")
    params = {**PARAMS, "A_log": jnp.ones((3, 2))}
    plain = tabulate(params, masks.standard(), weight_decay=0.1)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", Terminal())
    from rich.text import Text

    coloured = tabulate(params, masks.standard(), weight_decay=0.1)
    assert "\x1b[31m" in coloured  # red
    shown = Text.from_ansi(coloured).plain.splitlines()
    assert [line.rstrip() for line in shown] == plain.splitlines()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tabulate(params, masks.standard(), weight_decay=0.1) == plain


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


def test_the_tour_tells_the_same_of_every_framework():
    pytest.importorskip("haiku")
    pytest.importorskip("equinox")
    import masks_tour

    *frameworks, weighted = masks_tour.main([]).values()
    assert len(frameworks) == 4
    for table in frameworks:  # the attention of Equinox has no biases by default
        assert "decayed: 5 leaves, 1,056 elements; not decayed: " in table
    assert "decayed: 6 leaves, 1,856 elements; not decayed: 7 leaves, 148 " in weighted
