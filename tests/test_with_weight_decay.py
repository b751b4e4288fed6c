"""Decay for every finished optimizer of Optax and optax.contrib.

- the new parameters are the optimizer's own new parameters minus the decay term, in
  float64 to 1e-12, with a mask of floats, a schedule and the extra arguments of both;
- with every rule; inside inject_hyperparams and MultiSteps, and around them.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optwd
from optwd import decay
from tests import reference
from tests.helpers import cases

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 3
MASK = {"kernel": 0.5, "bias": False, "deep": [True]}
RATES = np.array([0.0, 0.1, 0.3])
START = {
    "kernel": np.array([[-1.0, 1.5], [0.4, 0.2]]),
    "bias": np.array([0.5, -0.5]),
    "deep": [np.array([[2.0, -1.0], [0.1, 0.7]])],
}

PLAIN = {
    optax: """adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad
        fromage lamb lars lion nadam nadamw novograd optimistic_adam_v2
        optimistic_gradient_descent radam rmsprop rprop sgd sign_sgd signum sm3 yogi""",
    optax.contrib: """acprop ademamix adopt cocob dadapt_adamw dog dowg galore madgrad muon
        prodigy schedule_free_adamw schedule_free_sgd simplified_ademamix""",
}
OPTIMIZERS = {
    f"{module.__name__}.{name}": functools.partial(getattr(module, name), 0.05)
    for module, names in PLAIN.items()
    for name in names.split()
    if hasattr(module, name)  # not every version of Optax has every one
} | {
    "optax.noisy_sgd": lambda: optax.noisy_sgd(0.05, key=jax.random.key(0)),
    "optax.lbfgs": lambda: optax.lbfgs(0.05, linesearch=None),
    "optax.contrib.mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.05)),
    "optax.contrib.schedule_free": lambda: optax.contrib.schedule_free(
        optax.sgd(0.05), 0.05
    ),
    # those that need the loss, as an extra argument
    "optax.polyak_sgd": optax.polyak_sgd,
    "optax.contrib.momo": lambda: optax.contrib.momo(0.05),
    "optax.contrib.momo_adam": lambda: optax.contrib.momo_adam(0.05),
}


def rate(step):
    return jnp.asarray(RATES)[step]


def loss(params):
    return sum(jnp.sum((p - 0.3) ** 4 + p**2) for p in jax.tree.leaves(params))


@jax.jit
def gradients_at(params):
    value, gradients = jax.value_and_grad(loss)(params)
    return gradients, {"value": value, "unused": 1}


assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-12)


def decayed(params, rho, rule=reference.linear):
    """Minus the decay term, in NumPy."""
    return jax.tree.map(
        lambda p, k: -rule(np.zeros_like(p), np.asarray(p), rho * k), params, MASK
    )


QUICK = ["optax.lion", "optax.sgd"]


@pytest.mark.parametrize("make", cases(OPTIMIZERS, QUICK))
def test_own_step_minus_the_decay(make):
    optimizer = optax.with_extra_args_support(make())
    both = optwd.with_weight_decay(make(), decay.linear(rate, MASK))
    params = jax.tree.map(jnp.asarray, START)
    own_state, state = optimizer.init(params), both.init(params)
    own_step, step = jax.jit(optimizer.update), jax.jit(both.update)
    moved = 0.0
    for t in range(STEPS):
        gradients, extra = gradients_at(params)
        own, own_state = own_step(gradients, own_state, params, **extra)
        updates, state = step(gradients, state, params, **extra)
        new = optax.apply_updates(params, updates)
        want = jax.tree.map(
            lambda p, d, w: p + d + w, params, own, decayed(params, RATES[t])
        )
        assert_close(new, want)
        moved += optax.tree.norm(own)
        params = new
    assert moved > 1e-8  # the optimizer takes part


RULES = {
    "cautious": decay.cautious,
    "proximal": decay.proximal,
    "toward_init": decay.toward_init,
    "constrained": lambda rate, mask: decay.constrained(0.1, mask, update_rate=rate),
}


@pytest.mark.parametrize("make_rule", RULES.values(), ids=RULES)
def test_every_rule(make_rule):
    """θ − rule(−Δ, θ, ρ): the rule sees the whole step as its direction."""
    own = optax.adam(0.05)
    both = optwd.with_weight_decay(own, make_rule(0.1, MASK))
    params = jax.tree.map(jnp.asarray, START)
    gradients, _ = gradients_at(params)
    step, _ = own.update(gradients, own.init(params), params)
    new = optax.apply_updates(params, both.update(gradients, both.init(params), params)[0])
    equations = {
        decay.cautious: lambda p: reference.cautious,
        decay.proximal: lambda p: reference.proximal,
        decay.toward_init: reference.toward,
        RULES["constrained"]: lambda p: reference.constrained(0.1),
    }

    def want(p, d, k):
        p, d = np.asarray(p), np.asarray(d)
        return p - equations[make_rule](p)(-d, p, 0.1 * k) if k else p + d

    assert_close(new, jax.tree.map(want, params, step, MASK))


SOME = ["optax.sgd", "optax.lion"]
some = pytest.mark.parametrize("make", [OPTIMIZERS[n] for n in SOME], ids=SOME)


@some
def test_inside_inject_hyperparams(make):
    def factory(weight_decay):
        return optwd.with_weight_decay(make(), decay.linear(weight_decay, MASK))

    injected, optimizer = optax.inject_hyperparams(factory)(weight_decay=rate), make()
    params = jax.tree.map(jnp.asarray, START)
    state, own_state = injected.init(params), optimizer.init(params)
    for t in range(STEPS):
        gradients, _ = gradients_at(params)
        own, own_state = optimizer.update(gradients, own_state, params)
        updates, state = injected.update(gradients, state, params)
        assert_close(updates, jax.tree.map(jnp.add, own, decayed(params, RATES[t])))
        np.testing.assert_allclose(state.hyperparams["weight_decay"], RATES[t])
        params = optax.apply_updates(params, updates)


@some
def test_inside_and_around_multi_steps(make):
    """Inside, it decays once in two steps; around, in each."""
    rule, steps = (
        decay.linear(0.1, MASK),
        functools.partial(optax.MultiSteps, every_k_schedule=2),
    )
    inside = steps(optwd.with_weight_decay(make(), rule))
    around = optwd.with_weight_decay(steps(make()).gradient_transformation(), rule)
    params = jax.tree.map(jnp.asarray, START)
    gradients, _ = gradients_at(params)
    term, none = decayed(params, 0.1), jax.tree.map(np.zeros_like, START)
    for transformation, terms in ((inside, (none, term)), (around, (term, term))):
        plain, state = steps(make()), transformation.init(params)
        own_state = plain.init(params)
        own_step, step = jax.jit(plain.update), jax.jit(transformation.update)
        for expected in terms:
            own, own_state = own_step(gradients, own_state, params)
            updates, state = step(gradients, state, params)
            assert_close(updates, jax.tree.map(jnp.add, own, expected))
