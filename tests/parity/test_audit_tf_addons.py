"""`audit` on real optimizers of TensorFlow Addons: no learning rate on the decay.

- `AdamW` and `SGDW` are decoupled with the rate λ itself, on the old weights.
- An empty `decay_var_list` decays everything.
"""

import warnings

import numpy as np
import pytest

import optwd
from optwd import audit

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # not ours to heed
    tf = pytest.importorskip("tensorflow")
    theirs = pytest.importorskip("tensorflow_addons", exc_type=ImportError).optimizers
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PARAMS = {"kernel": np.ones((3, 2)), "bias": np.ones(3)}
ETA, LAM = 2.0**-7, 2.0**-3  # Keras 2 keeps them in float32


def loop(optimizer, chosen=None, **options):
    def make(lr, wd):
        rate = lr if callable(lr) else lambda t: lr

        def init(params):
            variables = {k: tf.Variable(v, dtype=tf.float64) for k, v in params.items()}
            return variables, optimizer(wd, rate(0), **options), 0

        def step(params, gradients, state):
            variables, optimizer_, t = state
            optimizer_.learning_rate = rate(t)
            for k, variable in variables.items():
                variable.assign(params[k])
            pairs = [(tf.constant(gradients[k]), v) for k, v in variables.items()]
            given = (
                {} if chosen is None else {"decay_var_list": [variables[k] for k in chosen]}
            )
            optimizer_.apply_gradients(pairs, **given)
            return {k: v.numpy().copy() for k, v in variables.items()}, (
                variables,
                optimizer_,
                t + 1,
            )

        return optwd.Loop(init, step)

    return make


@pytest.mark.parametrize(
    ("name", "options"), [("AdamW", {}), ("SGDW", {"momentum": 0.875})], ids=str
)
def test_the_rate_is_the_weight_decay(name, options):
    make = loop(getattr(theirs, name), **options)
    found = audit(make, PARAMS, learning_rate=ETA, weight_decay=LAM)
    assert "tf_addons" in found.like
    for leaf in found.leaves.values():
        assert (leaf.form, leaf.powers, leaf.acts_on) == ("decoupled", (0, 0, 1), "old")
        np.testing.assert_allclose(leaf.rates, LAM, rtol=1e-6)


@pytest.mark.parametrize(("chosen", "bias"), [(["kernel"], "none"), ([], "decoupled")])
def test_a_list_of_variables_and_its_trap(chosen, bias):
    make = loop(theirs.AdamW, chosen)
    found = audit(make, PARAMS, learning_rate=ETA, weight_decay=LAM)
    assert found.leaves["kernel"].form == "decoupled"
    assert found.leaves["bias"].form == bias
