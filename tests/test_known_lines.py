"""Decays of papers and frameworks that are one line here, by value over 50 steps.

- DINO's weight decay rises along a cosine; LAMB decays inside its trust ratio; SODA's
  falls as one over the step; Huber and p-norm decay are one rule each; gains whose neutral
  value is 1 decay towards 1, said by the number as well as by a tree.
- To 1e-12 in float64; DINO to 1e-7, for Optax's schedules compute in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay, rates
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

LR, LAM, T = 0.02, 0.1, common.STEPS
LEAVES = {"w": ((4, 3), True)}


def step(rule):
    """The trajectory of θ ← θ − η·rule(û, θ, t) with Adam's û."""

    def trajectory(path, theta, gradients):
        for t, u in enumerate(reference.adam(gradients)):
            theta = theta - LR * rule(u, theta, t)
            yield theta

    return trajectory


def after_adam(*parts):
    return optax.chain(optwd.scale_by_adam(), *parts, optax.scale_by_learning_rate(LR))


def difference(optimizer, rule):
    params = common.tree(LEAVES)
    return common.largest_difference(optimizer, params, step(rule))


def test_dino_rises_along_a_cosine():
    def rising(u, theta, t):  # facebookresearch/dino, utils.py, cosine_scheduler
        return u + (0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * t / T))) * theta

    ours = after_adam(decay.linear(optax.cosine_decay_schedule(0.04, T, alpha=10)))
    assert difference(ours, rising) < 1e-7


def test_lamb_decays_inside_its_trust_ratio():
    def lamb(u, theta, t):
        u = u + LAM * theta
        return u * np.linalg.norm(theta) / np.linalg.norm(u)

    ours = after_adam(decay.linear(LAM), optax.scale_by_trust_ratio())
    assert difference(ours, lamb) < 1e-12


def test_soda_decays_towards_the_start_ever_more_slowly():
    def trajectory(path, theta, gradients):  # beside the step of its base, at 1/(t + 2)
        start = theta
        for t, u in enumerate(reference.adam(gradients)):
            theta = theta - LR * u - (theta - start) / (t + 2)
            yield theta

    shrinking = decay.toward_init(rates.inverse_time(1.0, offset=1))
    ours = optwd.with_weight_decay(optwd.adam(LR), shrinking)
    assert common.largest_difference(ours, common.tree(LEAVES), trajectory) < 1e-12


def test_huber_decay_is_bounded():
    def huber(u, theta, t):
        return u + LAM * np.sign(theta) * np.minimum(np.abs(theta), 0.5)

    ours = after_adam(decay.from_rule(lambda u, p, rho: u + rho * p.clip(-0.5, 0.5), LAM))
    assert difference(ours, huber) < 1e-12


def test_p_norm_decay():
    def quartic(u, theta, t):  # the gradient of ¼‖θ‖₄⁴
        return u + LAM * np.sign(theta) * np.abs(theta) ** 3

    ours = after_adam(decay.from_rule(lambda u, p, rho: u + rho * p**3, LAM))
    assert difference(ours, quartic) < 1e-12


def test_gains_decay_towards_one():
    ones = jax.tree.map(jnp.ones_like, common.tree(LEAVES))
    for one in (1, ones):
        ours = after_adam(decay.toward(one, LAM))
        assert difference(ours, lambda u, theta, t: u + LAM * (theta - 1)) < 1e-12
