"""Conventions of code that has no module in `compat`: the line that does the same here.

- Every row of `_recipes` has one, and 50 steps of it in float64, under a falling learning
  rate, agree to 1e-12 with the row's equation in NumPy, written down from its source.
- A tie (no gradient yet) decays under `decay.cautious`, not in modded-nanogpt's Adam.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay, masks, rates
from optwd.compat import algoperf, scale_by_adam_eps_hat
from optwd.compat._recipes import RECIPES
from tests.clients import common
from tests.helpers import cases

pytestmark = pytest.mark.usefixtures("x64")

LAM, SMALL, PEAK, T = 0.1, 0.01, 0.02, common.STEPS  # small where nothing scales it
LR = PEAK * (1 - np.arange(T) / (T + 10))
ETA = common.schedule(LR)
LEAVES = {"tall": ((6, 4), True), "wide": ((3, 5), True)}


# Directions in NumPy: from a gradient to what the learning rate scales


def adam(b1=0.9, b2=0.999, eps=1e-8, hat=False, ahead=False):
    m, v, t = 0.0, 0.0, 0

    def direction(g, theta):
        nonlocal m, v, t
        t += 1
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        mean = b1 * m + (1 - b1) * g if ahead else m
        correction = np.sqrt(1 - b2**t)
        return (
            mean
            / (1 - b1**t)
            / (np.sqrt(v) + eps * (1 if hat else correction))
            * correction
        )

    return direction


def lion(b1=0.9, b2=0.99):
    m = 0.0

    def direction(g, theta):
        nonlocal m
        u, m = np.sign(b1 * m + (1 - b1) * g), b2 * m + (1 - b2) * g
        return u

    return direction


def adafactor(clip=1.0):
    """T5's and Optax's, of leaves too small to be factored; it knows its learning rate."""
    v, t = 0.0, 0

    def direction(g, theta):
        nonlocal v, t
        t += 1
        kept = np.asarray(1 - jnp.float32(t) ** -0.8, float)  # float32 in Optax, always
        v = kept * v + (1 - kept) * (g**2 + 1e-30)
        u = g / np.sqrt(v)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / clip)
        return u * max(np.sqrt(np.mean(theta**2)), 1e-3)

    return direction


def muon(scale, *, eps=1e-7, ema=False, corrected=False):
    """Momentum with Nesterov's look ahead, orthogonalized, times a factor of the shape."""
    b, t = 0.0, 0

    def direction(g, theta):
        nonlocal b, t
        t += 1
        b = 0.95 * b + (0.05 if ema else 1.0) * g
        x = 0.95 * b + (0.05 if ema else 1.0) * g
        if corrected:  # as Optax corrects the bias
            x = 0.95 * b / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        return scale(*g.shape) * _orthogonal(x, eps)

    return direction


def _orthogonal(x, eps):
    if x.shape[0] > x.shape[1]:
        return _orthogonal(x.T, eps).T
    x = x / (np.sqrt(np.sum(x**2)) + eps)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def spectral(rows, columns):  # torch's rows are what a matrix gives out
    return max(1, rows / columns) ** 0.5


def of_adam(rows, columns):
    return 0.2 * max(rows, columns) ** 0.5


# What a row does with it


def decoupled(direction, rate):
    """θ ← θ − η·u − rate(η)·θ, of the weights before the step."""

    def trajectory(path, theta, gradients):
        direct = direction()
        for eta, g in zip(LR, gradients, strict=True):
            theta = theta - eta * direct(g, theta) - rate(eta) * theta
            yield theta

    return trajectory


def coupled(direction):
    def trajectory(path, theta, gradients):
        direct = direction()
        for eta, g in zip(LR, gradients, strict=True):
            theta = theta - eta * direct(g + LAM * theta, theta)
            yield theta

    return trajectory


def cautious(direction, rate, strict=False):
    def trajectory(path, theta, gradients):
        direct = direction()
        for eta, g in zip(LR, gradients, strict=True):
            u = direct(g, theta)
            holds = u * theta > 0 if strict else u * theta >= 0
            theta = theta - eta * u - rate(eta) * theta * holds
            yield theta

    return trajectory


def schedule_free(path, theta, gradients):
    """Decay of z by y; the model holds y. Constant learning rate, as the method has it."""
    x = y = z = theta
    direct = adam(b1=0.0)
    for t, g in enumerate(gradients):
        z = z - PEAK * (direct(g, y) + LAM * y)
        x = x + (z - x) / (t + 1)
        y = 0.9 * x + 0.1 * z
        yield y


# What does it here


def scale_by_muon(factor, eps):
    """The Muon of torch and Moonlight from Optax's parts, its own momentum switched off."""
    return optax.chain(
        optwd.trace(0.95, nesterov=True),
        optax.contrib.scale_by_muon(
            beta=0.0, nesterov=False, eps=eps, weight_dimension_numbers=matrices
        ),
        optax.stateless(lambda u, _: jax.tree.map(lambda x: factor(*x.shape) * x, u)),
    )


def matrices(params):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)


def with_learning_rate(*parts):
    return optax.chain(*parts, optax.scale_by_learning_rate(ETA))


def strictly(u, p, rho):
    return u + rho * p * (u * p > 0)


ETA_LAM = rates.by_learning_rate(LAM, ETA)
ROWS = {
    "optax.contrib.muon": (
        optwd.with_weight_decay(
            optax.contrib.muon(ETA), decay.linear(ETA_LAM, masks.ndim(2))
        ),
        # JAX's matrices take rows in: the factor is that of the transpose
        decoupled(
            lambda: muon(lambda i, o: spectral(o, i), eps=1e-8, ema=True, corrected=True),
            lambda eta: eta * LAM,
        ),
    ),
    "torch.Muon": (
        with_learning_rate(scale_by_muon(spectral, 0.0), decay.linear(LAM)),
        decoupled(lambda: muon(spectral, eps=0.0, ema=True), lambda eta: eta * LAM),
    ),
    "moonlight.Muon": (
        with_learning_rate(scale_by_muon(of_adam, 1e-7), decay.linear(LAM)),
        decoupled(lambda: muon(of_adam), lambda eta: eta * LAM),
    ),
    "nanochat": (  # its Muon: tests/clients/test_nanochat.py
        with_learning_rate(optwd.scale_by_adam(), decay.cautious(LAM)),
        cautious(adam, lambda eta: eta * LAM),
    ),
    "modded-nanogpt": (
        optax.chain(
            scale_by_adam_eps_hat(0.5, 0.95, 1e-10),
            decay.from_rule(strictly, ETA_LAM, masks.multipliers({"*": 150.0})),
            optax.scale_by_learning_rate(ETA),
        ),
        cautious(
            lambda: adam(0.5, 0.95, 1e-10, hat=True),
            lambda eta: 150 * eta**2 * LAM,
            strict=True,
        ),
    ),
    "levanter": (
        optwd.adamw(ETA, b2=0.95, weight_decay=LAM),
        decoupled(lambda: adam(b2=0.95), lambda eta: eta * LAM),
    ),
    "praxis": (
        optwd.with_weight_decay(optax.lion(ETA, weight_decay=0.0), decay.linear(ETA_LAM)),
        decoupled(lion, lambda eta: eta * LAM),
    ),
    "praxis(l2_regularizer_weight)": (
        optax.chain(optwd.add_l2(LAM), optax.lion(ETA, weight_decay=0.0)),
        coupled(lion),
    ),
    "optax.adafactor": (
        optwd.with_weight_decay(optax.adafactor(ETA), decay.linear(SMALL)),
        decoupled(adafactor, lambda eta: SMALL),
    ),
    "t5x.Adafactor": (
        optwd.with_weight_decay(optax.adafactor(ETA), decay.linear(SMALL)),
        decoupled(adafactor, lambda eta: SMALL),
    ),
    "t5x.Adafactor(weight_decay_rate_lr_exponent=2)": (
        optwd.with_weight_decay(
            optax.adafactor(ETA), decay.linear(lambda t: LAM * ETA(t) ** 2)
        ),
        decoupled(adafactor, lambda eta: LAM * eta**2),
    ),
    "easylm.palm": (
        optwd.with_weight_decay(
            optax.adafactor(ETA), decay.linear(lambda t: SMALL / 10 / 1e-4 * ETA(t) ** 2)
        ),
        decoupled(adafactor, lambda eta: SMALL / 10 / 1e-4 * eta**2),
    ),
    "emerging_optimizers": (
        optwd.adamw(ETA, weight_decay=LAM),
        decoupled(adam, lambda eta: eta * LAM),
    ),
    "emerging_optimizers(independent)": (
        optwd.adamw(ETA, weight_decay=SMALL, scaled_by="nothing"),
        decoupled(adam, lambda eta: SMALL),
    ),
    "emerging_optimizers(l2)": (optwd.adam_l2(ETA, l2=LAM), coupled(adam)),
    "emerging_optimizers(palm)": (
        with_learning_rate(optwd.scale_by_adam(), decay.linear(ETA_LAM)),
        decoupled(adam, lambda eta: eta**2 * LAM),
    ),
    "optimi": (
        optwd.adamw(ETA, 0.9, 0.99, 1e-6, weight_decay=LAM),
        decoupled(lambda: adam(0.9, 0.99, 1e-6), lambda eta: eta * LAM),
    ),
    "optimi(decouple_lr)": (
        optwd.adamw(
            ETA, 0.9, 0.99, 1e-6, weight_decay=SMALL, scaled_by="schedule",
            peak_learning_rate=PEAK,
        ),
        decoupled(lambda: adam(0.9, 0.99, 1e-6), lambda eta: eta / PEAK * SMALL),
    ),
    "optimi.Adam": (
        optwd.adam_l2(ETA, 0.9, 0.99, 1e-6, l2=LAM),
        coupled(lambda: adam(0.9, 0.99, 1e-6)),
    ),
    "bitsandbytes.Lion": (
        with_learning_rate(optax.scale_by_lion(0.9, 0.99), decay.linear(LAM)),
        decoupled(lion, lambda eta: eta * LAM),
    ),
    "bitsandbytes.Lion(0.49)": (
        with_learning_rate(optwd.add_l2(LAM), optax.scale_by_lion(0.9, 0.99)),
        coupled(lion),
    ),
    "schedule_free": (
        optax.contrib.schedule_free(
            optax.chain(
                optax.scale_by_rms(0.999, 1e-8, eps_in_sqrt=False, bias_correction=True),
                decay.linear(LAM),
                optax.scale_by_learning_rate(PEAK),
            ),
            PEAK,
            b1=0.9,
        ),
        schedule_free,
    ),
    "algoperf": (
        algoperf.nadamw(ETA, weight_decay=LAM),
        decoupled(lambda: adam(ahead=True), lambda eta: eta * LAM),
    ),
}  # fmt: skip


def test_every_recipe_has_its_line():
    assert ROWS.keys() == {row.name for row in RECIPES} | {"optax.adafactor"}


QUICK = {
    *("nanochat", "praxis(l2_regularizer_weight)", "t5x.Adafactor", "optimi", "algoperf"),
    *("emerging_optimizers(palm)", "bitsandbytes.Lion(0.49)", "schedule_free"),
}


@pytest.mark.parametrize("name", cases({name: name for name in ROWS}, QUICK))
def test_fifty_steps(name):
    ours, theirs = ROWS[name]
    params = common.tree(LEAVES, None if "uon" in name else {"tall"})
    assert common.largest_difference(ours, params, theirs) < 1e-12


def test_a_row_that_never_saw_a_gradient_decays_unless_the_rule_is_strict():
    params = {"embed": jnp.ones((2, 3))}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name, expected in ("nanochat", -PEAK * LAM), ("modded-nanogpt", 0.0):
        ours, _ = ROWS[name]
        updates, _ = ours.update(zero, ours.init(params), params)
        np.testing.assert_allclose(updates["embed"], np.full((2, 3), expected))
