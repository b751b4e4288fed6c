"""Facts that everyone can check on paper, and that decide between the forms of decay.

- under SGD, L2 with λ/η is weight decay λ; under momentum it is not;
- gradients rescaled per coordinate leave AdamW's path alone, and change that of Adam + L2;
- without a gradient, θₜ = θ₀ ∏(1 − ηᵢλ), with its half-life;
- a noisy direction settles at variance ησ²/(λ(2 − ηλ));
- decaying the new instead of the old parameters differs by η²λû in one step;
- worked numbers: the first steps of Adam, a 2-D quadratic.
"""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay
from tests import helpers

pytestmark = pytest.mark.usefixtures("x64")

START = np.array([1.0, -2.0, 0.5])
GRADIENTS = np.random.default_rng(0).normal(size=(50, 3))


def path_of(optimizer, gradients=GRADIENTS, start=START):
    return helpers.path_of(optimizer, start, gradients)


def test_l2_is_weight_decay_under_sgd_alone():
    eta, lam = 0.1, 0.02
    l2 = path_of(optwd.sgd_l2(eta, l2=lam / eta))
    decoupled = path_of(optwd.sgdw(eta, weight_decay=lam, scaled_by="nothing"))
    np.testing.assert_allclose(l2, decoupled, rtol=1e-13)
    l2 = path_of(optwd.sgd_l2(eta, 0.9, l2=lam / eta))
    decoupled = path_of(optwd.sgdw(eta, 0.9, weight_decay=lam, scaled_by="nothing"))
    assert np.abs(l2 - decoupled).max() > 0.1


def test_scale_freeness():
    scales = np.array([1e-3, 1.0, 1e3])  # six decades
    for make, free in [
        (lambda: optwd.adamw(0.01, eps=0.0, weight_decay=0.5), True),
        (lambda: optwd.adam_l2(0.01, eps=0.0, l2=0.5), False),
    ]:
        difference = np.abs(path_of(make()) - path_of(make(), GRADIENTS * scales)).max()
        assert difference < 1e-12 if free else difference > 0.05


def test_zero_gradient():
    schedule, lam = optax.linear_schedule(0.5, 0.0, 50), 0.3
    got = path_of(optwd.adamw(schedule, weight_decay=lam), np.zeros((50, 3)))
    etas = np.array([float(schedule(jnp.int32(t))) for t in range(50)])
    expected = START * np.cumprod(1 - etas * lam)[:, None]
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # Optax's schedules are float32


def test_half_life():
    eta, lam = 0.1, 0.25
    half_life = np.log(2) / -np.log(1 - eta * lam)
    got = path_of(optwd.adamw(eta, weight_decay=lam), np.zeros((60, 3)))
    np.testing.assert_allclose(got / START, 0.5 ** (np.arange(1, 61) / half_life)[:, None]
                               * np.ones(3), rtol=1e-12)  # fmt: skip


def test_stationary_variance():
    eta, lam, sigma = 0.1, 0.5, 2.0
    noise = sigma * np.random.default_rng(1).normal(size=(400, 20_000))
    optimizer = optwd.sgdw(eta, weight_decay=lam)
    final = path_of(optimizer, noise, jnp.zeros(20_000))[-1]
    expected = eta * sigma**2 / (lam * (2 - eta * lam))
    assert np.var(final) == pytest.approx(expected, rel=0.03)  # 3 standard errors of 20 000


def test_old_and_new_parameters_differ_by_the_product():
    eta, lam, u = 0.1, 0.5, np.array([1.0, -1.0, 1.0])  # Adam's first direction, eps = 0
    old = path_of(optwd.adamw(eta, eps=0.0, weight_decay=lam), u[None])[0]
    adam = optwd.adam(eta, eps=0.0)
    new = path_of(adam, u[None])[0] * (1 - eta * lam)
    np.testing.assert_allclose(new - old, eta**2 * lam * u, rtol=1e-12)


def test_first_steps_of_adam():
    adam = optwd.scale_by_adam(b1=0.9, eps=0.0)
    _, state = adam.update(jnp.array([2.0]), adam.init(jnp.zeros(1)))
    np.testing.assert_allclose(2.0, 10 * state.mu, rtol=1e-14)  # m̂ = 10 m at t = 1
    for g in (0.1, 1.0):  # v = 0.01 and 1
        step, _ = optwd.adam(0.01, eps=0.0).update(
            jnp.array([g]), optwd.adam(0.01).init(jnp.zeros(1)), jnp.zeros(1)
        )
        np.testing.assert_allclose(step, -0.01, rtol=1e-12)


@pytest.mark.parametrize(
    ("eta", "end"), [(0.1, (-3.06034094, -0.22245266)), (0.4, (0.99602865, -0.21275029))]
)
def test_quadratic_in_two_dimensions(eta, end):
    adam, p = optwd.adam(eta, eps=1e-6), jnp.array([-5.0, -2.0])
    state = adam.init(p)
    for _ in range(20):
        updates, state = adam.update(jnp.array([0.2, 4.0]) * p, state, p)
        p = optax.apply_updates(p, updates)
    np.testing.assert_allclose(p, end, atol=5e-9)


def test_after_the_sign_flip_it_is_growth():
    wrong = optax.chain(optwd.adam(0.1), decay.linear(0.01))
    right = optwd.with_weight_decay(optwd.adam(0.1), decay.linear(0.01))
    zeros = np.zeros((50, 3))
    np.testing.assert_allclose(path_of(wrong, zeros)[-1], START * 1.01**50, rtol=1e-12)
    np.testing.assert_allclose(path_of(right, zeros)[-1], START * 0.99**50, rtol=1e-12)
