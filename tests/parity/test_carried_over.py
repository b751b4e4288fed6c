"""A run that began in torch or Optax continues here on the same path.

- torch: 100 steps, carried over at step 50; steps 51 to 100 within 1e-10 in float64, for
  every optimizer, with groups, schedules, linear and convolution kernels transposed;
- torch, further: float32 and bfloat16, options that are tensors, complex parameters,
  ascent, states whose keys are names or went through JSON;
- Optax: the same for adamw, masked and scheduled, and for its relatives, also from a
  checkpoint of plain dicts and lists; inside of MultiSteps (also between two steps),
  inject_hyperparams, apply_if_finite and named_chain, nested; from Orbax;
- a name with a star in it is no pattern;
- what does not fit is an error that names it (AMSGrad's two kinds of maximum, too); nothing
  is shared with torch's buffers.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import compat, masks
from tests.helpers import cases

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


GRADIENT = jax.jit(jax.grad(loss))  # compiled once for all runs


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    before = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # more would wait for one another
    yield torch
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])


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
    step, difference = jax.jit(optimizer.update), 0.0
    for there in expected:
        updates, state = step(GRADIENT(params), state, params)
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


def one_weight(torch, name, dtype, steps=3, shape=(4,), **options):
    """A torch optimizer of one weight after some steps, that weight, and its gradients."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, steps + 3, *shape))
    real = dtype in ("float32", "float64")
    given = (parts[0] if real else parts[0] + 1j * parts[1]).astype(dtype)
    weight = torch.nn.Parameter(torch.tensor(given[0]))
    optimizer = getattr(torch.optim, name)([weight], **options)
    for g in given[1 : steps + 1]:
        weight.grad = torch.tensor(g)
        optimizer.step()
    return optimizer, weight, given[steps + 1 :]


def assert_continues(optimizer, weight, gradients, tolerance, torch):
    """Two more steps of torch and of the optimizer that was carried over from it."""
    saved = optimizer.state_dict()
    params = {"w": jnp.asarray(weight.detach().numpy())}
    names = {"w": ("w", tuple(range(weight.ndim)))}  # as it is
    ours = compat.torch.optimizer_from(saved, names)
    state = compat.torch.state_from(saved, params, names)
    for g in gradients:
        updates, state = ours.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        weight.grad = torch.tensor(g)
        optimizer.step()
        got, expected = np.asarray(params["w"]), weight.detach().numpy()
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "SGD"])
def test_torch_ascends_on(name, torch, x64):
    options = {"lr": 0.1, "weight_decay": 0.3, "maximize": True}
    options |= {"momentum": 0.9} if name == "SGD" else {}
    run = one_weight(torch, name, "float64", **options)
    if name != "SGD":
        return assert_continues(*run, 1e-12, torch)
    optimizer, _, gradients = run
    ours = compat.torch.optimizer_from(optimizer.state_dict(), {"w": "w"})
    up = ours.update(jnp.asarray(gradients[0]), ours.init(jnp.zeros(4)), jnp.zeros(4))[0]
    np.testing.assert_allclose(up, 0.1 * gradients[0], rtol=1e-12)
    return None


def test_a_nadam_run_in_float32():
    torch = pytest.importorskip("torch")  # with its default dtype, float32
    run = one_weight(torch, "NAdam", "float32", lr=0.1)
    assert_continues(*run, 1e-6, torch)


def test_betas_and_learning_rate_that_are_tensors(torch, x64):
    run = one_weight(
        *(torch, "AdamW", "float64"),
        lr=torch.tensor(0.1),
        betas=(torch.tensor(0.8), torch.tensor(0.9)),
        foreach=False,
    )
    assert_continues(*run, 1e-12, torch)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam"])
def test_complex_parameters_carried_over(name, torch, x64):
    options = {"betas": (0.8, 0.8)} | ({"amsgrad": True} if name == "Adam" else {})
    run = one_weight(torch, name, "complex128", shape=(2, 3), lr=0.1, **options)
    assert_continues(*run, 1e-12, torch)


def test_a_name_is_not_a_pattern():
    names = {"w": "a*", "bias": "ab"}
    optimizer = compat.torch.optimizer_from(saved(weight_decay=0.0), names)
    params = {"a*": jnp.ones(1), "ab": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a*"], -0.01, rtol=1e-6)
    np.testing.assert_array_equal(updates["ab"], 0)


@pytest.mark.parametrize(
    "params", [{"a*": jnp.ones(1)}, {"a*": jnp.ones(1), "ab": None, "c": jnp.ones(1)}]
)
def test_names_lead_to_all_parameters(params):
    names = {"w": "a*", "bias": "ab"}
    optimizer = compat.torch.optimizer_from(saved(weight_decay=0.0), names)
    with pytest.raises(ValueError, match="the names must lead to all parameters: only in"):
        optimizer.init(params)


def test_a_leaf_of_another_optimizer_need_not_be_seen():
    names = {"w": "a", "bias": "b"}
    optimizer = compat.torch.optimizer_from(saved(weight_decay=0.0), names)
    optimizer.init({"a": jnp.ones(1), "b": optax.MaskedNode()})


def test_keys_that_are_names_or_went_through_json():
    expected = compat.torch.state_from(saved(), SMALL, TWO)
    through_json = saved()
    through_json["state"] = {str(k): v for k, v in through_json["state"].items()}
    named = saved()
    by_name = dict(zip(named["state"], TWO, strict=True))
    named["state"] = {by_name[k]: v for k, v in named["state"].items()}
    for group in named["param_groups"]:
        group["params"] = [by_name[k] for k in group["params"]]
    backwards = dict(reversed(TWO.items()))  # names need no order
    for got in (
        compat.torch.state_from(through_json, SMALL, TWO),
        compat.torch.state_from(named, SMALL, backwards),
    ):
        jax.tree.map(np.testing.assert_array_equal, got, expected)
    strange = saved()
    strange["state"] = {f"p{k}": v for k, v in strange["state"].items()}
    with pytest.raises(ValueError, match=r"a state for \['p0', 'p1'\], which are not"):
        compat.torch.state_from(strange, SMALL, TWO)


def test_amsgrads_maxima_are_not_taken_for_one_another():
    theirs, raw = optax.amsgrad(0.1), compat.torch.adam(amsgrad=True)
    with pytest.raises(ValueError, match=r"nu_max_raw: .* maximum of the corrected second"):
        compat.optax.state_from(theirs.init(SMALL), SMALL, raw)
    more = {"max_exp_avg_sq": np.ones((2, 3), np.float32)}
    one = {"max_exp_avg_sq": np.ones(2, np.float32)}
    torchs = saved(state={0: more, 1: one})
    with pytest.raises(ValueError, match=r"nu_max: the torch .* maximum of the raw second"):
        compat.torch.state_from(torchs, SMALL, TWO, optwd.amsgrad(0.1))
    state = compat.torch.state_from(torchs, SMALL, TWO, raw)
    np.testing.assert_array_equal(optax.tree.get(state, "nu_max_raw")["fc"]["kernel"], 1)
    with pytest.raises(ValueError, match="has nu_max, for which this optimizer has no"):
        compat.optax.state_from(theirs.init(SMALL), SMALL, optwd.adamw(0.1))
    with pytest.raises(TypeError, match="the state is of type ScaleByAmsgradState"):
        compat.scale_by_amsgrad_raw().update(SMALL, theirs.init(SMALL)[0])


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
QUICK = ("adamw", "sgd")


def plain(node):
    """A state as a checkpoint that comes back without its classes."""
    if hasattr(node, "_asdict"):
        return {k: plain(x) for k, x in node._asdict().items()}
    if isinstance(node, dict):
        return {k: plain(x) for k, x in node.items()}
    return [plain(x) for x in node] if isinstance(node, (tuple, list)) else np.asarray(node)


FORMS = {"state": lambda s: s, "plain": plain}


@pytest.mark.parametrize(("theirs", "ours"), cases(OPTAX, QUICK))
@pytest.mark.parametrize("form", cases(FORMS, {"plain"}))
def test_optax(theirs, ours, form, x64):
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(0.3 * rng.normal(size=p.shape)), PARAMS)
    state, path = theirs.init(params), []
    step = jax.jit(theirs.update)
    for t in range(STEPS):
        if t == CARRIED:
            carried = compat.optax.state_from(form(state), params, ours), params
        updates, state = step(GRADIENT(params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(
            {
                "0.weight": np.asarray(params["conv"]["kernel"]).transpose(3, 2, 0, 1),
                "3.bias": np.asarray(params["dense"]["bias"]),
            }
        )
    follow(ours, *carried, path[CARRIED:], tolerance=1e-12)


def named(adamw):
    return optax.named_chain(("clip", optax.clip(0.5)), ("trace", adamw))


def injected(make, **options):
    return optax.inject_hyperparams(make)(weight_decay=0.3, **options)


AROUND = {
    "MultiSteps": lambda make: optax.MultiSteps(make(0.1), 3),
    "inject": lambda make: injected(make, learning_rate=0.1),
    "inject, scheduled": lambda make: injected(make, learning_rate=linear),
    "inject around MultiSteps": lambda make: optax.inject_hyperparams(
        lambda rate: optax.MultiSteps(make(rate), 3).gradient_transformation()
    )(linear),
    "named_chain": lambda make: named(make(linear)),
    "partition": lambda make: optax.partition(
        {"ours": make(linear), "fixed": optax.set_to_zero()}, {"w": "ours"}
    ),
    "apply_if_finite": lambda make: optax.apply_if_finite(make(linear), 2),
    "nested": lambda make: optax.apply_if_finite(
        optax.MultiSteps(named(injected(make, learning_rate=linear)), 3), 2
    ),
}


QUICK_AROUND = ("inject", "inject around MultiSteps", "nested")


@pytest.mark.parametrize("name", cases({n: n for n in AROUND}, QUICK_AROUND))
@pytest.mark.parametrize("form", cases(FORMS, {"plain"}))
def test_optax_inside_of_what_is_around_it(name, form, x64):
    """Seven steps in Optax, perhaps one with a NaN, carried over after the fourth."""
    theirs, ours = (AROUND[name](make) for make in (optax.adamw, optwd.adamw))
    params = {"w": jnp.arange(1.0, 4.0)}
    rng = np.random.default_rng(0)
    gradients = [{"w": jnp.asarray(rng.normal(size=3))} for _ in range(7)]
    if name in ("apply_if_finite", "nested"):
        gradients[2]["w"] = gradients[2]["w"].at[0].set(np.nan)
    state, kept = theirs.init(params), params
    their_step, our_step = jax.jit(theirs.update), jax.jit(ours.update)
    for t, g in enumerate(gradients):
        if t == 4:
            if name == "inject":  # as a run may do at any time
                state.hyperparams["learning_rate"] = jnp.asarray(0.03)
            carried, kept = compat.optax.state_from(form(state), params, ours), params
        updates, state = their_step(g, state, params)
        params = optax.apply_updates(params, updates)
    for g in gradients[4:]:
        updates, carried = our_step(g, carried, kept)
        kept = optax.apply_updates(kept, updates)
    assert not np.isnan(kept["w"]).any()
    np.testing.assert_allclose(kept["w"], params["w"], rtol=0, atol=1e-12)


def test_optax_out_of_and_into_what_is_around_it():
    params = {"w": jnp.ones(2)}
    theirs = injected(optax.adamw, learning_rate=0.1)
    _, state = theirs.update(params, theirs.init(params), params)
    carried = compat.optax.state_from(state, params, optwd.adamw(0.1))
    np.testing.assert_allclose(optax.tree.get(carried, "mu")["w"], 0.1, rtol=1e-6)
    assert optax.tree.get(carried, "count") == 1
    into = optax.MultiSteps(injected(optwd.adamw, learning_rate=linear), 2)
    carried = compat.optax.state_from(state, params, into)
    assert (carried.mini_step, carried.gradient_step) == (0, 1)
    assert carried.inner_opt_state.count == 1
    assert carried.inner_opt_state.hyperparams_states["learning_rate"].count == 1
    np.testing.assert_array_equal(carried.acc_grads["w"], 0)
    theirs = injected(optax.adamw, learning_rate=lambda t: 0.02 * t)  # which is not kept
    _, state = theirs.update(params, theirs.init(params), params)
    fixed = injected(optwd.adamw, learning_rate=0.1)
    carried = compat.optax.state_from(state, params, fixed)
    np.testing.assert_allclose(carried.hyperparams["learning_rate"], 0.1, rtol=1e-6)


def test_a_chain_that_names_a_part_as_optax_names_a_moment():
    params = {"w": jnp.ones(2)}
    theirs = optax.named_chain(("trace", optax.trace(0.5)), ("η", optax.scale(-0.1)))
    _, state = theirs.update(params, theirs.init(params), params)
    ours = optax.named_chain(("trace", optwd.trace(0.5)), ("η", optax.scale(-0.1)))
    carried = compat.optax.state_from(state, params, ours, step=1)
    np.testing.assert_allclose(
        *(tx.update(params, s)[0]["w"] for tx, s in ((theirs, state), (ours, carried))),
        rtol=1e-6,
    )


def test_complex_moments_stay_complex(x64):
    params, g = jnp.asarray([[1 + 2j, -0.5j]]), jnp.asarray([[0.3 - 1j, 2 + 0.1j]])
    theirs, ours = optax.adamw(0.1), optwd.adamw(0.1)
    _, state = theirs.update(g, theirs.init(params), params)
    carried = compat.optax.state_from(state, params, ours)
    want, got = (
        tx.update(g * 2j, s, params)[0] for tx, s in ((theirs, state), (ours, carried))
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_parts_of_a_complex_moment_are_no_axis_of_a_complex_one():
    params, other = jnp.ones(3, jnp.complex64), jnp.ones((3, 2), jnp.complex64)
    state = optax.adamw(0.1).init(params)
    with pytest.raises(ValueError, match=r"shape \(3,\) in the .* and \(3, 2\) here"):
        compat.optax.state_from(state, other, optwd.adamw(0.1))


def test_accumulated_gradients_are_not_lost():
    params = {"w": jnp.ones(2)}
    theirs = optax.MultiSteps(optax.adamw(0.1), 2)
    _, state = theirs.update(params, theirs.init(params), params)
    with pytest.raises(ValueError, match="accumulated the gradients of 1 steps, for which"):
        compat.optax.state_from(state, params, optwd.adamw(0.1))
    _, state = theirs.update(params, state, params)
    carried = compat.optax.state_from(state, params, optwd.adamw(0.1))
    assert optax.tree.get(carried, "count") == 1


def test_a_checkpoint_of_orbax(tmp_path, x64):
    """The two lines of the docstring."""
    checkpoint = pytest.importorskip("orbax.checkpoint")
    params = {"w": jnp.arange(3.0)}
    theirs, ours = optax.adamw(linear), optwd.adamw(linear)
    updates, state = theirs.update(params, theirs.init(params), params)
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        back = checkpointer.restore(tmp_path / "state", jax.eval_shape(theirs.init, params))
    carried = compat.optax.state_from(back, params, ours)
    params = optax.apply_updates(params, updates)
    expected, _ = theirs.update(params, state, params)
    got, _ = ours.update(params, carried, params)
    np.testing.assert_allclose(got["w"], expected["w"], rtol=0, atol=1e-12)


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
