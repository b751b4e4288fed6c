"""The dialects that no library here can confirm, and what holds for all of them.

- the paper's AdamW and SGDW, big_vision's recipe and the decay after the update equal the
  equations of their sources over 60 steps, in float64 to 1e-12;
- every dialect with a converted number walks the path of every other one;
- big_vision's patterns: frozen leaves, schedules and multipliers of their own;
- every argument of the moments reaches its place; timm's caution and its limits;
- every option of torch's parameter groups, and Keras's patterns, without torch and Keras;
- masks, odd leaves and low precision; nothing of the frameworks is imported.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import compat, masks
from optwd.compat import CONVENTIONS, convert_weight_decay
from tests import reference
from tests.helpers import cases, python
from tests.parity import recipe

MULTIPLIER = recipe.WARM / recipe.LR  # at most 1, and 1/10 at first
LR, WD = recipe.LR, 0.03


def walk(leaf_step):
    """`leaf_step(name, p, gradients so far, t)` on every leaf of the common recipe."""
    params, seen = dict(recipe.START), []
    gradients = {k: [] for k in params}
    for t in range(recipe.STEPS):
        for k, p in params.items():
            gradients[k].append(recipe.gradient(k, p, t))
        params = {k: leaf_step(k, p, gradients[k], t) for k, p in params.items()}
        seen.append(params)
    return seen


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_paper_adamw(scheduled, x64):
    eta = MULTIPLIER if scheduled else np.ones(recipe.STEPS)
    optimizer = compat.paper.adamw(
        LR,
        0.8,
        0.99,
        1e-3,
        weight_decay=WD,
        schedule_multiplier=recipe.schedule(eta) if scheduled else 1.0,
    )
    recipe.assert_equal(
        recipe.ours(optimizer),
        walk(
            lambda k, p, g, t: (
                p - eta[t] * (LR * reference.adam(g, 0.8, 0.99, 1e-3)[-1] + WD * p)
            )
        ),
    )


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_paper_sgdw(scheduled, x64):
    eta = MULTIPLIER if scheduled else np.ones(recipe.STEPS)

    def step(k, p, g, t):
        m = reference.trace([eta[s] * LR * g[s] for s in range(t + 1)], 0.8)[-1]
        return p - m - eta[t] * WD * p

    optimizer = compat.paper.sgdw(
        LR,
        0.8,
        weight_decay=WD,
        schedule_multiplier=recipe.schedule(eta) if scheduled else 1.0,
    )
    recipe.assert_equal(recipe.ours(optimizer), walk(step))


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_big_vision(scheduled, x64):
    s = MULTIPLIER if scheduled else np.ones(recipe.STEPS)
    multiplier = {"kernel": 1.0, "conv": 0.1, "bias": 0.0, "scale": 0.1}
    optimizer = compat.big_vision.make(
        LR,
        WD,
        schedule=recipe.schedule(s) if scheduled else 1.0,
        wd_mults=[("k.*", 1.0), ("bias", 0.0), (".*", 0.1)],
    )
    recipe.assert_equal(
        recipe.ours(optimizer),
        walk(
            lambda k, p, g, t: (
                p - s[t] * (LR * reference.adam(g)[-1] + WD * multiplier[k] * p)
            )
        ),
    )


def test_big_vision_clips_by_the_norm_of_all(x64):
    optimizer = compat.big_vision.make(
        0.5, grad_clip_norm=2.0, direction=optax.identity(), wd_mults=[(".*", 1.0)]
    )
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose([*updates["a"], *updates["b"]], [-0.6, -0.8], rtol=1e-6)


def test_big_vision_says_when_a_pattern_matches_nothing():
    with pytest.raises(masks.MaskError, match="kernel"):
        compat.big_vision.make(0.1, 0.1).init({"dense": {"w": jnp.ones(1)}})


def test_big_vision_by_pattern(x64):
    """Frozen leaves, two schedules, and multipliers of the rate, over 60 steps."""
    s, falling = MULTIPLIER, np.linspace(1, 0.1, recipe.STEPS)
    rate = {"kernel": 1.0, "conv": 0.1, "bias": 3.0}
    decay = {"kernel": 1.0, "conv": 0.5, "bias": 0.0}
    optimizer = compat.big_vision.make(
        LR,
        WD,
        schedule=[
            ("scale", None),
            ("k.*", recipe.schedule(s)),
            (".*", recipe.schedule(falling)),
        ],
        lr_mults=[("conv", 0.1), ("bias|conv", 3.0)],
        wd_mults=[("kernel", 1.0), ("conv", 0.5)],
        grad_clip_norm=1.0,
    )

    def clipped(g, t):
        norm = np.sqrt(sum((g[k][t] ** 2).sum() for k in rate))
        return {k: g[k][t] / max(1.0, norm) for k in rate}

    params, path = dict(recipe.START), []
    seen, given = {k: [] for k in params}, {k: [] for k in rate}
    for t in range(recipe.STEPS):
        for k, p in params.items():
            seen[k].append(recipe.gradient(k, p, t))
        for k, g in clipped(seen, t).items():
            given[k].append(g)
        for k, multiplier in rate.items():
            step = LR * multiplier * reference.adam(given[k])[-1]
            whole = step + WD * decay[k] * params[k]
            params = params | {k: params[k] - (s if k == "kernel" else falling)[t] * whole}
        path.append(params)
    recipe.assert_equal(recipe.ours(optimizer), path)
    state = optimizer.init({k: jnp.asarray(v) for k, v in recipe.START.items()})
    assert isinstance(optax.tree.get(state, "mu")["scale"], optax.MaskedNode)


def test_big_vision_without_decay_wants_neither_parameters_nor_a_kernel():
    optimizer, g = compat.big_vision.make(0.1, wd=0), {"w": jnp.array([3.0])}
    updates, _ = optimizer.update(g, optimizer.init(g))
    np.testing.assert_allclose(updates["w"], [-0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": [("a", 1.0)]}, "^b: no pattern of schedule matches"),
        ({"schedule": [("a", 1.0), ("c", None)]}, "'c' matches no leaf"),
        ({"lr_mults": [("a", 0.0)]}, "lr_mults must be > 0, got 0"),
        ({"lr_mults": [("c", 0.5)]}, "'c' matches no leaf"),
        ({"wd": -0.1}, "wd must be in"),
    ],
    ids=str,
)
def test_big_vision_errors(options, says):
    with pytest.raises(ValueError, match=says):
        compat.big_vision.make(0.1, **options).init({"a": jnp.ones(1), "b": jnp.ones(1)})


@pytest.mark.parametrize(("count", "more"), [(5, ": no"), (6, ", …: no")])
def test_big_vision_names_five_leaves_without_a_schedule(count, more):
    params = dict.fromkeys("abcdef"[:count], jnp.ones(1)) | {"x": jnp.ones(1)}
    with pytest.raises(ValueError, match=f"^a, b, c, d, e{more} pattern"):
        compat.big_vision.make(0.1, schedule=[("x", 1.0)]).init(params)


def test_a_learning_rate_of_0_divides_nothing():
    with pytest.raises(ValueError, match="a learning rate of 0 cannot divide the decay"):
        compat.composer.decoupled_adamw(0.0, weight_decay=0.1)
    compat.composer.decoupled_adamw(0.0, weight_decay=0.1, initial_lr=0.1)


def test_decay_after_the_update(x64):
    def step(k, p, g, t):
        return (1 - WD) * (p - LR * reference.adam(g)[-1])

    optimizer = compat.tf_addons.decay_after_update(optwd.adam(LR), WD)
    recipe.assert_equal(recipe.ours(optimizer), walk(step))
    before = compat.tf_addons.extend_with_decoupled_weight_decay(optwd.adam(LR), WD)
    assert recipe.difference(recipe.ours(optimizer), recipe.ours(before)) > 1e-4


@pytest.mark.parametrize(
    "name", ["extend_with_decoupled_weight_decay", "decay_after_update"]
)
@pytest.mark.parametrize(
    ("decay_var_list", "decayed"),
    [
        (None, ["kernel", "bias", "my_bias"]),
        ([], []),
        ((), []),
        (["ker*"], ["kernel"]),
        ("bias", ["bias"]),
        (masks.path("bias"), ["bias"]),
        ({"kernel": True, "bias": False, "my_bias": False}, ["kernel"]),
    ],
    ids=str,
)
def test_decay_var_list(name, decay_var_list, decayed):
    optimizer = getattr(compat.tf_addons, name)(optax.sgd(0.1), 0.5, decay_var_list)
    params = {name: jnp.ones(1) for name in ("kernel", "bias", "my_bias")}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert {k for k, u in updates.items() if u[0] == -0.5} == set(decayed)
    assert {k for k, u in updates.items() if u[0] == 0} == params.keys() - set(decayed)


@pytest.mark.parametrize("make", [compat.tf_addons.adamw, compat.tf_addons.sgdw])
def test_decay_var_list_of_an_optimizer(make):
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for decay_var_list, decayed in ((None, "kernel bias"), (["ker*"], "kernel")):
        optimizer = make(0.5, 0.1, decay_var_list=decay_var_list)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        assert {k for k, u in updates.items() if u[0] == -0.5} == set(decayed.split())


# --- every dialect against every other ----------------------------------------------

# With ε = 0 it has no place, and all of these are one optimizer but for their decay.
SAME = {"b1": 0.8, "b2": 0.9}
BETAS = {"betas": (0.8, 0.9)}
KERAS = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.0}


def dialects(eta):
    """From the name of a convention to its optimizer with weight decay λ."""
    paper = {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.0}
    unit = recipe.schedule(MULTIPLIER) if callable(eta) else 1.0
    return {
        "paper": lambda λ: compat.paper.adamw(
            LR, weight_decay=λ, schedule_multiplier=unit, **paper
        ),
        "torch.AdamW": lambda λ: compat.torch.adamw(eta, eps=0.0, weight_decay=λ, **BETAS),
        "keras": lambda λ: compat.keras.adamw(eta, λ, **KERAS),
        "tf_addons": lambda λ: compat.tf_addons.adamw(λ, eta, **KERAS),
        "fastai": lambda λ: compat.fastai.adam(eta, 0.8, 0.9, 0.0, λ),
        "timm.AdamW": lambda λ: compat.timm.adamw(eta, eps=0.0, weight_decay=λ, **BETAS),
        "timm.AdamW(corrected_weight_decay)": lambda λ: compat.timm.adamw(
            eta, eps=0.0, weight_decay=λ, corrected_weight_decay=True, max_lr=LR, **BETAS
        ),
        "big_vision": lambda λ: compat.big_vision.make(
            LR,
            λ,
            schedule=unit,
            wd_mults=[(".*", 1.0)],
            direction=optwd.scale_by_adam(eps=0.0, **SAME),
        ),
        "composer": lambda λ: compat.composer.decoupled_adamw(
            eta, eps=0.0, weight_decay=λ, initial_lr=LR, **BETAS
        ),
        "optwd.adamw": lambda λ: optwd.adamw(eta, eps=0.0, weight_decay=λ, **SAME),
        "optwd.adamw(scaled_by='schedule')": lambda λ: optwd.adamw(
            eta,
            eps=0.0,
            weight_decay=λ,
            scaled_by="schedule",
            peak_learning_rate=LR,
            **SAME,
        ),
        "optwd.adamw(scaled_by='nothing')": lambda λ: optwd.adamw(
            eta, eps=0.0, weight_decay=λ, scaled_by="nothing", **SAME
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scheduled", [False, True])
def test_converted_numbers_walk_the_same_path(scheduled, x64):
    eta = recipe.schedule(recipe.WARM) if scheduled else LR
    source, compared = "torch.AdamW", 0
    makers = dialects(eta)
    expected = recipe.ours(makers[source](0.3))
    for target, make in makers.items():
        fits = target not in ("tf_addons", "optwd.adamw(scaled_by='nothing')") and (
            "corrected" not in target
        )
        if scheduled and not fits:
            continue
        λ = convert_weight_decay(
            0.3, source=source, target=target, learning_rate=eta, peak_learning_rate=LR
        )
        recipe.assert_equal(recipe.ours(make(λ)), expected)
        compared += 1
    assert compared == (len(makers) - 3 if scheduled else len(makers))


def spelled_twice():
    """Optimizers with all their arguments, none of them a default, in two spellings."""
    eta, unit = recipe.schedule(recipe.WARM), recipe.schedule(MULTIPLIER)
    torch, keras, tfa = compat.torch, compat.keras, compat.tf_addons
    betas, relative = {"betas": (0.8, 0.9), "eps": 1e-3}, 0.03 / LR
    first, three = {"initial_lr": LR}, (0.8, 0.9, 1e-3)
    of_schedule = optwd.rates.by_schedule(0.3, eta, LR)

    def decayed(optimizer, rate=0.01):
        return optwd.with_weight_decay(optimizer, optwd.decay.linear(rate))

    scheduled = optwd.rates.by_schedule(0.03, eta, LR)
    sgds = [torch.sgd(eta, 0.8, 0.3), torch.sgd(eta, 0.8, nesterov=True)]
    return {
        "timm.adamw": (
            compat.timm.adamw(eta, (0.8, 0.9), 1e-3, 0.3, True, maximize=True),
            torch.adamw(eta, (0.8, 0.9), 1e-3, 0.3, True, maximize=True),
        ),
        "timm.adamw, corrected": (
            compat.timm.adamw(
                eta, **betas, weight_decay=0.3, corrected_weight_decay=True, max_lr=LR
            ),
            torch.adamw(eta, **betas, weight_decay=of_schedule),
        ),
        "fastai.adam": (
            compat.fastai.adam(eta, *three, 0.3),
            torch.adamw(eta, **betas, weight_decay=0.3),
        ),
        "fastai.adam, coupled": (
            compat.fastai.adam(eta, *three, 0.3, False),
            torch.adam(eta, **betas, weight_decay=0.3),
        ),
        "fastai.sgd": (
            compat.fastai.sgd(eta, 0.8, 0.3),
            optwd.sgdw(eta, 0.8, weight_decay=0.3),
        ),
        "fastai.sgd, coupled": (
            compat.fastai.sgd(eta, 0.8, 0.3, False),
            torch.sgd(eta, 0.8, weight_decay=0.3),
        ),
        "composer.adamw": (
            compat.composer.decoupled_adamw(
                eta, (0.8, 0.9), 1e-3, 0.03, True, initial_lr=LR
            ),
            torch.adamw(eta, **betas, weight_decay=relative, amsgrad=True),
        ),
        "composer.sgdw": (
            compat.composer.decoupled_sgdw(eta, 0.8, 0.3, 0.03, **first),
            decayed(sgds[0], scheduled),
        ),
        "composer.sgdw, momentum": (
            compat.composer.decoupled_sgdw(0.1, 0.8, weight_decay=0.03),
            decayed(torch.sgd(0.1, 0.8), 0.03),
        ),
        "timm.adamw, corrected at a constant rate": (
            compat.timm.adamw(0.1, **betas, weight_decay=0.2, corrected_weight_decay=True),
            torch.adamw(0.1, **betas, weight_decay=0.2),
        ),
        "composer.sgdw, nesterov": (
            compat.composer.decoupled_sgdw(eta, 0.8, 0.0, 0.03, True, **first),
            decayed(sgds[1], scheduled),
        ),
        "tf_addons.adamw": (
            tfa.adamw(0.01, eta, *three),
            decayed(keras.adam(eta, *three)),
        ),
        "tf_addons.adamw, amsgrad": (
            tfa.adamw(0.01, eta, *three, True),
            decayed(keras.adam(eta, *three, True)),
        ),
        "tf_addons.extend_with_decoupled_weight_decay": (
            tfa.extend_with_decoupled_weight_decay(optwd.adam(eta, *three), 0.01),
            decayed(optwd.adam(eta, *three)),
        ),
        "tf_addons.sgdw": (tfa.sgdw(0.01, eta, 0.8), decayed(keras.sgd(eta, 0.8))),
        "tf_addons.sgdw, nesterov": (
            tfa.sgdw(0.01, eta, 0.8, True),
            decayed(keras.sgd(eta, 0.8, True)),
        ),
        "paper.adamw": (
            compat.paper.adamw(LR, *three, weight_decay=0.03, schedule_multiplier=unit),
            torch.adamw(eta, **betas, weight_decay=relative),
        ),
        "paper.sgdw": (
            compat.paper.sgdw(LR, 0.8, weight_decay=0.03, schedule_multiplier=unit),
            keras.sgd(eta, 0.8, weight_decay=relative),
        ),
        "keras.adamw, no amsgrad": (
            keras.adamw(eta, 0.3, *three),
            keras.adam(eta, *three, weight_decay=0.3),
        ),
        "keras.adamw": (
            keras.adamw(eta, 0.3, *three, True),
            keras.adam(eta, *three, True, 0.3),
        ),
        "algoperf.nadamw": (
            compat.algoperf.nadamw(
                eta, *three, 1e-4, 0.3, {k: k == "conv" for k in recipe.START}
            ),
            optax.chain(
                compat.scale_by_nadam_one_correction(*three, 1e-4),
                optwd.decay.linear(0.3, optwd.masks.path("conv")),
                optax.scale_by_learning_rate(eta),
            ),
        ),
        "torch.adam, decoupled": (
            torch.adam(eta, **betas, weight_decay=0.3, decoupled_weight_decay=True),
            torch.adamw(eta, **betas, weight_decay=0.3),
        ),
    }


@pytest.mark.slow
def test_every_argument_reaches_its_place(x64):
    """What no framework here confirms equals what torch and Keras confirm."""
    pairs = spelled_twice()
    optimizers = {(k, i): pair[i] for k, pair in pairs.items() for i in (0, 1)}
    start = {k: jnp.asarray(v) for k, v in recipe.START.items()}
    states = {k: optimizer.init(start) for k, optimizer in optimizers.items()}
    params = dict.fromkeys(optimizers, start)

    @jax.jit
    def step(params, states, gradients):
        for k, optimizer in optimizers.items():
            updates, states[k] = optimizer.update(gradients, states[k], params[k])
            params[k] = optax.apply_updates(params[k], updates)
        return params, states

    for t in range(8):
        gradients = {k: jnp.asarray(noise[t]) for k, noise in recipe.NOISE.items()}
        params, states = step(params, states, gradients)
    flat = {k: np.concatenate([v.ravel() for v in p.values()]) for k, p in params.items()}
    for name in pairs:
        np.testing.assert_allclose(
            flat[name, 0], flat[name, 1], rtol=0, atol=1e-14, err_msg=name
        )
    firsts = [flat[name, 0] for name in pairs if name not in ("paper.adamw", "keras.adamw")]
    same = [
        (i, j)
        for i, a in enumerate(firsts)
        for j, b in enumerate(firsts[:i])
        if np.abs(a - b).max() < 1e-6
    ]
    assert len(same) <= 1  # fastai.adam is torch.adam, decoupled


MASKED = {
    "torch.adam": (compat.torch.adam, {"weight_decay": 0.1}),
    "torch.adamw": (compat.torch.adamw, {}),
    "torch.sgd": (compat.torch.sgd, {"weight_decay": 0.1}),
    "torch.nadam": (compat.torch.nadam, {"weight_decay": 0.1}),
    "torch.radam": (compat.torch.radam, {"weight_decay": 0.1}),
    "keras.adam": (compat.keras.adam, {"weight_decay": 0.1}),
    "keras.adamw": (compat.keras.adamw, {}),
    "keras.sgd": (compat.keras.sgd, {"weight_decay": 0.1}),
    "timm.adamw": (compat.timm.adamw, {}),
    "composer.adamw": (compat.composer.decoupled_adamw, {}),
    "composer.sgdw": (
        compat.composer.decoupled_sgdw,
        {"lr": 0.1, "weight_decay": 0.1},
    ),
    "fastai.adam": (compat.fastai.adam, {"lr": 0.1}),
    "fastai.sgd": (compat.fastai.sgd, {"lr": 0.1, "wd": 0.1}),
    "paper.adamw": (compat.paper.adamw, {"weight_decay": 0.1}),
    "paper.sgdw": (compat.paper.sgdw, {"alpha": 0.1, "weight_decay": 0.1}),
}


@pytest.mark.parametrize(("make", "options"), MASKED.values(), ids=MASKED)
def test_masks_reach_the_decay(make, options):
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    optimizer = make(**options, mask={"kernel": True, "bias": False})
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert updates["kernel"][0] < 0
    assert updates["bias"][0] == 0


ADAM = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3}
GROUPS = {  # as torch writes them, no option at its default
    "adam": ADAM | {"amsgrad": True, "maximize": True, "decoupled_weight_decay": False},
    "adamw": ADAM | {"amsgrad": True, "maximize": True, "decoupled_weight_decay": True},
    "sgd": {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.3}
    | {"nesterov": False, "maximize": True},
    "sgd, nesterov": {"lr": 0.1, "momentum": 0.8, "dampening": 0.0, "weight_decay": 0.3}
    | {"nesterov": True, "maximize": False},
    "nadam": ADAM
    | {"momentum_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "radam": ADAM | {"decoupled_weight_decay": True, "maximize": True},
}


def walked(optimizer, gradients):
    params, path = {"w": jnp.array([1.0, -2.0])}, []
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in gradients:
        updates, state = update({"w": g}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params["w"])
    return np.stack(path)


@pytest.mark.parametrize("name", GROUPS)
def test_every_option_of_a_parameter_group_is_taken_over(name, x64):
    group, make = GROUPS[name], getattr(compat.torch, name.split(",")[0])
    given = {k: v for k, v in group.items() if k in inspect.signature(make).parameters}
    saved = {"state": {}, "param_groups": [group | {"params": [0], "foreach": None}]}
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
    expected = walked(make(**given), gradients)
    ours = compat.torch.optimizer_from(saved, {"w": "w"})
    np.testing.assert_allclose(walked(ours, gradients), expected, rtol=1e-14)
    ours = compat.torch.optimizer_from(saved, {"w": "w"}, lr=lambda t: 0.3)
    expected = walked(make(**given | {"lr": 0.3}), gradients)
    np.testing.assert_allclose(walked(ours, gradients), expected, rtol=1e-14)


@pytest.mark.parametrize("name", ["adam", "sgd", "nadam", "radam"])
def test_maximize_goes_up(name):
    group, p = GROUPS[name] | {"params": [0], "maximize": True}, {"w": jnp.zeros(2)}
    optimizer = compat.torch.optimizer_from({"param_groups": [group]}, {"w": "w"})
    up, _ = optimizer.update({"w": jnp.array([1.0, -2.0])}, optimizer.init(p), p)
    np.testing.assert_array_equal(np.sign(up["w"]), [1, -1])


def test_a_state_dict_whose_numbers_are_strings():
    """As JSON leaves it; names among the states need names among the params."""
    moment = np.array([0.25, 0.5], np.float32)
    run = {"step": 3.0, "exp_avg": moment, "exp_avg_sq": moment**2}
    params, names = {"w": jnp.zeros(2)}, {"w": "w"}

    def carried(key, member):
        saved = {"state": {key: run}, "param_groups": [{"params": [member]}]}
        return compat.torch.state_from(saved, params, names, optwd.adam(0.1))

    for key, member in (("0", 0), (0, "0"), ("0", "0"), (0, 0), ("w", "w")):
        np.testing.assert_array_equal(carried(key, member)[0].nu["w"], moment**2)
    with pytest.raises(ValueError, match=r"state for \['w'\], which are not .* alike"):
        carried("w", 0)


@pytest.mark.parametrize(
    "pattern",
    [
        *("bias", "^bias", "bias$", "^bias|scale$", "b.*_", "a$|^b", "(^bias|gamma)"),
        *("(?i)BIAS", r"s\$", "^(bias|gamma)$", "[ab]$", r"\w_\w", "(?<=_)b"),
    ],
)
def test_keras_excludes_what_re_search_finds(pattern):
    names = ["kernel", "bias", "my_bias", "bias_1", "gamma", "beta", "scale", "a_b", "s$"]
    tree = {"bias": dict.fromkeys(names, 1.0), "a_scale_b": {"kernel": 1.0}}
    got = compat.keras.exclude_from_weight_decay([pattern]).tree(tree)
    assert got["bias"] == {name: not re.search(pattern, name) for name in names}
    assert got["a_scale_b"]["kernel"]  # the names of layers are not looked at


def test_keras_patterns_are_searched_for_one_by_one():
    """As one pattern, `scale|(?i)BIAS` does not compile, and hides what is nowhere."""
    tree = dict.fromkeys(["kernel", "bias", "scale"], 1.0)
    mask = compat.keras.exclude_from_weight_decay(["scale", "(?i)BIAS"])
    assert mask.tree(tree) == {"kernel": True, "bias": False, "scale": False}
    with pytest.raises(masks.MaskError, match="'gamma' matches no leaf"):
        compat.keras.exclude_from_weight_decay(["bias", "gamma"]).tree(tree)


# --- odd leaves ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "nadam", "radam"])
def test_torch_takes_a_complex_leaf_for_two_real_ones(name):
    """The modulus would give both parts one denominator."""
    optimizer = getattr(compat.torch, name)(0.1, (0.8, 0.5), weight_decay=0.1)
    z = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32)
    parts = jnp.asarray(z)
    whole = jax.lax.complex(parts[..., 0], parts[..., 1])
    of_parts, of_whole = optimizer.init(parts[0]), optimizer.init(whole[0])
    for g, h in zip(parts[1:], whole[1:], strict=True):
        u, of_parts = optimizer.update(g, of_parts, parts[0])
        w, of_whole = optimizer.update(h, of_whole, whole[0])
        np.testing.assert_allclose(jnp.stack([w.real, w.imag], -1), u, rtol=1e-6)


EVERY = {
    "torch.adam": compat.torch.adam(0.1, weight_decay=0.1, maximize=True, amsgrad=True),
    "torch.sgd": compat.torch.sgd(0.1, 0.9, 0.1, weight_decay=0.1),
    "torch.nadam": compat.torch.nadam(0.1, weight_decay=0.1),
    "torch.radam": compat.torch.radam(0.1, decoupled_weight_decay=True, weight_decay=0.1),
    "keras.adam": compat.keras.adam(0.1, amsgrad=True, weight_decay=0.1),
    "keras.sgd": compat.keras.sgd(0.1, 0.9, weight_decay=0.1),
    "tf_addons.sgdw": compat.tf_addons.sgdw(0.01, 0.1, 0.9),
    "tf_addons.after": compat.tf_addons.decay_after_update(optwd.adam(0.1), 0.01),
    "paper.sgdw": compat.paper.sgdw(0.1, weight_decay=0.01),
    "composer.sgdw": compat.composer.decoupled_sgdw(0.1, 0.9, 0.1, 0.01),
    "timm.adamw": compat.timm.adamw(0.1, caution=True, corrected_weight_decay=True),
    "fastai.adam": compat.fastai.adam(0.1, decouple_wd=False),
    "algoperf.nadamw": compat.algoperf.nadamw(0.1, weight_decay=0.1),
    "big_vision.make": compat.big_vision.make(
        0.1, 0.1, wd_mults=[(".*/w", 0.5), (".*", 1)]
    ),
}


ODD = {"torch.nadam", "keras.sgd", "timm.adamw", "fastai.adam", "big_vision.make"}


@pytest.mark.parametrize("name", cases({name: name for name in EVERY}, ODD))
def test_odd_leaves_and_low_precision(name):
    optimizer = EVERY[name]
    dtypes = ("float32", "bfloat16", "float16")
    params = {"n": jnp.arange(3), "absent": None} | {
        dtype: {"w": jnp.ones((2, 3), dtype), "none": jnp.ones(2, dtype)}
        for dtype in dtypes
    }
    gradients = params | {"n": jnp.zeros(3, jnp.int32)}
    gradients |= {dtype: params[dtype] | {"none": None} for dtype in dtypes}
    state = optimizer.init(params)
    updates, new = jax.jit(optimizer.update)(gradients, state, params)
    assert not np.any(updates["n"])
    for dtype in dtypes:
        assert updates[dtype]["w"].dtype == dtype
        assert np.isfinite(np.float32(updates[dtype]["w"])).all()
        assert np.any(updates[dtype]["w"])
        assert updates[dtype]["none"] is None
    signature = jax.tree.map(lambda x: (x.shape, x.dtype), (state, new))
    assert signature[0] == signature[1]


DEFAULTS = {  # of frameworks that are seldom installed beside JAX, or are none
    compat.algoperf.nadamw: {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    | {"weight_decay": 0.0, "weight_decay_mask": None},
    compat.paper.adamw: {"alpha": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
    | {"schedule_multiplier": 1.0, "mask": None},
    compat.paper.sgdw: {"beta1": 0.9, "schedule_multiplier": 1.0, "mask": None},
    compat.tf_addons.adamw: {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999}
    | {"epsilon": 1e-7, "amsgrad": False},
    compat.tf_addons.sgdw: {"learning_rate": 1e-3, "momentum": 0.0, "nesterov": False},
    compat.composer.decoupled_adamw: {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    | {"weight_decay": 1e-5, "amsgrad": False},
    compat.composer.decoupled_sgdw: {"momentum": 0.0, "dampening": 0.0}
    | {"weight_decay": 0.0, "nesterov": False},
    compat.timm.adamw: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    | {"weight_decay": 1e-2, "amsgrad": False, "caution": False, "maximize": False}
    | {"corrected_weight_decay": False, "max_lr": None},
    compat.fastai.adam: {"mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, "wd": 0.01}
    | {"decouple_wd": True},
    compat.fastai.sgd: {"mom": 0.0, "wd": 0.0, "decouple_wd": True},
    compat.big_vision.make: {"wd": 0.0, "grad_clip_norm": None, "lr_mults": ()}
    | {"wd_mults": ((".*/kernel$", 1.0),), "schedule": 1.0, "direction": None},
}


@pytest.mark.parametrize("ours", DEFAULTS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_defaults(ours):
    given = {k: p.default for k, p in inspect.signature(ours).parameters.items()}
    assert given | DEFAULTS[ours] == given


def test_timm_holds_still_where_the_gradient_is_0():
    def second(**options):
        optimizer, p = compat.timm.adamw(0.1, weight_decay=0.0, **options), jnp.ones(2)
        _, state = optimizer.update(jnp.ones(2), optimizer.init(p), p)
        return optimizer.update(jnp.array([0.0, 1.0]), state, p)[0]

    assert np.all(second())
    np.testing.assert_allclose(second(caution=True), second() * np.array([0.0, 2.0]))


def test_timm_divides_by_a_share_of_at_least_a_thousandth():
    optimizer, p = compat.timm.adamw(0.1, weight_decay=0.0, caution=True), jnp.ones(4096)
    plain = compat.timm.adamw(0.1, weight_decay=0.0)
    g = jnp.zeros(4096).at[0].set(1.0)
    ours, theirs = (o.update(g, o.init(p), p)[0][0] for o in (optimizer, plain))
    np.testing.assert_allclose(ours, 1000 * theirs, rtol=1e-6)


def test_timm_refuses_the_share_of_a_shard():
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("i",))
    spec = jax.sharding.PartitionSpec("i")

    def step(caution):
        optimizer = compat.timm.adamw(0.1, caution=caution)

        @jax.jit
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
        def update(g):
            return optimizer.update(g, optimizer.init(g), g)[0]

        return update(jnp.ones(2))

    with pytest.raises(ValueError, match=r"timm\.adamw with caution=True measures"):
        step(caution=True)
    np.testing.assert_allclose(step(caution=False), -0.101, rtol=1e-5)


MOMENTS = {
    "scale_by_adam_eps_hat": ({}, ["b1", "b2", "eps", "mu_dtype", "nu_dtype"]),
    "scale_by_amsgrad_raw": ({}, ["b1", "b2", "eps", "mu_dtype", "nu_dtype"]),
    "scale_by_amsgrad_raw_eps_hat": ({}, ["b1", "b2", "eps", "mu_dtype", "nu_dtype"]),
    "scale_by_radam_eps_hat": ({"b2": 0.8}, ["b1", "b2", "eps", "mu_dtype", "nu_dtype"]),
    "scale_by_nadam": ({}, ["b1", "b2", "eps", "momentum_decay", "mu_dtype", "nu_dtype"]),
    "scale_by_nadam_one_correction": (
        {},
        ["b1", "b2", "eps", "eps_root", "mu_dtype", "nu_dtype"],
    ),
}


@pytest.mark.parametrize("name", cases({n: n for n in MOMENTS}, {"scale_by_nadam"}))
def test_dtypes_and_arguments_of_moments(name):
    """Each argument reaches its place: the states' dtypes, and directions that differ."""
    make, (options, arguments) = getattr(compat, name), MOMENTS[name]
    state = make(mu_dtype=jnp.bfloat16).init(jnp.ones(2))
    assert (state.mu.dtype, state.nu.dtype) == (jnp.bfloat16, jnp.float32)
    state = make(nu_dtype=jnp.bfloat16).init(jnp.ones(2))
    assert (state.mu.dtype, state.nu.dtype) == (jnp.float32, jnp.bfloat16)
    if hasattr(state, "nu_max_raw"):
        assert state.nu_max_raw.dtype == jnp.bfloat16

    def last(**changed):
        moments = make(**(options | changed))
        state = moments.init(jnp.ones(2))
        for g in np.random.default_rng(0).normal(size=(12, 2)):
            u, state = moments.update(jnp.asarray(g, jnp.float32), state)
        return u

    values = {"b1": 0.5, "b2": 0.7, "eps": 0.1, "momentum_decay": 0.5, "eps_root": 0.3}
    values |= {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
    seen = [last(), *(last(**{argument: values[argument]}) for argument in arguments)]
    for i, a in enumerate(seen):
        assert all(np.abs(a - b).max() > 1e-5 for b in seen[:i])
    given = inspect.signature(make).parameters
    assert set(given) == set(arguments)


def test_public_names_only():
    for module in (compat, compat.torch, compat.keras, compat.optax, compat.big_vision):
        assert dir(module) == sorted(module.__all__)
        assert all(hasattr(module, name) for name in module.__all__)


def test_composers_nesterov_needs_a_momentum():
    for options in ({}, {"momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
            compat.composer.decoupled_sgdw(0.1, nesterov=True, **options)


def test_a_schedule_needs_its_reference():
    eta = recipe.schedule(recipe.WARM)
    with pytest.raises(ValueError, match="a learning rate schedule needs max_lr"):
        compat.timm.adamw(eta, corrected_weight_decay=True)
    with pytest.raises(ValueError, match=r"max_lr=.* is only used by"):
        compat.timm.adamw(max_lr=0.1)
    with pytest.raises(ValueError, match="a learning rate schedule needs initial_lr"):
        compat.composer.decoupled_adamw(eta)


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (functools.partial(compat.timm.adamw, corrected_weight_decay=True), "max_lr"),
        (compat.composer.decoupled_adamw, "initial_lr"),
        (compat.composer.decoupled_sgdw, "initial_lr"),
    ],
)
def test_a_reference_is_used_beside_a_number_too(make, rate):
    """It is half of the learning rate that divides: 0.1/0.2."""
    optimizer = make(0.1, weight_decay=0.3, **{rate: 0.2})
    scale = 0.1 if rate == "max_lr" else 1.0  # composer's decay is a share of the weights
    theta = jnp.ones(1)
    u, _ = optimizer.update(jnp.zeros(1), optimizer.init(theta), theta)
    np.testing.assert_allclose(u, -scale * 0.3 / 2, rtol=1e-6)


def test_every_name_in_the_table_exists():
    for c in CONVENTIONS.values():
        names = re.findall(r"(?:compat|optwd)[\w.]*\w", c.here)
        assert names
        for name in names:
            value = optwd
            for part in name.removeprefix("optwd.").split("."):
                value = getattr(value, part)


@pytest.mark.slow
def test_import_brings_no_framework(tmp_path):
    names = ["torch", "keras", "tensorflow", "timm", "composer", "fastai", "flax"]
    code = f"import sys, optwd; print([m for m in {names} if m in sys.modules])"
    run = python("-c", code, cwd=tmp_path)
    assert run.stdout == "[]\n", run.stderr
