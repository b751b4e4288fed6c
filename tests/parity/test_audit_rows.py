"""Every row of the conventions that says that the tests audit a package: they do, here.

- `audit` of the package's own optimizer says what the row says.
- `Convention.checked` names exactly these packages and rows; the other rows say that no
  machine in the tests has checked them.
"""

import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optwd
from optwd import audit
from optwd.compat import CONVENTIONS
from tests.helpers import cases
from tests.parity import recipe

ETA, LAM = 1e-2, 0.1  # the defaults of `audit`
MATRIX = {"kernel": np.ones((3, 2))}
PARAMS = MATRIX | {"bias": np.ones(3)}


def of(module, name, **options):
    """An optimizer that is called as those of torch are."""

    def make():
        torch = pytest.importorskip("torch")
        theirs = getattr(pytest.importorskip(module), name)
        return recipe.torch_loop(torch, theirs, **options)

    return make


def of_timm(**options):
    def make():
        torch = pytest.importorskip("torch")
        theirs = recipe.load("timm.optim.adamw").AdamWLegacy
        return recipe.torch_loop(torch, theirs, foreach=False, **options)

    return make


def of_fastai(**options):
    def make():
        torch = pytest.importorskip("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not ours to heed
            theirs = pytest.importorskip("fastai.optimizer", exc_type=ImportError)

        def adam(groups, lr, weight_decay):
            (group,) = groups
            return theirs.Adam(group["params"], lr, wd=weight_decay, **options)

        return recipe.torch_loop(torch, adam, options="hypers")

    return make


def of_keras():
    tests = importlib.import_module("tests.parity.test_audit_keras")
    return tests.loop(tests.keras.optimizers.AdamW)


def of_optax(factory, name="weight_decay", **options):
    return lambda: lambda lr, wd: factory(lr, **{name: wd}, **options)


def scheduled():
    def make(lr, wd):
        peak = lr(0) if callable(lr) else lr
        return optwd.adamw(
            lr, weight_decay=wd, scaled_by="schedule", peak_learning_rate=peak
        )

    return make


def of_a_loss():
    def make(lr, wd):
        def penalty(params):
            return wd * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))

        def add(gradients, params):
            return jax.tree.map(jnp.add, gradients, jax.grad(penalty)(params))

        return optax.chain(optax.stateless(add), optax.adam(lr))

    return make


THEIRS = {
    "torch": {
        "torch.AdamW": of("torch.optim", "AdamW"),
        "torch.Adam": of("torch.optim", "Adam"),
        "torch.SGD": of("torch.optim", "SGD"),
        "torch.SGD(momentum)": of("torch.optim", "SGD", momentum=0.9),
        "torch.Muon": of("torch.optim", "Muon"),
    },
    "keras": {"keras": of_keras},
    "fastai": {
        "fastai": of_fastai(),
        "fastai(decouple_wd=False)": of_fastai(decouple_wd=False),
    },
    "timm": {
        "timm.AdamW": of_timm(),
        "timm.AdamW(corrected_weight_decay)": of_timm(corrected_weight_decay=True),
    },
    "optimi": {
        "optimi": of("optimi", "AdamW"),
        "optimi(decouple_lr)": of("optimi", "AdamW", decouple_lr=True),
        "optimi.Adam": of("optimi", "Adam"),
    },
    "schedulefree": {
        "schedule_free": of("schedulefree", "AdamWScheduleFree", begin=lambda o: o.train()),
    },
    "optax": {
        "optax.adamw": of_optax(optax.adamw),
        "optax.adafactor": of_optax(optax.adafactor, "weight_decay_rate"),
        "optax.contrib.muon": of_optax(optax.contrib.muon),
    },
    "jax": {"loss": of_a_loss},
    "optwd": {
        "optwd.adamw": of_optax(optwd.adamw),
        "optwd.adamw(scaled_by='schedule')": scheduled,
        "optwd.adamw(scaled_by='nothing')": of_optax(optwd.adamw, scaled_by="nothing"),
        "optwd.adam_l2": of_optax(optwd.adam_l2, "l2"),
    },
}


def test_a_row_says_that_it_is_checked_if_it_is():
    said = {
        c.name: c.checked for c in CONVENTIONS.values() if c.checked not in ("", "once")
    }
    assert said == {name: p for p, rows in THEIRS.items() for name in rows}


NAMES = {name: name for rows in THEIRS.values() for name in rows}
QUICK = ("optax.adamw", "optax.adafactor", "loss", "optwd.adam_l2", "torch.AdamW", "keras")


# optimi finds the 0.1 of an audit much where nothing scales it
@pytest.mark.filterwarnings("ignore:You are using weight_decay:UserWarning")
@pytest.mark.parametrize("name", cases(NAMES, QUICK))
def test_the_package_does_what_its_row_says(name):
    make = THEIRS[CONVENTIONS[name].checked][name]()
    found = audit(make, MATRIX if "uon" in name else PARAMS)
    if name != "schedule_free":
        assert name in found.like
        return
    row = CONVENTIONS[name]
    assert (row.acts_on, row.scaled_by) == ("z", "learning rate")  # as is shown below
    assert found.like == ()  # no other row decays z by y
    for leaf in found.leaves.values():
        # z −= ηλy in every step, y = .9x + .1z, x the mean of all z; y held still
        expected = [ETA * LAM * (1.1 - 0.1 / t) for t in range(1, 5)]
        np.testing.assert_allclose(leaf.rates, expected, rtol=1e-6)
        assert (leaf.form, leaf.acts_on, leaf.remembers) == ("decoupled", "old", True)
        assert (leaf.powers.learning_rate, leaf.powers.weight_decay) == (1, 1)
