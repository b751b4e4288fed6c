"""The dialects that no library here can confirm, and what holds for all of them.

- the paper's AdamW and SGDW, big_vision's recipe and the decay after the update equal the
  equations of their sources over 60 steps, in float64 to 1e-12;
- every dialect with a converted number walks the path of every other one;
- masks, odd leaves and low precision; nothing of the frameworks is imported.
"""

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
from tests.helpers import python
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
        (None, ["kernel", "bias"]),
        ([], []),
        ((), []),
        (["ker*"], ["kernel"]),
        ("bias", ["bias"]),
        (masks.path("bias"), ["bias"]),
        ({"kernel": True, "bias": False}, ["kernel"]),
    ],
    ids=str,
)
def test_decay_var_list(name, decay_var_list, decayed):
    optimizer = getattr(compat.tf_addons, name)(optax.sgd(0.1), 0.5, decay_var_list)
    params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert {k for k, u in updates.items() if u[0] == -0.5} == set(decayed)
    assert {k for k, u in updates.items() if u[0] == 0} == params.keys() - set(decayed)


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


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
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


# --- odd leaves ----------------------------------------------------------------------

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
    "big_vision.make": compat.big_vision.make(0.1, 0.1, wd_mults=[("w", 0.5), (".*", 1)]),
}


@pytest.mark.parametrize("optimizer", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_odd_leaves_and_low_precision(optimizer, dtype):
    params = {
        "w": jnp.ones((2, 3), dtype),
        "n": jnp.arange(3),
        "none": jnp.ones(2, dtype),
        "absent": None,
    }
    gradients = {**params, "n": jnp.zeros(3, jnp.int32), "none": None}
    state = optimizer.init(params)
    updates, new = jax.jit(optimizer.update)(gradients, state, params)
    assert updates["w"].dtype == dtype
    assert np.isfinite(np.float32(updates["w"])).all()
    assert np.any(updates["w"])
    assert not np.any(updates["n"])
    assert updates["none"] is None
    signature = jax.tree.map(lambda x: (x.shape, x.dtype), (state, new))
    assert signature[0] == signature[1]


DEFAULTS = {  # of frameworks that are seldom installed beside JAX, or are none
    compat.algoperf.nadamw: {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "eps_root": 0.0}
    | {"weight_decay": 0.0, "weight_decay_mask": None},
    compat.paper.adamw: {"alpha": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    compat.tf_addons.adamw: {"learning_rate": 1e-3, "beta_1": 0.9, "beta_2": 0.999}
    | {"epsilon": 1e-7, "amsgrad": False},
    compat.tf_addons.sgdw: {"learning_rate": 1e-3, "momentum": 0.0, "nesterov": False},
    compat.composer.decoupled_adamw: {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    | {"weight_decay": 1e-5, "amsgrad": False},
    compat.big_vision.make: {"wd": 0.0, "grad_clip_norm": None},
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


def test_a_schedule_needs_its_reference():
    eta = recipe.schedule(recipe.WARM)
    with pytest.raises(ValueError, match="a learning rate schedule needs max_lr"):
        compat.timm.adamw(eta, corrected_weight_decay=True)
    with pytest.raises(ValueError, match=r"max_lr=.* is only used by"):
        compat.timm.adamw(max_lr=0.1)
    with pytest.raises(ValueError, match="a learning rate schedule needs initial_lr"):
        compat.composer.decoupled_adamw(eta)


def test_every_name_in_the_table_exists():
    for c in CONVENTIONS.values():
        names = re.findall(r"(?:compat|optwd)[\w.]*\w", c.here)
        assert names
        for name in names:
            value = optwd
            for part in name.removeprefix("optwd.").split("."):
                value = getattr(value, part)


def test_import_brings_no_framework(tmp_path):
    names = ["torch", "keras", "tensorflow", "timm", "composer", "fastai", "flax"]
    code = f"import sys, optwd; print([m for m in {names} if m in sys.modules])"
    run = python("-c", code, cwd=tmp_path)
    assert run.stdout == "[]\n", run.stderr
