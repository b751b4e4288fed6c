"""`compat.composer` equals Composer's own optimizers over 60 steps in float64, to 1e-12."""

import inspect

import pytest

from optwd.compat import composer as compat
from tests.parity import recipe

torch = pytest.importorskip("torch")
theirs = recipe.load("composer.optim.decoupled_weight_decay", "composer.utils")
pytestmark = pytest.mark.usefixtures("x64")

PAIRS = {
    "adamw": (compat.decoupled_adamw, theirs.DecoupledAdamW),
    "sgdw": (compat.decoupled_sgdw, theirs.DecoupledSGDW),
}
CASES = [
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.01, "eps": 1e-3}),
    ("adamw", {"weight_decay": 0.01, "amsgrad": True, "betas": (0.9, 0.9)}),
    ("sgdw", {}),
    ("sgdw", {"weight_decay": 0.01, "momentum": 0.9}),
    ("sgdw", {"weight_decay": 0.01, "momentum": 0.9, "nesterov": True}),
    ("sgdw", {"weight_decay": 0.01, "momentum": 0.9, "dampening": 0.4}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_equal_to_composer(name, options, scheduled):
    ours, optimizer = PAIRS[name]
    tables, rate, more = {}, recipe.LR, {}
    if scheduled:
        tables, rate = {"lr": recipe.WARM}, recipe.schedule(recipe.WARM)
        more = {"initial_lr": recipe.LR}
    expected = recipe.torch_run(torch, lambda p: optimizer(p, recipe.LR, **options), tables)
    recipe.assert_equal(recipe.ours(ours(rate, **options, **more)), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_defaults_are_composers(name):
    ours, optimizer = (inspect.signature(f).parameters for f in PAIRS[name])
    assert ours.keys() - optimizer.keys() == {"mask", "initial_lr"}
    for argument in ours.keys() & optimizer.keys() - {"lr"}:
        assert ours[argument].default == optimizer[argument].default, argument
