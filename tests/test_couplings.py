"""What the decay is multiplied by: the three couplings of every optimizer that decays.

- at a constant learning rate they agree once λ is converted;
- under a schedule each decays by its own equation, with gradients and without;
- a warm-up from 0 decays by 0, ηλ or λ in its first step, and gives no NaN;
- a peak beside a constant learning rate divides it; one that cannot be known, or is not
  used, raises.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import optwd
from optwd import decay, rates
from tests import helpers

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 40
RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(STEPS, 4))
START = RNG.normal(size=4)
PEAK, LAMBDA = 0.1, 0.3
ETAS = PEAK * np.minimum(np.arange(STEPS) / 10, np.cos((np.arange(STEPS) - 10) / 30))

OPTIMIZERS = {  # with the same optimizer without decay
    "adamw": (optwd.adamw, optwd.adam),
    "amsgradw": (optwd.amsgradw, optwd.amsgrad),
    "nadamw": (optwd.nadamw, optwd.nadam),
    "sgdw": (optwd.sgdw, lambda eta: optwd.sgd_l2(eta, l2=0.0)),
}
every = pytest.mark.parametrize(
    ("make", "plain"), helpers.cases(OPTIMIZERS, {"adamw", "sgdw"})
)

# coupling: the arguments, and the whole rate of decay at a learning rate η
COUPLINGS = {
    "learning_rate": ({}, lambda eta: eta * LAMBDA),
    "schedule": ({"peak_learning_rate": PEAK}, lambda eta: eta / PEAK * LAMBDA),
    "nothing": ({}, lambda eta: 0 * eta + LAMBDA),
}


def warm_up(t):
    return jnp.asarray(ETAS)[t]


def path_of(optimizer, gradients=GRADIENTS):
    return helpers.path_of(optimizer, START, gradients)


def coupled(make, eta, coupling, weight_decay=LAMBDA):
    arguments, _ = COUPLINGS[coupling]
    return make(eta, weight_decay=weight_decay, scaled_by=coupling, **arguments)


@every
def test_they_agree_at_a_constant_learning_rate(make, plain):
    """Scaled by η = η_max they decay by ηλ, by λ and by λ."""
    paths = [
        path_of(coupled(make, PEAK, "learning_rate", LAMBDA)),
        path_of(coupled(make, PEAK, "schedule", PEAK * LAMBDA)),
        path_of(coupled(make, PEAK, "nothing", PEAK * LAMBDA)),
    ]
    for path in paths[1:]:
        np.testing.assert_allclose(path, paths[0], rtol=1e-12)
    assert np.abs(paths[0] - path_of(plain(PEAK))).max() > 0.01


@every
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_under_a_schedule_each_has_its_own_rate(make, plain, coupling):
    _, rate = COUPLINGS[coupling]
    got = path_of(coupled(make, warm_up, coupling))
    want = path_of(
        optwd.with_weight_decay(plain(warm_up), decay.linear(lambda t: rate(warm_up(t))))
    )
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    alone = path_of(coupled(make, warm_up, coupling), np.zeros_like(GRADIENTS))
    closed = START * np.cumprod(1 - rate(ETAS))[:, None]
    np.testing.assert_allclose(alone, closed, rtol=1e-12)


@every
def test_they_disagree_under_a_schedule(make, plain):
    """The λ that agree at the peak differ by what the warm-up takes from each."""
    lambdas = {"learning_rate": LAMBDA, "schedule": PEAK * LAMBDA, "nothing": PEAK * LAMBDA}
    paths = {c: path_of(coupled(make, warm_up, c, lam)) for c, lam in lambdas.items()}
    np.testing.assert_allclose(paths["schedule"], paths["learning_rate"], rtol=1e-12)
    assert np.abs(paths["nothing"] - paths["schedule"]).max() > 0.01


@every
def test_first_step_of_a_warm_up_from_zero(make, plain):
    for coupling, share in {
        "learning_rate": 0.0,
        "schedule": 0.0,
        "nothing": LAMBDA,
    }.items():
        first = path_of(coupled(make, warm_up, coupling))[0]
        np.testing.assert_allclose(first, START * (1 - share), rtol=1e-15)
    assert np.isfinite(path_of(coupled(make, warm_up, "schedule"))).all()


def test_rates_give_the_couplings_to_any_optimizer():
    for coupling, rate in {
        "learning_rate": rates.by_learning_rate(LAMBDA, warm_up),
        "schedule": rates.by_schedule(LAMBDA, warm_up, PEAK),
        "nothing": LAMBDA,
    }.items():
        got = optwd.with_weight_decay(optwd.adam(warm_up), decay.linear(rate))
        want = path_of(coupled(optwd.adamw, warm_up, coupling))
        np.testing.assert_allclose(path_of(got), want, rtol=1e-12, atol=1e-13)


@every
@pytest.mark.parametrize("eta", [warm_up, jnp.float32(0.1)], ids=["schedule", "array"])
def test_a_peak_that_cannot_be_known(make, plain, eta):
    with pytest.raises(ValueError, match=r"needs peak_learning_rate: the peak of .* Give"):
        make(eta, scaled_by="schedule")


@every
def test_a_peak_beside_a_constant_learning_rate_divides_it(make, plain):
    how = {"scaled_by": "schedule", "peak_learning_rate": 0.2}
    optimizer, theta = make(0.1, weight_decay=0.3, **how), jnp.ones(2)
    u, _ = optimizer.update(0 * theta, optimizer.init(theta), theta)
    np.testing.assert_allclose(u, -0.3 / 2, rtol=1e-6)


@every
def test_a_peak_that_is_not_used(make, plain):
    for coupling in ("learning_rate", "nothing"):
        with pytest.raises(ValueError, match=r"peak_learning_rate=0.1 is only used by"):
            make(0.1, scaled_by=coupling, peak_learning_rate=0.1)
    with pytest.raises(ValueError, match=r"peak_learning_rate must be in .* got -0.1"):
        make(0.1, scaled_by="schedule", peak_learning_rate=-0.1)
