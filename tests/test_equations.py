"""Each equation in a docstring against its float64 reference.

- directions over 200 steps, in float64 to 1e-13 and with every hyperparameter in play;
- optimizers over 100 steps on a real loss, with schedules, to 1e-12;
- the three couplings, and decay for any optimizer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay, rates
from tests import helpers, reference

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 100
RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(1.0, 2.0, size=(200, 5))
HESSIAN = np.diag([0.1, 1.0, 3.0, 0.5, 2.0]) + 0.1
NOISE = RNG.normal(size=(STEPS, 5))
START = RNG.normal(size=5)

ETAS = 0.05 * np.minimum(np.arange(STEPS) / 10, np.cos(np.arange(STEPS) / 70))  # warms up
LAMBDAS = np.linspace(0.3, 0.1, STEPS)


def eta_schedule(t):
    return jnp.asarray(ETAS)[t]  # a table: Optax's own schedules are float32 even under x64


def lambda_schedule(t):
    return jnp.asarray(LAMBDAS)[t]


def directions(transformation, gradients):
    body = lambda state, g: transformation.update(g, state)[::-1]  # noqa: E731
    run = lambda g: jax.lax.scan(body, transformation.init(g[0]), g)[1]  # noqa: E731
    return jax.jit(run)(gradients)


HYPERPARAMETERS = {
    "default": {},
    "without momentum": {"b1": 0.0, "b2": 0.99},
    "long memory": {"b1": 0.95, "b2": 0.9999, "eps": 1e-4},
}
ROOT = {"eps_root": {"eps": 1e-6, "eps_root": 1e-3}}


KINDS = {"real": "real", "complex": "complex"}


@pytest.mark.parametrize(
    "hyperparameters", helpers.cases(HYPERPARAMETERS | ROOT, {"long memory", "eps_root"})
)
@pytest.mark.parametrize("kind", helpers.cases(KINDS, {"real"}))
@pytest.mark.parametrize(
    ("transformation", "equation"),
    [
        (optwd.scale_by_adam, reference.adam),
        (lambda **h: optwd.scale_by_adam(**h, nesterov=True), reference.nadam),
        (optwd.scale_by_amsgrad, reference.amsgrad),
        (optwd.compat.scale_by_nadam_one_correction, reference.nadam_one_correction),
    ],
    ids=["adam", "nadam", "amsgrad", "nadam, one correction"],
)
def test_directions(transformation, equation, hyperparameters, kind):
    gradients = GRADIENTS if kind == "real" else GRADIENTS * np.exp(1j * GRADIENTS[::-1])
    got = directions(transformation(**hyperparameters), gradients)
    np.testing.assert_allclose(got, equation(gradients, **hyperparameters), 1e-12, 1e-13)


@pytest.mark.parametrize("hyperparameters", helpers.cases(HYPERPARAMETERS, {"long memory"}))
@pytest.mark.parametrize("kind", helpers.cases(KINDS, {"real"}))
@pytest.mark.parametrize(
    ("transformation", "equation"),
    [
        (optwd.compat.scale_by_adam_eps_hat, reference.adam_eps_hat),
        (optwd.compat.scale_by_amsgrad_raw, reference.amsgrad_raw),
        (optwd.compat.scale_by_amsgrad_raw_eps_hat, reference.amsgrad_raw_eps_hat),
        (optwd.compat.scale_by_radam_eps_hat, reference.radam_eps_hat),
        (optwd.compat.scale_by_nadam, reference.nadam_with_momentum_decay),
        (
            lambda **h: optwd.compat.scale_by_nadam(**h, momentum_decay=2.0),
            lambda g, **h: reference.nadam_with_momentum_decay(g, **h, momentum_decay=2.0),
        ),
    ],
    ids=["eps_hat", "raw", "raw, eps_hat", "radam", "nadam", "nadam, fast"],
)
def test_directions_of_other_frameworks(transformation, equation, hyperparameters, kind):
    gradients = GRADIENTS if kind == "real" else GRADIENTS * np.exp(1j * GRADIENTS[::-1])
    fading = np.where(np.arange(200) < 150, 1.0, 0.1)  # the maximum is then in the past
    gradients = gradients * fading[:, None]
    got = directions(transformation(**hyperparameters), gradients)
    np.testing.assert_allclose(got, equation(gradients, **hyperparameters), 1e-12, 1e-13)


@pytest.mark.parametrize("dampening", [0.0, 0.3, 1.0])
def test_trace_dampened(dampening):
    got = directions(optwd.compat.trace_dampened(0.9, dampening), GRADIENTS)
    expected = reference.trace_dampened(GRADIENTS, 0.9, dampening)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_trace(nesterov):
    equation = reference.nesterov_trace if nesterov else reference.trace
    got = directions(optwd.trace(0.9, nesterov), GRADIENTS)
    np.testing.assert_allclose(got, equation(GRADIENTS, 0.9), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [0.3, lambda_schedule], ids=["number", "schedule"])
@pytest.mark.parametrize(
    "make",
    [
        optwd.add_l2,
        decay.linear,
        lambda *a: decay.from_rule(lambda u, p, rho: u + rho * p, *a),
    ],
    ids=["add_l2", "linear", "from_rule"],
)
def test_linear_rules_with_float_masks(make, rate):
    transformation = make(rate, {"half": 0.5, "all": True, "none": False})
    p = {k: jnp.asarray(START) for k in ("half", "all", "none")}
    state = transformation.init(p)
    for t in range(5):
        u = dict.fromkeys(p, jnp.asarray(GRADIENTS[t]))
        got, state = transformation.update(u, state, p)
        for name, multiplier in {"half": 0.5, "all": 1.0, "none": 0.0}.items():
            rho = multiplier * (lam(t) if callable(rate) else rate)
            expected = reference.linear(GRADIENTS[t], START, rho)
            np.testing.assert_allclose(got[name], expected, rtol=1e-14)


def path_of(optimizer):
    """The parameters after each step on a noisy quadratic."""
    return helpers.path_of(optimizer, START, NOISE, lambda p, noise: HESSIAN @ p + noise)


def momentum(gradients):
    return reference.trace(gradients, 0.9)


def zero(t):
    return 0.0


def eta(t):
    return ETAS[t]


def lam(t):
    return LAMBDAS[t]


PEAK = {"scaled_by": "schedule", "peak_learning_rate": 0.05}
CASES = {
    "adam": (optwd.adam(eta_schedule), reference.adam, zero, zero),
    "nadam": (optwd.nadam(eta_schedule), reference.nadam, zero, zero),
    "amsgrad": (optwd.amsgrad(eta_schedule), reference.amsgrad, zero, zero),
    "adam_l2": (optwd.adam_l2(eta_schedule, l2=lambda_schedule), reference.adam, lam, zero),
    "sgd_l2": (optwd.sgd_l2(eta_schedule, 0.9, l2=lambda_schedule), momentum, lam, zero),
    "adamw": (
        optwd.adamw(eta_schedule, weight_decay=lambda_schedule),
        reference.adam,
        zero,
        lambda t: eta(t) * lam(t),
    ),
    "adamw, schedule": (
        optwd.adamw(eta_schedule, weight_decay=lambda_schedule, **PEAK),
        reference.adam,
        zero,
        lambda t: eta(t) / 0.05 * lam(t),
    ),
    "adamw, none": (
        optwd.adamw(eta_schedule, weight_decay=lambda_schedule, scaled_by="nothing"),
        reference.adam,
        zero,
        lam,
    ),
    "nadamw": (
        optwd.nadamw(eta_schedule, weight_decay=0.2, **PEAK),
        reference.nadam,
        zero,
        lambda t: eta(t) / 0.05 * 0.2,
    ),
    "amsgradw": (
        optwd.amsgradw(eta_schedule, weight_decay=0.2),
        reference.amsgrad,
        zero,
        lambda t: eta(t) * 0.2,
    ),
    "sgdw": (
        optwd.sgdw(eta_schedule, 0.9, weight_decay=0.2, **PEAK),
        momentum,
        zero,
        lambda t: eta(t) / 0.05 * 0.2,
    ),
    "sgdw without momentum": (
        optwd.sgdw(eta_schedule, weight_decay=0.2, scaled_by="nothing"),
        lambda gradients: gradients,
        zero,
        lambda t: 0.2,
    ),
    "AdamC": (
        optwd.in_float32(
            optax.chain(
                optwd.scale_by_adam(),
                decay.linear(rates.by_schedule(lambda_schedule, eta_schedule, 0.05)),
                optax.scale_by_learning_rate(eta_schedule),
            )
        ),
        reference.adam,
        zero,
        lambda t: eta(t) ** 2 / 0.05 * lam(t),
    ),
    "with_weight_decay": (
        optwd.with_weight_decay(optwd.adam(eta_schedule), decay.linear(lambda_schedule)),
        reference.adam,
        zero,
        lam,
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "direction", "penalty", "decay_rate"), CASES.values(), ids=CASES
)
def test_optimizers(optimizer, direction, penalty, decay_rate):
    gradient = [lambda p, n=n: HESSIAN @ p + n for n in NOISE]
    expected = reference.train(START, gradient, direction, eta, penalty, decay_rate)
    np.testing.assert_allclose(path_of(optimizer), expected, rtol=1e-11, atol=1e-12)


def test_scheduled_rates_take_numbers_too():
    assert rates.by_schedule(0.3, 0.1, 0.2)(7) == pytest.approx(0.15)
    assert rates.by_schedule(lambda t: 0.1 * t, 0.2, 0.2)(3) == pytest.approx(0.3)
    constant = optwd.adamw(0.05, weight_decay=0.2, scaled_by="schedule")
    expected = optwd.adamw(0.05, weight_decay=0.2, scaled_by="nothing")
    np.testing.assert_allclose(path_of(constant), path_of(expected), rtol=1e-14)


DECAYING = {n: n for n in ("adam_l2", "adamw", "amsgradw", "nadamw", "sgd_l2", "sgdw")}


@pytest.mark.parametrize("name", helpers.cases(DECAYING, {"adamw", "sgd_l2"}))
def test_decay_is_1e_4_unless_said(name):
    make, decay = getattr(optwd, name), "l2" if "l2" in name else "weight_decay"
    said, more = (path_of(make(0.05, **{decay: rate})) for rate in (1e-4, 2e-4))
    np.testing.assert_array_equal(path_of(make(0.05)), said)
    assert np.abs(said - more).max() > 1e-8
