"""A run that began in torch or Optax continues here on the same path.

- torch: 100 steps, carried over at step 50; steps 51 to 100 within 1e-10 in float64, for
  every optimizer, with groups, schedules, linear and convolution kernels transposed;
- Optax: the same for adamw, masked and scheduled, and for its relatives, also from a
  checkpoint of plain dicts and lists;
- what does not fit is an error that names it; nothing is shared with torch's buffers.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import compat, masks

STEPS, CARRIED = 100, 50
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(16, 2, 6, 6)), RNG.normal(size=(16, 3))
NAMES = {
    "0.weight": "conv/kernel",
    "0.bias": "conv/bias",
    "3.weight": "dense/kernel",
    "3.bias": "dense/bias",
}
PARAMS = {
    "conv": {"kernel": np.zeros((3, 3, 2, 4)), "bias": np.zeros(4)},
    "dense": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)},
}


def loss(params):
    x = jnp.asarray(X.transpose(0, 2, 3, 1))
    layout = ("NHWC", "HWIO", "NHWC")
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
    x = jnp.tanh(x + bias[None, None, None]).mean((1, 2))
    x = x @ params["dense"]["kernel"] + params["dense"]["bias"][None]
    return jnp.mean((x - jnp.asarray(Y)) ** 2)


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(before)


def model(torch):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.Tanh(), Mean(), torch.nn.Linear(4, 3)
    )


def train(torch, net, optimizer, steps, rates=None):
    """The weights after each of these steps, by torch's names."""
    x, y, seen = torch.tensor(X), torch.tensor(Y), []
    for t in steps:
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = float(rates[t])
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        seen.append({k: v.detach().numpy().copy() for k, v in net.state_dict().items()})
    return seen


def follow(optimizer, state, params, expected, tolerance=1e-10):
    """Our steps from here against those that the source goes on to make."""
    step = jax.jit(
        lambda params, state: optimizer.update(jax.grad(loss)(params), state, params)
    )
    difference = 0.0
    for there in expected:
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        here = {
            "0.weight": params["conv"]["kernel"].transpose(3, 2, 0, 1),
            "0.bias": params["conv"]["bias"],
            "3.weight": params["dense"]["kernel"].T,
            "3.bias": params["dense"]["bias"],
        }
        difference = max(difference, *(np.abs(here[k] - there[k]).max() for k in there))
    print(f"{difference:.1e} over {len(expected)} steps")
    assert difference <= tolerance


CASES = {
    "Adam": {"weight_decay": 0.1},
    "Adam, amsgrad": {"weight_decay": 0.1, "amsgrad": True, "betas": (0.9, 0.9)},
    "AdamW": {"weight_decay": 0.5},
    "SGD": {"weight_decay": 0.1},
    "SGD, momentum": {"weight_decay": 0.1, "momentum": 0.9, "nesterov": True},
    "SGD, dampening": {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5},
    "NAdam": {"weight_decay": 0.1, "momentum_decay": 0.1},
    "RAdam": {"weight_decay": 0.5, "decoupled_weight_decay": True},
}


@pytest.mark.parametrize(("name", "options"), CASES.items(), ids=CASES)
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_torch(name, options, scheduled, torch, x64):
    net = model(torch)
    make = getattr(torch.optim, name.split(",")[0])
    optimizer = make(net.parameters(), 0.02, **options)
    rates = 0.02 * (1 - np.arange(STEPS) / STEPS) if scheduled else None
    train(torch, net, optimizer, range(CARRIED), rates)

    params = compat.torch.params_from(net.state_dict(), PARAMS, NAMES)
    saved = optimizer.state_dict()
    ours = compat.torch.optimizer_from(
        saved, NAMES, lr=(lambda t: jnp.asarray(rates)[t]) if scheduled else None
    )
    step = CARRIED if name.startswith("SGD") else None
    state = compat.torch.state_from(saved, params, NAMES, ours, step=step)

    expected = train(torch, net, optimizer, range(CARRIED, STEPS), rates)
    follow(ours, state, params, expected)


def test_torch_groups_by_name(torch, x64):
    """Groups in another order than the model's, told apart by torch's own names."""
    net = model(torch)
    named = dict(net.named_parameters())
    groups = [
        {"params": [(k, p) for k, p in named.items() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [("3.weight", named["3.weight"])], "weight_decay": 0.5},
        {"params": [("0.weight", named["0.weight"])], "weight_decay": 0.25},
    ]
    optimizer = torch.optim.AdamW(groups, 0.02)
    train(torch, net, optimizer, range(CARRIED))
    params = compat.torch.params_from(net.state_dict(), PARAMS, NAMES)
    saved = optimizer.state_dict()
    ours = compat.torch.optimizer_from(saved, NAMES)
    state = compat.torch.state_from(saved, params, NAMES)

    # the same by numbers, with the names in the order in which torch got them
    order = ["0.bias", "3.bias", "3.weight", "0.weight"]
    by_number = copy.deepcopy(saved)
    for group in by_number["param_groups"]:
        del group["param_names"]
    again = compat.torch.state_from(by_number, params, {k: NAMES[k] for k in order})
    jax.tree.map(np.testing.assert_array_equal, again, state)

    # and in our own adamw with the groups as a mask
    mask = masks.multipliers({"dense/kernel": 1.0, "conv/kernel": 0.5})
    adamw = optwd.adamw(0.02, weight_decay=0.5, mask=mask)
    in_ours = compat.torch.state_from(saved, params, NAMES, adamw)

    before = jax.tree.map(np.array, (params, state))
    expected = train(torch, net, optimizer, range(CARRIED, STEPS))
    jax.tree.map(np.testing.assert_array_equal, before, (params, state))
    follow(ours, state, params, expected)
    follow(adamw, in_ours, params, expected)


def test_torch_in_bfloat16_and_float32(torch):
    """float32 is held by float32, and bfloat16, which NumPy lacks, by it too."""
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(2, 3, dtype=dtype))
        optimizer = torch.optim.AdamW([weight])
        weight.grad = torch.full((2, 3), 0.3, dtype=dtype)
        optimizer.step()
        params = {"kernel": jnp.ones((3, 2))}
        state = compat.torch.state_from(optimizer.state_dict(), params, {"w": "kernel"})
        got = optax.tree.get(state, "mu")["kernel"]
        kept = optimizer.state[weight]["exp_avg"].float().numpy().T
        np.testing.assert_array_equal(got, kept)
        assert got.dtype == jnp.float32


# --- what does not fit ---------------------------------------------------------------


def saved(**changes):
    """A state_dict of plain arrays: two parameters after three steps."""
    ones = np.ones((2, 3), np.float32)
    state = {
        0: {"step": 3.0, "exp_avg": ones, "exp_avg_sq": ones},
        1: {"step": 3.0, "exp_avg": ones[:, 0], "exp_avg_sq": ones[:, 0]},
    }
    group = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    group |= {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True}
    for i, entries in changes.pop("state", {}).items():
        state[i] = {**state[i], **entries}
    groups = [{**group, "params": [0]}, {**group, "params": [1]}]
    groups[1] |= changes
    return {"state": state, "param_groups": groups}


SMALL = {"fc": {"kernel": np.zeros((3, 2), np.float32), "bias": np.zeros(2, np.float32)}}
TWO = {"fc.weight": "fc/kernel", "fc.bias": "fc/bias"}


def test_plain_arrays_are_enough():
    state = compat.torch.state_from(saved(), SMALL, TWO)
    assert optax.tree.get(state, "step") == 3
    np.testing.assert_array_equal(optax.tree.get(state, "mu")["fc"]["kernel"], 1)


def test_the_step_may_be_0_or_said_again():
    begun = {0: {"step": 0.0}, 1: {"step": 0.0}}
    state = compat.torch.state_from(saved(state=begun), SMALL, TWO)
    assert optax.tree.get(state, "step") == 0
    state = compat.torch.state_from(saved(), SMALL, TWO, step=3)
    assert optax.tree.get(state, "step") == 3
    with pytest.raises(ValueError, match=r"says step=3.0, not 4"):
        compat.torch.state_from(saved(), SMALL, TWO, step=4)


@pytest.mark.parametrize(("missing", "said"), [(5, "p4"), (6, "p4, …")])
def test_five_of_the_paths_that_are_missing(missing, said):
    state = optax.adamw(0.1).init({"w": jnp.ones(2)})
    params = {"w": jnp.ones(2)} | {f"p{i}": jnp.ones(1) for i in range(missing)}
    with pytest.raises(ValueError, match=rf"^p0, .*, {said}: no mu in the Optax state"):
        compat.optax.state_from(state, params, optwd.adamw(0.1))


def test_axes_can_be_said():
    names = {"fc.weight": ("fc/kernel", (1, 0)), "fc.bias": "fc/bias"}
    a, b = (compat.torch.state_from(saved(), SMALL, n) for n in (names, TWO))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("change", "names", "says"),
    [
        ({}, {"fc.weight": "fc/kernel"}, "names has 1 parameters, the state_dict 2"),
        ({}, {"fc.weight": "fc/kernel", "b": "fc/b"}, "fc/bias: no mu in the torch"),
        ({}, {"b": "fc/bias", "w": "fc/kernel"}, r"fc/bias: mu has shape \(2, 3\) in the"),
        ({}, {"b": "fc/bias", "w": "fc/bias"}, "fc/bias: two of torch's names lead to it"),
        ({"param_names": ["x"]}, TWO, "x: in the state_dict, but not in names"),
        ({"state": {1: {"step": 4.0}}}, TWO, "the parameters differ in step"),
        ({"state": {1: {"step": 3.5}, 0: {"step": 3.5}}}, TWO, "must be a whole number"),
        ({"state": {1: {"exp_avg": None}}}, TWO, "fc.bias: no exp_avg in torch's state"),
        ({"lr": 0.2}, TWO, r"param_groups\[1\] has lr=0.2, param_groups\[0\] 0.1"),
    ],
)
def test_what_does_not_fit(change, names, says):
    with pytest.raises(ValueError, match=says):
        compat.torch.state_from(saved(**change), SMALL, names)


def test_a_dtype_that_does_not_hold_torchs():
    wide = {"exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}
    with pytest.raises(TypeError, match="fc/bias: mu has dtype float64 in the torch"):
        compat.torch.state_from(saved(state={1: wide}), SMALL, TWO)


def test_an_optimizer_that_has_no_place_or_wants_more():
    with pytest.raises(ValueError, match="has mu, nu, for which this optimizer has no"):
        compat.torch.state_from(saved(), SMALL, TWO, optwd.sgdw(0.1))
    anchored = optax.chain(optwd.adam(0.1), optwd.decay.toward_init(0.1))
    with pytest.raises(ValueError, match=r"AnchorState.anchor: the torch state_dict has"):
        compat.torch.state_from(saved(), SMALL, TWO, anchored)


def test_into_a_part_of_a_partition():
    parts = optax.partition(
        {"ours": optwd.adamw(0.1), "fixed": optax.set_to_zero()}, "ours"
    )
    state = compat.torch.state_from(saved(), SMALL, TWO, parts)
    assert jax.tree.structure(state) == jax.tree.structure(parts.init(SMALL))
    np.testing.assert_array_equal(optax.tree.get(state, "nu")["fc"]["bias"], 1)


def test_an_optimizer_of_torch_that_is_not_here():
    group = {"lr": 0.1, "alpha": 0.99, "params": [0]}
    with pytest.raises(ValueError, match="is not of torch's Adam, AdamW, SGD"):
        compat.torch.optimizer_from({"state": {}, "param_groups": [group]}, {"w": "w"})


def test_sgd_needs_the_step(torch):
    weight = torch.nn.Parameter(torch.ones(2))
    state_dict = torch.optim.SGD([weight]).state_dict()
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="torch state_dict has no step: give step="):
        compat.torch.state_from(state_dict, params, {"w": "w"})
    state = compat.torch.state_from(state_dict, params, {"w": "w"}, step=7)
    assert optax.tree.get(state, "step") == 7


def test_weights_that_are_not_there():
    with pytest.raises(ValueError, match=r"fc.weight: in names, but not in the"):
        compat.torch.params_from({"fc.bias": np.zeros(2)}, SMALL, TWO)


# --- Optax ---------------------------------------------------------------------------


def linear(t):
    return jnp.asarray(0.02 * (1 - np.arange(STEPS) / STEPS))[t]


KERNELS = {
    "conv": {"kernel": True, "bias": False},
    "dense": {"kernel": True, "bias": False},
}
OPTAX = {
    "adamw": (
        optax.adamw(0.02, weight_decay=0.5),
        optwd.adamw(0.02, weight_decay=0.5),
    ),
    "adamw, masked and scheduled": (
        optax.adamw(linear, weight_decay=0.5, mask=KERNELS),
        optwd.adamw(linear, weight_decay=0.5, mask=KERNELS),
    ),
    "adamw, scheduled": (
        optax.adamw(linear, weight_decay=0.5),
        optwd.adamw(linear, weight_decay=0.5),
    ),
    "adamw, masked": (
        optax.adamw(0.02, weight_decay=0.5, mask=KERNELS),
        optwd.adamw(0.02, weight_decay=0.5, mask=masks.path("**/kernel")),
    ),
    "amsgrad": (optax.amsgrad(linear), optwd.amsgrad(linear)),
    "nadamw": (optax.nadamw(0.02), optwd.nadamw(0.02)),
    "sgd": (
        optax.sgd(linear, momentum=0.9),
        optwd.sgdw(linear, 0.9, weight_decay=0.0),
    ),
}


def plain(node):
    """A state as a checkpoint that comes back without its classes."""
    if hasattr(node, "_asdict"):
        return {k: plain(x) for k, x in node._asdict().items()}
    if isinstance(node, dict):
        return {k: plain(x) for k, x in node.items()}
    return [plain(x) for x in node] if isinstance(node, (tuple, list)) else np.asarray(node)


@pytest.mark.parametrize(("theirs", "ours"), OPTAX.values(), ids=OPTAX)
@pytest.mark.parametrize("form", [lambda s: s, plain], ids=["state", "plain"])
def test_optax(theirs, ours, form, x64):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape)), PARAMS)
    state, path = theirs.init(params), []
    step = jax.jit(lambda p, s: theirs.update(jax.grad(loss)(p), s, p))
    for t in range(STEPS):
        if t == CARRIED:
            carried = compat.optax.state_from(form(state), params, ours), params
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        path.append(
            {
                "0.weight": np.asarray(params["conv"]["kernel"]).transpose(3, 2, 0, 1),
                "3.bias": np.asarray(params["dense"]["bias"]),
            }
        )
    follow(ours, *carried, path[CARRIED:], tolerance=1e-12)


def test_optax_inside_of_what_is_around_it():
    params = {"w": jnp.ones(2)}
    injected = optax.inject_hyperparams(optax.adamw)(0.1)
    _, state = injected.update(params, injected.init(params), params)
    carried = compat.optax.state_from(state, params, optwd.adamw(0.1))
    np.testing.assert_allclose(optax.tree.get(carried, "mu")["w"], 0.1, rtol=1e-6)
    assert optax.tree.get(carried, "count") == 1


def test_optax_that_does_not_fit():
    params = {"w": jnp.ones(2), "b": jnp.ones(1)}
    two = optax.chain(optax.scale_by_adam(), optax.trace(0.9)).init(params)
    with pytest.raises(ValueError, match="holds moments 2 times"):
        compat.optax.state_from(two, params, optwd.adamw(0.1))
    state = optax.adamw(0.1).init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="b: no mu in the Optax state"):
        compat.optax.state_from(state, params, optwd.adamw(0.1))
    state = optax.sgd(0.1, momentum=0.9).init(params)
    with pytest.raises(ValueError, match="Optax state has no step: give step="):
        compat.optax.state_from(state, params, optwd.sgdw(0.1, 0.9))
    sgdw = compat.optax.state_from(state, params, optwd.sgdw(0.1, 0.9), step=5)
    assert optax.tree.get(sgdw, "step") == 5
    state = optax.adamw(linear).init(params)
    with pytest.raises(ValueError, match=r"the counts of the Optax state differ: \[0, 5\]"):
        compat.optax.state_from(state, params, optwd.adamw(linear), step=5)
