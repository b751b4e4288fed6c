"""What it costs to trace a tree of many leaves: one trace and one kernel per type of leaf.

- the program of a step calls one function per leaf, and leaves of one type call the same;
- a rule is traced once per type, however many leaves and multipliers there are;
- the compiler sees the same kernels for all leaves of one type;
- leaves of one type keep their own values, multipliers and rates;
- leaves that are not traced may live on different devices.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optwd
from tests.helpers import python, random_tree, stepper

LEAVES = 52  # of each type
SHAPES = [(3,), (2, 3)] * LEAVES


@pytest.mark.parametrize(
    "transformation",
    [optwd.scale_by_adam(), optwd.decay.linear(0.1), optwd.decay.linear(lambda step: step)],
    ids=["moments", "number", "schedule"],
)
def test_leaves_of_one_type_call_one_function(transformation):
    params = random_tree(SHAPES, 0)
    state = transformation.init(params)
    program = jax.make_jaxpr(transformation.update)(params, state, params)
    called = [e.params["jaxpr"] for e in program.eqns if e.params.get("name") == "_on_leaf"]
    assert len(called) == 2 * LEAVES
    assert len({id(jaxpr) for jaxpr in called}) == 2


def test_a_rule_is_traced_once_per_type():
    traces = []

    def rule(u, p, rho):
        traces.append(u.shape)
        return u + rho * p

    params = random_tree(SHAPES, 0)
    transformation = optwd.decay.from_rule(rule, 0.1, [1.0, 2.0, 3.0, 4.0] * (LEAVES // 2))
    jax.eval_shape(transformation.update, params, transformation.init(params), params)
    assert sorted(traces) == [(2, 3), (3,)]


def test_leaves_of_one_type_share_their_kernels():
    """XLA compiles kernels of one text once; where the text differs, once again."""
    leaves = 5
    params, optimizer = [jnp.ones((8, 8))] * leaves, optwd.adamw(0.1)
    step = jax.jit(stepper(optimizer))
    text = step.lower(params, optimizer.init(params), params).compile().as_text()
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
    params, grads = random_tree(SHAPES, 0), random_tree(SHAPES, 1)
    multipliers = [(i % 7) / 4 for i in range(2 * LEAVES)]
    transformation = optwd.decay.linear(rate, multipliers)
    updates, _ = jax.jit(transformation.update)(grads, transformation.init(params), params)
    for u, g, p, k in zip(updates, grads, params, multipliers, strict=True):
        expected = np.float64(g) + 0.1 * k * np.float64(p)
        np.testing.assert_allclose(u, expected, rtol=0, atol=5e-7)  # a few ulp of 4


@pytest.mark.slow
def test_eager_leaves_may_live_on_different_devices(tmp_path):
    script = """
import jax, jax.numpy as jnp, optwd
params = [jax.device_put(jnp.full(3, 2.0), d) for d in 2 * jax.devices()]
optimizer = optwd.adamw(0.1, weight_decay=0.5)
updates, state = optimizer.update(params, optimizer.init(params), params)
assert len(jax.devices()) == 2
assert [u.devices() for u in updates] == [p.devices() for p in params]
"""
    two = "--xla_force_host_platform_device_count=2"
    run = python("-c", script, cwd=tmp_path, XLA_FLAGS=two)
    assert run.returncode == 0, run.stderr
