"""`audit` on real optimizers of PyTorch, as loops.

- Form, powers and rates of each are what `compat.CONVENTIONS` says of torch.
- An optimizer of `compat.torch` has the same audit as torch's own.
- Parameter groups show as leaves that do not decay.
"""

import functools

import numpy as np
import pytest

from optwd import audit, compat
from tests.parity import recipe

torch = pytest.importorskip("torch")

PARAMS = {"kernel": np.ones((3, 2)), "bias": np.ones(3)}
ETA, LAM = 1e-2, 0.1


loop = functools.partial(recipe.torch_loop, torch)

DECOUPLED = {"AdamW": {}, "Adam": {"decoupled_weight_decay": True}}
COUPLED = {
    "Adam": {},
    "Adamax": {},
    "Adagrad": {},
    "Adadelta": {},
    "RMSprop": {},
    "NAdam": {},
    "RAdam": {},
    "SGD": {"momentum": 0.9},
}


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled(name):
    found = audit(loop(getattr(torch.optim, name), **DECOUPLED[name]), PARAMS)
    assert "torch.AdamW" in found.like
    for leaf in found.leaves.values():
        assert (leaf.form, leaf.powers, leaf.acts_on) == ("decoupled", (1, 1, 1), "old")
        np.testing.assert_allclose(leaf.rates, ETA * LAM, rtol=1e-9)


@pytest.mark.parametrize("name", COUPLED)
def test_coupled(name):
    found = audit(loop(getattr(torch.optim, name), **COUPLED[name]), PARAMS)
    for leaf in found.leaves.values():
        assert (leaf.form, leaf.acts_on) == ("coupled", "gradient")
        assert leaf.powers.learning_rate == leaf.powers.weight_decay == 1
    assert "torch.Adam" in found.like


def test_sgd_without_momentum_is_both():
    found = audit(loop(torch.optim.SGD), PARAMS)
    assert {"torch.SGD", "torch.AdamW"} <= set(found.like)
    assert found.leaves["kernel"].l2 == 1


def test_asgd_lowers_its_own_rate():
    """Its ``lambd`` shrinks the weights once more, with and without the weight decay."""
    leaf = audit(loop(torch.optim.ASGD, lambd=0.5), PARAMS).leaves["kernel"]
    assert (leaf.form, leaf.l2) == ("decoupled", 1)
    rates = [ETA * LAM * (1 + 0.5 * ETA * t) ** -0.75 for t in range(4)]
    np.testing.assert_allclose(leaf.rates, rates, rtol=1e-6)


def test_parameter_groups():
    def groups(tensors, wd):
        return [
            {"params": [tensors["kernel"]]},
            {"params": [tensors["bias"]], "weight_decay": 0},
        ]

    found = audit(loop(torch.optim.AdamW, groups), PARAMS)
    assert {p: x.form for p, x in found.leaves.items()} == {
        "kernel": "decoupled",
        "bias": "none",
    }
    assert found.problems == ()


PAIRS = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    "nadam": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "radam": (torch.optim.RAdam, {"decoupled_weight_decay": True}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_compat_is_audited_as_torch_is(name):
    theirs, options = PAIRS[name]
    ours = getattr(compat.torch, name)
    a = audit(loop(theirs, **options), PARAMS)
    b = audit(lambda lr, wd: ours(lr, weight_decay=wd, **options), PARAMS)
    assert a.like == b.like
    for path, leaf in a.leaves.items():
        other = b.leaves[path]
        assert (leaf.form, leaf.acts_on, leaf.powers, leaf.l2) == (
            other.form,
            other.acts_on,
            other.powers,
            other.l2,
        )
        np.testing.assert_allclose(leaf.rates, other.rates, rtol=1e-6)
