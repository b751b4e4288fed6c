"""`audit` on real optimizers of Keras 3, on its JAX backend, as loops.

- Every optimizer with a weight decay is decoupled, scaled by the learning rate, and acts on
  the old weights, as `compat.CONVENTIONS` says; also where its momentum keeps the learning
  rate.
- Variables excluded by name do not decay.
"""

import os

import numpy as np
import pytest

import optwd
from optwd import audit

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

if keras.backend.backend() != "jax":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

PARAMS = {"kernel": np.ones((3, 2)), "bias": np.ones(3)}
NAMES = [
    "Adam",
    "AdamW",
    "SGD",
    "RMSprop",
    "Adamax",
    "Nadam",
    "Adagrad",
    "Adadelta",
    "Lion",
]


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def loop(optimizer, excluded=(), **options):
    def make(lr, wd):
        rate = lr if callable(lr) else lambda t: lr

        def init(params):
            variables = {k: keras.Variable(v, name=k) for k, v in params.items()}
            theirs = optimizer(rate(0), weight_decay=wd, **options)
            if excluded:
                theirs.exclude_from_weight_decay(var_names=list(excluded))
            theirs.build(list(variables.values()))
            return variables, theirs, 0

        def step(params, gradients, state):
            variables, theirs, t = state
            theirs.learning_rate = rate(t)
            for k, variable in variables.items():
                variable.assign(params[k])
            theirs.apply([keras.ops.convert_to_tensor(gradients[k]) for k in variables])
            return {k: np.asarray(v.value) for k, v in variables.items()}, (
                variables,
                theirs,
                t + 1,
            )

        return optwd.Loop(init, step)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer(name):
    options = {"momentum": 0.9} if name == "SGD" else {}
    found = audit(loop(getattr(keras.optimizers, name), **options), PARAMS)
    assert "keras" in found.like
    for leaf in found.leaves.values():
        assert (leaf.form, leaf.powers, leaf.acts_on) == ("decoupled", (1, 1, 1), "old")
        np.testing.assert_allclose(leaf.rates, 1e-3, rtol=1e-6)


def test_excluded_variables():
    found = audit(loop(keras.optimizers.AdamW, excluded=["bias"]), PARAMS)
    assert {p: x.form for p, x in found.leaves.items()} == {
        "kernel": "decoupled",
        "bias": "none",
    }
