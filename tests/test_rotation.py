"""Rotation and size of matrices, beside what theory predicts, and what is said of them.

- `monitor_rotation` is the angle between θ and θ + Δ and the root mean square of θ, per
  matrix of a stack, averaged by groups, against NumPy in float64; small angles keep their
  digits; the predictions are those of the learning rate at the step.
- At equilibrium (random gradients, scale-invariant weights) its ratios are 1.
- A step along the weights, which is the hardest to measure, is exact to √eps of its length.
- It changes nothing, keeps its structure, and refuses what it cannot measure; leaves that
  are not trained do not count.
- `diagnose` says each thing that it knows, and nothing else.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import masks, metrics, rates

ETA, LAMBDA = 0.01, 0.1


def angle(x, y):
    x, y = (np.float64(np.asarray(a)).ravel() for a in (x, y))
    unit, other = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return 2 * np.arctan2(np.linalg.norm(unit - other), np.linalg.norm(unit + other))


def measured(tx, updates, params):
    new, state = jax.jit(tx.update)(updates, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, new, updates)
    return {name: float(value) for name, value in metrics(state).items()}


def normal(shape, scale=1.0, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("step", [1.0, 1e-2, 1e-5])
def test_each_matrix_of_a_stack(step):
    params = {"stack": normal((3, 4, 5)), "w": normal((6, 2), 10.0), "b": normal((5,))}
    updates = jax.tree.map(lambda p: normal(p.shape, step, seed=1), params)
    tx = optwd.monitor_rotation(ETA, LAMBDA, stacked="stack")
    got = measured(tx, updates, params)
    matrices = [*zip(params["stack"], updates["stack"], strict=True)]
    matrices.append((params["w"], updates["w"]))
    angles = [angle(p, np.float64(p) + np.float64(u)) for p, u in matrices]
    sizes = [np.sqrt(np.mean(np.float64(p) ** 2)) for p, _ in matrices]
    expected = {
        "angle": np.mean(angles),
        "rms": np.mean(sizes),
        "angle_ratio": np.mean(angles) / rates.equilibrium_angle(ETA, LAMBDA),
        "rms_ratio": np.mean(sizes) / rates.equilibrium_rms(ETA, LAMBDA),
        "decay": ETA * LAMBDA,
    }
    assert got.keys() == {f"rotation/all/{key}" for key in expected}
    for key, value in expected.items():
        np.testing.assert_allclose(got[f"rotation/all/{key}"], value, rtol=2e-6)


def test_groups_and_the_learning_rate_of_the_step():
    params = {"head": {"kernel": normal((3, 3))}, "body": {"kernel": normal((2, 2), 2.0)}}
    updates = jax.tree.map(lambda p: -0.1 * jnp.roll(p, 1), params)
    tx = optwd.monitor_rotation(
        optax.linear_schedule(0.0, 1.0, 10),
        LAMBDA,
        b1=0.5,
        groups={"head": masks.path("head/**"), "every": None},
    )
    state = tx.init(params)
    for _ in range(6):  # the sixth step has the learning rate 0.5
        _, state = tx.update(updates, state, params)
    got = {name: float(value) for name, value in metrics(state).items()}
    head, body = (
        angle(params[part]["kernel"], params[part]["kernel"] + updates[part]["kernel"])
        for part in ("head", "body")
    )
    np.testing.assert_allclose(got["rotation/head/angle"], head, rtol=2e-6)
    np.testing.assert_allclose(got["rotation/every/angle"], (head + body) / 2, rtol=2e-6)
    predicted = rates.equilibrium_angle(0.5, LAMBDA, b1=0.5)
    np.testing.assert_allclose(
        got["rotation/head/angle_ratio"], head / predicted, rtol=2e-6
    )


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_sizes_at_the_edge_of_float32(scale):
    params, updates = normal((4, 4), scale), normal((4, 4), 0.1 * scale, seed=1)
    got = measured(optwd.monitor_rotation(ETA, LAMBDA), updates, params)
    exact = angle(params, np.float64(params) + np.float64(updates))
    np.testing.assert_allclose(got["rotation/all/angle"], exact, rtol=2e-6)
    np.testing.assert_allclose(
        got["rotation/all/rms"], np.sqrt(np.mean(np.float64(params) ** 2)), rtol=2e-6
    )


@pytest.mark.parametrize("jit", [True, False])
def test_nothing_is_predicted_while_the_learning_rate_is_zero(jit):
    tx = optwd.monitor_rotation(optax.linear_schedule(0.0, 1.0, 10), LAMBDA)
    update = jax.jit(tx.update) if jit else tx.update
    theta = jnp.ones((2, 2))
    with jax.debug_nans(True):  # no 0/0 either
        _, state = update(0.1 * theta, tx.init(theta), theta)
    recorded = metrics(state)
    assert recorded["rotation/all/angle_ratio"] == recorded["rotation/all/rms_ratio"] == 0
    assert recorded["rotation/all/rms"] == 1


def test_the_scaling_of_the_optimizer():
    params, updates = normal((3, 3)), normal((3, 3), 0.1, seed=1)
    scaling = {"scaled_by": "schedule", "peak_learning_rate": 0.5}
    got = measured(optwd.monitor_rotation(ETA, LAMBDA, **scaling), updates, params)
    np.testing.assert_allclose(got["rotation/all/decay"], LAMBDA * ETA / 0.5, rtol=1e-6)
    predicted = rates.equilibrium_rms(ETA, LAMBDA, **scaling)
    size = np.sqrt(np.mean(np.float64(params) ** 2))
    np.testing.assert_allclose(got["rotation/all/rms_ratio"], size / predicted, rtol=2e-6)


def test_weights_of_zero_and_steps_of_zero():
    zero, one = jnp.zeros((2, 2)), jnp.ones((2, 2))
    tx = optwd.monitor_rotation(ETA, LAMBDA)
    for got in measured(tx, math.nan * one, one), measured(tx, one, math.nan * one):
        assert math.isnan(got["rotation/all/angle"])  # which is not 0
        assert math.isnan(got["rotation/all/angle_ratio"])
    assert math.isnan(got["rotation/all/rms"])
    assert measured(tx, zero, one)["rotation/all/angle"] == 0
    assert measured(tx, -0.5 * one, one)["rotation/all/angle"] == 0  # only smaller
    assert math.isfinite(measured(tx, one, zero)["rotation/all/angle"])
    assert measured(tx, zero, zero)["rotation/all/rms"] == 0
    alone = jnp.full((1, 1), 3.0)  # turned by 0 or by 180 degrees
    assert measured(tx, alone, alone)["rotation/all/rms"] == 3


@pytest.mark.parametrize("share", [-0.5, -1e-4, 0.25])
def test_steps_along_the_weights(share):
    theta = normal((50, 40), 3.0)
    got = measured(optwd.monitor_rotation(ETA, LAMBDA), share * theta, theta)
    eps = float(jnp.finfo(jnp.float32).eps)
    assert got["rotation/all/angle"] < 4 * eps**0.5 * abs(share) / (1 + share)


def test_complex_and_low_precision():
    p = {"c": normal((3, 4)) + 1j * normal((3, 4), seed=1), "h": normal((3, 4), seed=2)}
    u = {
        "c": normal((3, 4), seed=3) - 2j * normal((3, 4), seed=4),
        "h": normal((3, 4), 0.1),
    }
    p["h"], u["h"] = p["h"].astype(jnp.bfloat16), u["h"].astype(jnp.bfloat16)
    got = measured(optwd.monitor_rotation(ETA, LAMBDA), u, p)

    def flat(x):
        x = np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x)
        return np.concatenate([np.float64(x.real), np.float64(x.imag)])

    angles = [angle(flat(p[k]), flat(p[k]) + flat(u[k])) for k in p]
    np.testing.assert_allclose(got["rotation/all/angle"], np.mean(angles), rtol=2e-6)


def test_leaves_that_are_not_trained_do_not_count():
    params = {"w": normal((3, 3)), "frozen": normal((2, 2))}
    updates = {"w": normal((3, 3), 0.1, seed=1), "frozen": None}
    tx = optwd.monitor_rotation(ETA, LAMBDA)
    _, state = tx.update(updates, tx.init(params), params)
    alone = measured(tx, {"w": updates["w"]}, {"w": params["w"]})
    assert {k: float(v) for k, v in metrics(state).items()} == pytest.approx(alone)


def test_its_state_is_found_by_optax():
    tx = optax.chain(optwd.adamw(ETA), optwd.monitor_rotation(ETA, LAMBDA))
    params = {"w": normal((3, 3))}
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    assert tx.update({}, tx.init({}), {})[0] == {}


def test_ratios_are_one_at_equilibrium():
    """16 matrices, gradients that are random and orthogonal to them, at ηλ = 0.002."""
    eta, decay, steps = 0.02, 0.1, 4000
    tx = optax.chain(
        optwd.adamw(eta, weight_decay=decay),
        optwd.monitor_rotation(eta, decay, stacked="**"),
    )

    def body(carry, key):
        theta, state = carry
        g = jax.random.normal(key, theta.shape)
        square = jnp.sum(theta**2, (1, 2), keepdims=True)
        g = g - theta * jnp.sum(g * theta, (1, 2), keepdims=True) / square
        u, state = tx.update(g / jnp.sqrt(square), state, theta)
        recorded = metrics(state)
        ratios = recorded["rotation/all/angle_ratio"], recorded["rotation/all/rms_ratio"]
        return (optax.apply_updates(theta, u), state), ratios

    theta = normal((16, 16, 16), rates.equilibrium_rms(eta, decay))
    keys = jax.random.split(jax.random.key(0), steps)
    _, ratios = jax.lax.scan(body, (theta, tx.init(theta)), keys)
    angles, sizes = (np.asarray(r, np.float64)[steps // 2 :].mean() for r in ratios)
    np.testing.assert_allclose([angles, sizes], 1, rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": {"none": masks.ndim(3)}}, "the group 'none' has no leaves"),
        ({"stacked": "blocks/**"}, "'blocks/\\*\\*' matches no leaf"),
        ({"b1": 1.0}, r"b1 must be in \[0, 1\), got 1"),
    ],
)
def test_what_cannot_be_measured(arguments, message):
    with pytest.raises(ValueError, match=message):
        optwd.monitor_rotation(ETA, LAMBDA, **arguments).init({"w": jnp.ones((2, 2))})


def test_it_needs_the_parameters():
    tx = optwd.monitor_rotation(ETA, LAMBDA)
    with pytest.raises(ValueError, match="monitor_rotation needs the parameters"):
        tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))


# --- diagnose ----------------------------------------------------------------------------


def recorded(**values):
    names = {name.replace("__", "/"): jnp.float32(x) for name, x in values.items()}
    return optwd.MonitorState((), names)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"decay__ratio": 1.0, "rounding__lost": 0.5}, []),
        ({"decay__ratio": 1.5}, ["decay/ratio is 1.5: what it measures is larger"]),
        ({"decay__ratio": math.nan}, ["decay/ratio is nan: gradients or weights"]),
        ({"rounding__lost": 0.97}, ["rounding/lost is 97%: these elements"]),
        ({"rotation__a__rms_ratio": 1.05, "rotation__a__decay": 1e-3}, []),
        ({"rotation__a__rms_ratio": 3.0, "rotation__a__decay": 0.0}, []),
        (
            {"rotation__a__rms_ratio": 3.0, "rotation__a__decay": 1e-3},
            ["rotation/a: the weights are 3 times .* 1,845 steps away, more than the 100"],
        ),
        (
            {"rotation__a__angle": 0.1, "rotation__b__angle": 0.01},
            ["rotation/b/angle is 0.01, 10 times slower than rotation/a/angle"],
        ),
        ({"rotation__a__angle": 0.1, "rotation__b__angle": 0.02}, []),
        ({"rotation__a__angle": 0.1, "rotation__b__angle": 0.0}, []),
    ],
)
def test_what_is_said(values, said):
    got = optwd.diagnose(recorded(**values), steps_left=100)
    assert len(got) == len(said)
    for text, pattern in zip(got, said, strict=True):
        assert re.match(pattern, text), text


def test_as_many_steps_as_are_needed_are_left():
    state = recorded(rotation__a__rms_ratio=3.0, rotation__a__decay=1e-3)
    (enough,), (short,) = (optwd.diagnose(state, steps_left=n) for n in (1845, 1844))
    assert enough.endswith("about 1,845 steps away.")
    assert "more than the 1,844 that are left" in short


def test_the_steps_to_equilibrium():
    """The mean square approaches 1 by the factor 1 − 2ρ: 1845 steps take 9 to 1.2."""
    mean_square = 1 + 8 * (1 - 2e-3) ** 1845
    assert mean_square == pytest.approx(1.2, abs=2e-3)


def test_nothing_monitored():
    with pytest.raises(ValueError, match="nothing is monitored"):
        optwd.diagnose(optwd.adamw(0.1).init(jnp.ones(2)))
