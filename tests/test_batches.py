"""What it costs to trace a tree of many leaves, and that batching them changes nothing.

- a trace holds about two calls per root of the number of leaves of one type, and none for
  a leaf that is alone of its type;
- an equation is traced once per type, however many leaves and multipliers there are;
- the compiler sees the same kernels for all leaves of one type, whatever the last batch;
- leaves of one type keep their own values, multipliers and rates;
- leaves that are not traced may live on different devices.
"""

import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd

LEAVES = 52  # of each type; not a square, so the last batch is a shorter one


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = [(3,), (2, 3)] * LEAVES
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


@pytest.mark.parametrize(
    "transformation",
    [optwd.scale_by_adam(), optwd.decay.linear(0.1), optwd.decay.linear(lambda step: step)],
    ids=["moments", "number", "schedule"],
)
def test_calls_grow_with_the_root(transformation):
    def batches(params):
        state = transformation.init(params)
        jaxpr = jax.make_jaxpr(transformation.update)(params, state, params)
        return sum(e.params.get("name") == "_batch" for e in jaxpr.eqns)

    assert batches(tree(0)) == 2 * math.ceil(LEAVES / math.isqrt(LEAVES))
    assert batches([jnp.ones(n) for n in range(9)]) == 0  # no two of one type


def test_a_rule_is_traced_once_per_type():
    traces = []

    def rule(u, p, rho):
        traces.append(u.shape)
        return u + rho * p

    params = tree(0)
    transformation = optwd.decay.from_rule(rule, 0.1, [1.0, 2.0, 3.0, 4.0] * (LEAVES // 2))
    jax.eval_shape(transformation.update, params, transformation.init(params), params)
    assert sorted(traces) == [(2, 3), (3,)]


@pytest.mark.parametrize("leaves", [2, 9, 10, 13])  # the last batch: one of 2, 3, 1, 1
def test_leaves_of_one_type_share_their_kernels(leaves):
    """XLA compiles kernels of one text once; where the text differs, once again."""
    params, optimizer = [jnp.ones((8, 8))] * leaves, optwd.adamw(0.1)

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    text = jax.jit(step).lower(params, optimizer.init(params)).compile().as_text()
    of_a_leaf = re.compile(r"^%fused_\S+ [^\n]* -> f32\[8,8\] {\n(.*?)^}", re.M | re.S)
    kernels = of_a_leaf.findall(text)

    def without_names(kernel):
        names = {}
        kernel = re.sub(r", metadata=.*", "", kernel)
        return re.sub(
            r"%[\w.-]+", lambda m: str(names.setdefault(m[0], len(names))), kernel
        )

    assert len(kernels) == 3 * leaves
    assert len(set(map(without_names, kernels))) == 3


@pytest.mark.parametrize("rate", [0.1, lambda step: 0.1 * (step + 1)])
def test_every_leaf_keeps_its_own_rate(rate):
    params, grads = tree(0), tree(1)
    multipliers = [(i % 7) / 4 for i in range(2 * LEAVES)]
    transformation = optwd.decay.linear(rate, multipliers)
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
    for u, g, p, k in zip(updates, grads, params, multipliers, strict=True):
        expected = np.float64(g) + 0.1 * k * np.float64(p)
        np.testing.assert_allclose(u, expected, rtol=0, atol=5e-7)  # a few ulp of 4


def test_eager_leaves_may_live_on_different_devices():
    script = """
import jax, jax.numpy as jnp, optwd
params = [jax.device_put(jnp.full(3, 2.0), d) for d in 2 * jax.devices()]
optimizer = optwd.adamw(0.1, weight_decay=0.5)
updates, state = optimizer.update(params, optimizer.init(params), params)
assert len(jax.devices()) == 2
assert [u.devices() for u in updates] == [p.devices() for p in params]
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", script], env={**os.environ, **flags}, check=True)
