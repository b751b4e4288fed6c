"""A train step leaves the process: `jax.export`, with the states as they are.

- one whole step, loss and gradients among it, exported for cpu, cuda and tpu, written,
  read and run, takes the same path; in float32 and in bfloat16, with everything in it;
- every state of the package and Optax's wrappers around it can be written;
- registering twice, or after somebody else, does no harm; two classes of one name raise.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import optwd
from tests.helpers import cases, written_and_read
from tests.registry import ALL

assert_equal = chex.assert_trees_all_equal


def everything():
    schedule = optax.cosine_decay_schedule(0.01, 10)
    decay = optwd.decay.cautious(0.1, optwd.masks.standard())
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optwd.scale_by_adam(mu_dtype=jnp.bfloat16),
        optwd.monitor(decay, "decay"),
        optax.scale_by_learning_rate(schedule),
    )


def monitored(optimizer):
    return optax.chain(optimizer, optwd.monitor_rounding())


RUNS = {
    "adamw": (jnp.float32, optwd.adamw(0.01, weight_decay=0.1)),
    "compensated": (jnp.bfloat16, monitored(optwd.compensate_rounding(everything()))),
    "stochastic": (jnp.bfloat16, monitored(optwd.round_stochastically(everything(), 0))),
}


@pytest.mark.parametrize(("dtype", "optimizer"), cases(RUNS, {"adamw"}))
def test_a_whole_train_step(dtype, optimizer):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 8), "bias": (8,)}, {"kernel": (8, 1), "bias": (1,)}
    params = [
        {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in d.items()} for d in shapes
    ]
    x = jnp.asarray(rng.normal(size=(16, 3)), dtype)

    def loss(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
        return jnp.mean((x - 0.5) ** 2)

    def step(params, state, x):
        value, gradients = jax.value_and_grad(loss)(params, x)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    optwd.register_for_export(state)
    here, there = jax.jit(step), written_and_read(step, params, state, x).call
    a = b = (params, state, None)
    for _ in range(3):
        a, b = here(*a[:2], x), there(*b[:2], x)
        assert_equal(a, b)


def test_every_state_can_be_written():
    inject = optax.inject_hyperparams(optwd.adamw)
    adamw = optwd.adamw(optax.constant_schedule(0.1))
    optimizers = [entry.make() for entry in ALL] + [
        optwd.decay.toward({"w": jnp.ones(2), "b": jnp.ones(())}, 0.1),
        optwd.monitor(optwd.monitor_rounding(), "both"),
        optwd.with_weight_decay(optax.lion(0.1), optwd.decay.linear(0.1)),
        inject(learning_rate=optax.constant_schedule(0.1)),
        optax.MultiSteps(adamw, 2),
        optax.apply_if_finite(adamw, 2),
        optax.partition({"a": adamw, "b": optax.set_to_zero()}, {"w": "a", "b": "b"}),
        optax.masked(adamw, {"w": True, "b": False}),
    ]
    params = {"w": jnp.ones(2), "b": jnp.ones(())}
    states = [optimizer.init(params) for optimizer in optimizers]
    optwd.register_for_export(jax.eval_shape(lambda: states))
    assert_equal(written_and_read(lambda x: x, states).call(states), states)


class Mine(NamedTuple):  # noqa: D101
    x: int


def test_registering_again_does_no_harm():
    export.register_namedtuple_serialization(Mine, serialized_name="by its owner")
    optwd.register_for_export(Mine(1), [Mine(2)])
    optwd.register_for_export({"deep": (Mine(3),)})
    assert_equal(
        written_and_read(lambda x: x, Mine(jnp.ones(2))).call(Mine(jnp.ones(2))),
        Mine(jnp.ones(2)),
    )


def test_every_tree_that_is_given_is_registered():
    class Last(NamedTuple):
        x: int

    optwd.register_for_export(jnp.ones(2), {"deep": [(Last(1),)]})
    with pytest.raises(ValueError, match="Duplicate serialization registration for type"):
        export.register_namedtuple_serialization(Last, serialized_name="once more")


def test_two_classes_of_one_name_raise():
    class Theirs(NamedTuple):
        x: int

    Theirs.__module__, Theirs.__qualname__ = "optwd.decay", "DecayState"
    optwd.register_for_export(optwd.DecayState(0))
    with pytest.raises(ValueError, match=r"optwd\.DecayState"):
        optwd.register_for_export(Theirs(1))
