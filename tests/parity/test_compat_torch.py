"""`compat.torch` equals real torch over 60 steps in float64, to 1e-12.

- every optimizer with both forms of decay, its flags, and schedules for lr and decay;
- a mask equals parameter groups; the defaults are torch's;
- complex parameters are two real ones, in every optimizer.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optwd import masks
from optwd.compat import torch as compat
from tests.parity import recipe

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("x64")

PAIRS = {
    "adam": (compat.adam, torch.optim.Adam),
    "adamw": (compat.adamw, torch.optim.AdamW),
    "sgd": (compat.sgd, torch.optim.SGD),
    "nadam": (compat.nadam, torch.optim.NAdam),
    "radam": (compat.radam, torch.optim.RAdam),
}
L2, DECOUPLED = {"weight_decay": 0.3}, {"weight_decay": 0.3, "decoupled_weight_decay": True}
CASES = [
    ("adam", {"betas": (0.8, 0.99), "eps": 1e-4}),
    ("adam", L2),
    ("adam", DECOUPLED),
    ("adam", {**L2, "amsgrad": True, "betas": (0.9, 0.9)}),
    ("adam", {**L2, "maximize": True}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.3, "eps": 1e-3}),
    ("adamw", {"weight_decay": 0.3, "amsgrad": True, "betas": (0.9, 0.9)}),
    ("adamw", {"weight_decay": 0.3, "maximize": True}),
    ("sgd", {}),
    ("sgd", L2),
    ("sgd", {**L2, "momentum": 0.9}),
    ("sgd", {**L2, "momentum": 0.9, "dampening": 0.4}),
    ("sgd", {**L2, "momentum": 0.9, "nesterov": True, "maximize": True}),
    ("nadam", {}),
    ("nadam", {**L2, "momentum_decay": 0.5}),
    ("nadam", {**DECOUPLED, "eps": 1e-3, "maximize": True}),
    ("radam", {}),
    ("radam", {**L2, "eps": 1e-3}),
    ("radam", {**DECOUPLED, "betas": (0.8, 0.9), "maximize": True}),
]


@pytest.fixture(autouse=True)
def double():
    """NAdam keeps its product of momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_equal_to_torch(name, options, scheduled):
    ours, theirs = PAIRS[name]
    tables = {"lr": recipe.WARM} if scheduled else {}
    if scheduled and "weight_decay" in options:
        tables["weight_decay"] = recipe.FALLING
    changed = {"lr": 0.02} | options
    changed |= {k: recipe.schedule(table) for k, table in tables.items()}
    expected = recipe.torch_run(torch, lambda p: theirs(p, 0.02, **options), tables)
    recipe.assert_equal(recipe.ours(ours(**changed)), expected)


@pytest.mark.parametrize("name", PAIRS)
def test_a_mask_is_a_parameter_group(name):
    ours, theirs = PAIRS[name]
    expected = recipe.torch_run(
        torch,
        lambda groups: theirs(groups, 0.02),
        groups=[
            (["kernel", "conv"], {"weight_decay": 0.3}),
            (["bias"], {"weight_decay": 0.0}),
            (["scale"], {"weight_decay": 0.15}),
        ],
    )
    mask = masks.multipliers({"kernel": 1.0, "conv": 1.0, "scale": 0.5})
    got = recipe.ours(ours(0.02, weight_decay=0.3, mask=mask))
    recipe.assert_equal(got, expected)


@pytest.mark.parametrize("name", PAIRS)
def test_defaults_are_torchs(name):
    ours, theirs = (inspect.signature(f).parameters for f in PAIRS[name])
    shared = ours.keys() & theirs.keys()
    assert ours.keys() - shared == {"mask"}
    assert theirs.keys() - shared - {"params"} <= {
        *("foreach", "fused", "capturable", "differentiable"),
    }
    for argument in shared:
        assert ours[argument].default == theirs[argument].default, argument


def test_in_float32():
    expected = recipe.torch_run(
        torch, lambda p: torch.optim.RAdam(p, 0.02, weight_decay=0.3), dtype=np.float32
    )
    got = recipe.ours(compat.radam(0.02, weight_decay=0.3), np.float32)
    recipe.assert_equal(got, expected, 1e-6)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}]
)
def test_nesterov_needs_what_torch_needs(options):
    with pytest.raises(ValueError, match="Nesterov momentum requires"):
        torch.optim.SGD([torch.zeros(1)], nesterov=True, **options)
    with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
        compat.sgd(nesterov=True, **options)


COMPLEX = [
    ("adam", {"betas": (0.8, 0.9)}),
    ("adam", {"amsgrad": True, "betas": (0.8, 0.9)}),
    ("adamw", {"weight_decay": 0.3, "maximize": True}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.3}),
    ("nadam", {"weight_decay": 0.3}),
    ("radam", {"weight_decay": 0.3, "betas": (0.8, 0.8)}),
]


@pytest.mark.parametrize(("name", "options"), COMPLEX, ids=str)
def test_complex_parameters_are_two_real_ones(name, options):
    ours, theirs = PAIRS[name]
    a, b = np.random.default_rng(0).normal(size=(2, 31, 5))
    start, *gradients = a + 1j * b
    params, weight = jnp.asarray(start), torch.nn.Parameter(torch.tensor(start))
    optimizer, reference = ours(0.05, **options), theirs([weight], 0.05, **options)
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for g in gradients:
        updates, state = step(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(g)
        reference.step()
    assert updates.dtype == np.complex128
    np.testing.assert_allclose(params, weight.detach().numpy(), rtol=0, atol=1e-12)
