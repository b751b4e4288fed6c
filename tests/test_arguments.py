"""Every argument reaches its place, and every default is the one that is documented.

`arguments.py` finds the arguments that no test misses. Here are those which the tests of
their module pass over, by value:

- the assembled optimizers with no argument at its default, and with all of them, against
  the float64 references; the dtypes of their moments;
- the equilibria by their sums, with every way of scaling.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import rates
from tests import reference

STEPS = 5
RNG = np.random.default_rng(0)
START = {"kernel": RNG.normal(size=3), "bias": RNG.normal(size=3)}
GRADIENTS = {k: RNG.normal(size=(STEPS, 3)) for k in START}
MASK = {"kernel": True, "bias": False}
ETAS = 0.1 / (1 + np.arange(STEPS))
PEAK = 0.2
SCALES = {
    "learning_rate": lambda t: ETAS[t],
    "schedule": lambda t: ETAS[t] / PEAK,
    "nothing": lambda t: 1.0,
}


def eta(t):
    return jnp.asarray(ETAS)[t]


def walked(optimizer, scale=1.0):
    """The path of every leaf."""
    params = {k: jnp.asarray(p) for k, p in START.items()}
    state, path = optimizer.init(params), []
    for t in range(STEPS):  # without jit: the function of a leaf is compiled for all
        g = {k: jnp.asarray(scale * x[t]) for k, x in GRADIENTS.items()}
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return {k: np.stack([p[k] for p in path]) for k in START}


def assert_walks(optimizer, direction, rate, penalty, decay, scale=1.0):
    """As the references, with those rates of decay for each leaf."""
    path = walked(optimizer, scale)
    for k, start in START.items():
        gradient = [lambda p, g=g: scale * g for g in GRADIENTS[k]]
        of_leaf = (functools.partial(r, k) for r in (penalty, decay))
        expected = reference.train(start, gradient, direction, rate, *of_leaf)
        np.testing.assert_allclose(path[k], expected, rtol=1e-11, err_msg=k)


TAKEN = {"b1": 0.8, "b2": 0.9, "eps": 0.01, "eps_root": 0.02}
MOMENTUM = {"momentum": 0.8, "nesterov": True}
AHEAD = {"nesterov": True}
MAKES = {  # the function, its arguments, and its direction with them and by default
    "adam": (optwd.adam, TAKEN, reference.adam),
    "adam, nesterov": (optwd.adam, TAKEN | AHEAD, reference.nadam),
    "nadam": (optwd.nadam, TAKEN, reference.nadam),
    "amsgrad": (optwd.amsgrad, TAKEN, reference.amsgrad),
    "adam_l2": (optwd.adam_l2, TAKEN, reference.adam),
    "adam_l2, nesterov": (optwd.adam_l2, TAKEN | AHEAD, reference.nadam),
    "sgd_l2": (optwd.sgd_l2, MOMENTUM, reference.nesterov_trace),
    "adamw": (optwd.adamw, TAKEN, reference.adam),
    "adamw, nesterov": (optwd.adamw, TAKEN | AHEAD, reference.nadam),
    "nadamw": (optwd.nadamw, TAKEN, reference.nadam),
    "amsgradw": (optwd.amsgradw, TAKEN, reference.amsgrad),
    "sgdw": (optwd.sgdw, MOMENTUM, reference.nesterov_trace),
}
COUPLED = [k for k in MAKES if "l2" in k]
DECOUPLED = [k for k in MAKES if "w" in k]


def direction_of(equation, given):
    numbers = {k: v for k, v in given.items() if k != "nesterov"}
    return lambda gradients: equation(gradients, **numbers)


@pytest.mark.parametrize("name", [k for k in MAKES if k not in COUPLED + DECOUPLED])
def test_what_an_optimizer_is_given(name, x64):
    make, given, equation = MAKES[name]
    none = lambda k, t: 0.0  # noqa: E731
    direction = direction_of(equation, given)
    assert_walks(make(eta, **given), direction, lambda t: ETAS[t], none, none)


@pytest.mark.parametrize("name", COUPLED)
def test_what_an_optimizer_with_a_penalty_is_given(name, x64):
    make, given, equation = MAKES[name]
    assert_walks(
        make(eta, **given, l2=0.3, mask=MASK),
        direction_of(equation, given),
        lambda t: ETAS[t],
        lambda k, t: 0.3 * MASK[k],
        lambda k, t: 0.0,
    )


@pytest.mark.parametrize("scaled_by", SCALES)
@pytest.mark.parametrize("name", DECOUPLED)
def test_what_an_optimizer_with_decay_is_given(name, scaled_by, x64):
    make, given, equation = MAKES[name]
    peak = {"peak_learning_rate": PEAK} if scaled_by == "schedule" else {}
    assert_walks(
        make(eta, **given, weight_decay=0.3, mask=MASK, scaled_by=scaled_by, **peak),
        direction_of(equation, given),
        lambda t: ETAS[t],
        lambda k, t: 0.0,
        lambda k, t: SCALES[scaled_by](t) * 0.3 * MASK[k],
    )


@pytest.mark.parametrize("name", [k for k in MAKES if "nesterov" not in k])
def test_the_defaults_of_an_optimizer(name, x64):
    """With gradients so small that ε = 1e-8 counts; every leaf decays, by 1e-4."""
    make, given, equation = MAKES[name]
    documented = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    cases = [((), direction_of(equation, documented))]
    if given is MOMENTUM:
        momentum = functools.partial(reference.trace, momentum=0.8)
        cases = [((), lambda gradients: gradients), ((0.8,), momentum)]
    for arguments, direction in cases:
        assert_walks(
            make(0.1, *arguments),
            direction,
            lambda t: 0.1,
            lambda k, t: 1e-4 * (name in COUPLED),
            lambda k, t: 0.1 * 1e-4 * (name in DECOUPLED),
            1e-7,
        )


@pytest.mark.parametrize("name", [k for k in MAKES if "nesterov" not in k])
def test_the_dtypes_of_an_optimizers_moments(name):
    make, given, _ = MAKES[name]

    def dtypes(**arguments):
        state = jax.eval_shape(make(0.1, **arguments).init, jnp.ones(2, jnp.bfloat16))
        names = ["trace"] if given is MOMENTUM else ["mu", "nu"]
        names += ["nu_max"] * name.startswith("amsgrad")
        return {k: optax.tree.get(state, k).dtype.name for k in names}

    if given is MOMENTUM:
        assert dtypes(momentum=0.9) == {"trace": "float32"}
        narrow = dtypes(momentum=0.9, accumulator_dtype=jnp.bfloat16)
        assert narrow == {"trace": "bfloat16"}
        return
    plain = dtypes()
    assert set(plain.values()) == {"float32"}
    assert dtypes(mu_dtype=jnp.bfloat16) == plain | {"mu": "bfloat16"}
    second = {k: "bfloat16" for k in plain if k != "mu"}
    assert dtypes(nu_dtype=jnp.bfloat16) == plain | second


ETA, LAM = 0.05, 0.02
RHO = {"learning_rate": ETA * LAM, "schedule": LAM * ETA / PEAK, "nothing": LAM}


@pytest.mark.parametrize("scaled_by", RHO)
@pytest.mark.parametrize("b", [0.9, 0.5])
def test_equilibria_are_sums_over_past_gradients(scaled_by, b):
    """Independent gradients of variance 1 enter the weights by `share`, k steps later."""
    rho = RHO[scaled_by]
    how = {"scaled_by": scaled_by}
    how |= {"peak_learning_rate": PEAK} if scaled_by == "schedule" else {}
    k = np.arange(200_000)
    share = (1 - b) * ((1 - rho) ** (k + 1) - b ** (k + 1)) / (1 - rho - b)
    variance = np.sum(share**2)
    rms = rates.equilibrium_rms(ETA, LAM, b, **how)
    assert rms == pytest.approx(ETA * variance**0.5, rel=1e-9)
    cosine = np.sum(share[1:] * share[:-1]) / variance  # of the weights with the next
    angle = rates.equilibrium_angle(ETA, LAM, b, **how)
    assert angle == pytest.approx(math.acos(cosine), rel=1e-6)
    sgd = rates.sgd_equilibrium_rms(ETA, LAM, b, 0.3, **how)
    assert sgd == pytest.approx((ETA * 0.3) ** 0.5 * (variance / (1 - b) ** 2) ** 0.25)
    for within, power in ((0.05, 2), (0.1, 4)):
        steps = rates.equilibrium_steps(2, ETA, LAM, within=within, power=power, **how)
        left = (2**power - 1) * (1 - rho) ** (power * steps)
        assert left == pytest.approx((1 + within) ** power - 1)
    a = 1 - rho
    sphere = rates.sphere_learning_rate(ETA, LAM, b, **how)
    squared = (1 - a * a) * (1 - a * b) / (1 + a * b)
    assert sphere == pytest.approx(math.sqrt(squared) / a, rel=1e-12)


@pytest.mark.parametrize("given", [{}, {"b1": 0.5}], ids=str)
def test_the_angles_of_a_comparison_are_those_of_b1(given):
    table = rates.compare(1e-3, 2**19, 2**33, 2**28, **given)
    for line in str(table).splitlines()[1:]:
        *rule, _, _, angle, _ = line.split()
        rho = 1e-3 * table[" ".join(rule)]
        cosine = 1 - rho * (1 - (b := given.get("b1", 0.9))) / (1 + (1 - rho) * b)
        assert float(angle) == pytest.approx(math.degrees(math.acos(cosine)), rel=6e-3)


def test_the_names_of_monitors():
    for given, name in (((), "decay"), (("wd",), "wd")):
        monitored = optwd.monitor_decay(optwd.adamw(0.1), *given)
        found = optwd.metrics(monitored.init(jnp.ones(2)))
        assert set(found) == {f"{name}/{x}" for x in ("norm_in", "norm_added", "ratio")}
