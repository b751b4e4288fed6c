"""`audit` says of an optimizer what its weight decay is.

- Known answers for Optax, `optax.contrib`, this package and `compat`: form, rate of every
  step, powers, and what it acts on, each derived from the optimizer's equation.
- Every row of the table of conventions says what the audit finds of the same optimizer
  here. `tests/parity` audits the real ones.
- Five faults from the field, rebuilt, are found, and each problem names its fix.
- Wrapped, stateful and random optimizers, schedules, complex and integer leaves, loops.
- Rounding: what is left in bfloat16, plain, compensated and stochastic.
- What cannot be told is "unclear", with figures; what cannot be run says why.
- An optimizer is traced and compiled four times, whatever numbers it is given.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optwd
from optwd import audit, compat, decay, rates
from optwd.compat import CONVENTIONS

ETA, LAM = 1e-2, 0.1  # the defaults of `audit`
SMALL = {"kernel": np.ones((3, 2)), "bias": np.ones(3)}


def peak(lr):
    """What an audit's schedule starts with; a number is its own peak."""
    return lr(0) if callable(lr) else lr


def relative(lr):
    """ηₜ/η_max."""
    return (lambda t: lr(t) / lr(0)) if callable(lr) else 1.0


def with_value(optimizer):
    """An optimizer whose update is to be given the loss."""

    def update(updates, state, params=None):
        return optimizer.update(updates, state, params, value=1.0)

    return optax.GradientTransformation(optimizer.init, update)


def with_loss(optimizer):
    """An optimizer whose update is to be given the loss function."""

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    def update(updates, state, params=None):
        return optimizer.update(updates, state, params, obj_fn=loss)

    return optax.GradientTransformation(optimizer.init, update)


def constant(rate):
    return (rate,) * 4


# form, rates, powers of η, its schedule and λ, what it acts on
OPTAX = ("decoupled", constant(ETA * LAM), (1, 1, 1), "old")
PAPER = ("decoupled", constant(LAM), (0, 1, 1), "old")
ALONE = ("decoupled", constant(LAM), (0, 0, 1), "old")
ADAMC = ("decoupled", constant(ETA * LAM), (1, 2, 1), "old")
PENALTY = ("coupled", (), (1, 1, 1), "gradient")
NONE = ("none", constant(0), (None,) * 3, None)


def entangled(*powers):
    return ("entangled", (), powers, None)


def simple(optimizer, **arguments):
    return lambda lr, wd: optimizer(lr, weight_decay=wd, **arguments)


def l2(optimizer, *arguments):
    return lambda lr, wd: optimizer(lr, *arguments, l2=wd)


def adam_and(rule, *arguments):
    return lambda lr, wd: optwd.with_weight_decay(optax.adam(lr), rule(*arguments, wd))


# λ(1 + .9 + … + .9ᵗ): the decay of earlier steps stays in a momentum of .9.
MOMENTUM = tuple(ETA * LAM * sum(0.9**k for k in range(t + 1)) for t in range(4))

KNOWN = {
    # Optax
    "optax.adamw": (simple(optax.adamw), OPTAX),
    "optax.nadamw": (simple(optax.nadamw), OPTAX),
    "a schedule that begins at 1": (
        lambda lr, wd: optax.adamw(
            (lambda t: lr(t + 1)) if callable(lr) else lr, weight_decay=wd
        ),
        OPTAX,
    ),
    "optax.adamaxw": (simple(optax.adamaxw), OPTAX),
    "optax.lion": (simple(optax.lion), OPTAX),
    "optax.adan": (simple(optax.adan), OPTAX),
    "optax.adadelta": (simple(optax.adadelta), PENALTY),
    "optax.lars": (simple(optax.lars), PENALTY),
    "optax.lamb": (simple(optax.lamb), entangled(1, 1, None)),
    "optax.novograd": (
        simple(optax.novograd),
        ("decoupled", MOMENTUM, (1, 1, 1), "old"),
    ),
    "optax.adafactor": (lambda lr, wd: optax.adafactor(lr, weight_decay_rate=wd), ALONE),
    "optax.adam": (lambda lr, wd: optax.adam(lr), NONE),
    "optax.rmsprop": (lambda lr, wd: optax.rmsprop(lr), NONE),
    "decayed weights, then sgd": (
        lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr)),
        OPTAX,
    ),
    "decayed weights, then sgd with momentum": (
        lambda lr, wd: optax.chain(optax.add_decayed_weights(wd), optax.sgd(lr, 0.9)),
        PENALTY,
    ),
    "decayed weights, then a clip by the global norm": (
        lambda lr, wd: optax.chain(
            optax.add_decayed_weights(wd), optax.clip_by_global_norm(1.0), optax.sgd(lr)
        ),
        PENALTY,
    ),
    # optax.contrib
    "contrib.acprop": (simple(optax.contrib.acprop), OPTAX),
    "contrib.ademamix": (simple(optax.contrib.ademamix), OPTAX),
    "contrib.simplified_ademamix": (simple(optax.contrib.simplified_ademamix), OPTAX),
    "contrib.madgrad": (
        simple(optax.contrib.madgrad),
        ("coupled", (), (2 / 3, 1, 1), "gradient"),
    ),
    "contrib.dog": (simple(optax.contrib.dog), PENALTY),
    "contrib.dowg": (simple(optax.contrib.dowg), PENALTY),
    "contrib.cocob": (
        simple(optax.contrib.cocob),  # the scale of a gradient does not enter its step
        ("coupled", (), (0, None, 1), "gradient"),
    ),
    "contrib.dadapt_adamw": (
        # d, 1e-6 at first, times the correction of both moments: of the decay as well
        simple(optax.contrib.dadapt_adamw),
        (
            "decoupled",
            tuple(
                1e-6 * ETA * LAM * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) for t in range(1, 5)
            ),
            (1, 1, 1),
            "old",
        ),
    ),
    "contrib.prodigy": (simple(optax.contrib.prodigy), entangled(1, 1, 1)),
    "contrib.schedule_free_adamw": (
        simple(optax.contrib.schedule_free_adamw),
        # y = .9x + .1z with z decayed and y held: λη(1.1 − .1/t)
        (
            "decoupled",
            tuple(ETA * LAM * (1.1 - 0.1 / t) for t in range(1, 5)),
            (1, None, 1),
            "old",
        ),
    ),
    "contrib.schedule_free_sgd": (simple(optax.contrib.schedule_free_sgd), PENALTY),
    # this package
    "adamw": (simple(optwd.adamw), OPTAX),
    "adamw by schedule": (
        lambda lr, wd: optwd.adamw(
            lr, weight_decay=wd, scaled_by="schedule", peak_learning_rate=peak(lr)
        ),
        PAPER,
    ),
    "adamw by nothing": (simple(optwd.adamw, scaled_by="nothing"), ALONE),
    "amsgradw": (simple(optwd.amsgradw), OPTAX),
    "nadamw": (simple(optwd.nadamw), OPTAX),
    "sgdw": (simple(optwd.sgdw, momentum=0.9), OPTAX),
    "adam_l2": (l2(optwd.adam_l2), PENALTY),
    "sgd_l2": (l2(optwd.sgd_l2), OPTAX),
    "sgd_l2 with momentum": (l2(optwd.sgd_l2, 0.9), PENALTY),
    "AdamC": (
        lambda lr, wd: optwd.adamw(
            lr, weight_decay=rates.by_schedule(wd, lr, peak(lr)) if callable(lr) else wd
        ),
        ADAMC,
    ),
    "λη²": (
        lambda lr, wd: optwd.adamw(lr, weight_decay=rates.by_learning_rate(wd, lr)),
        ("decoupled", constant(ETA**2 * LAM), (2, 2, 1), "old"),
    ),
    "linear": (adam_and(decay.linear), ALONE),
    "from_rule": (adam_and(decay.from_rule, lambda u, p, rho: u + rho * p), ALONE),
    "cautious": (adam_and(decay.cautious), ("cautious", constant(LAM), (0, 0, 1), "old")),
    "proximal": (
        adam_and(decay.proximal),  # θ/(1 + λ)
        ("decoupled", constant(LAM / (1 + LAM)), (0, 0, 1), "new"),
    ),
    "toward_init": (
        adam_and(decay.toward_init),
        ("anchored", constant(LAM), (0, 0, 1), "old"),
    ),
    "constrained": (
        lambda lr, wd: optwd.with_weight_decay(
            optax.adam(lr), decay.constrained(0.1, update_rate=0.1 * wd)
        ),
        entangled(0, 0, 1),
    ),
    "constrained at its limit": (
        # Λ grows with its rate up to ¼, which follows nothing
        lambda lr, wd: optwd.with_weight_decay(
            optax.adam(lr), decay.constrained(0.1, update_rate=wd)
        ),
        entangled(0, 0, None),
    ),
    "to_norm": (
        # the share of the way to the sphere: as much more of it as the pull is larger
        lambda lr, wd: optwd.with_weight_decay(optax.adam(lr), decay.to_norm(wd)),
        entangled(None, None, 1),
    ),
    # compat
    "compat.torch.adam": (simple(compat.torch.adam), PENALTY),
    "compat.torch.adam, amsgrad": (simple(compat.torch.adam, amsgrad=True), PENALTY),
    "compat.torch.adam, decoupled": (
        simple(compat.torch.adam, decoupled_weight_decay=True),
        OPTAX,
    ),
    "compat.torch.adamw": (simple(compat.torch.adamw), OPTAX),
    "compat.torch.adamw, maximize": (simple(compat.torch.adamw, maximize=True), OPTAX),
    "compat.torch.sgd": (simple(compat.torch.sgd), OPTAX),
    "compat.torch.sgd, momentum": (simple(compat.torch.sgd, momentum=0.9), PENALTY),
    "compat.torch.nadam": (simple(compat.torch.nadam), PENALTY),
    "compat.torch.radam": (simple(compat.torch.radam), PENALTY),
    "compat.keras.adam": (simple(compat.keras.adam), OPTAX),
    "compat.keras.adamw": (simple(compat.keras.adamw), OPTAX),
    "compat.keras.sgd": (simple(compat.keras.sgd, momentum=0.9), OPTAX),
    "compat.tf_addons.adamw": (lambda lr, wd: compat.tf_addons.adamw(wd, lr), ALONE),
    "compat.tf_addons.sgdw": (lambda lr, wd: compat.tf_addons.sgdw(wd, lr, 0.9), ALONE),
    "compat.tf_addons.decay_after_update": (
        lambda lr, wd: compat.tf_addons.decay_after_update(optax.adam(lr), wd),
        ("decoupled", constant(LAM), (0, 0, 1), "new"),
    ),
    "compat.fastai.adam": (lambda lr, wd: compat.fastai.adam(lr, wd=wd), OPTAX),
    "compat.fastai.adam, coupled": (
        lambda lr, wd: compat.fastai.adam(lr, wd=wd, decouple_wd=False),
        PENALTY,
    ),
    "compat.fastai.sgd": (lambda lr, wd: compat.fastai.sgd(lr, wd=wd), OPTAX),
    "compat.timm.adamw": (simple(compat.timm.adamw), OPTAX),
    "compat.timm.adamw, caution": (simple(compat.timm.adamw, caution=True), OPTAX),
    "compat.timm.adamw, corrected": (
        lambda lr, wd: compat.timm.adamw(
            lr, weight_decay=wd, corrected_weight_decay=True, max_lr=peak(lr)
        ),
        ADAMC,
    ),
    "compat.composer.decoupled_adamw": (
        lambda lr, wd: compat.composer.decoupled_adamw(
            lr, weight_decay=wd, initial_lr=peak(lr)
        ),
        PAPER,
    ),
    "compat.composer.decoupled_sgdw": (
        lambda lr, wd: compat.composer.decoupled_sgdw(
            lr, weight_decay=wd, initial_lr=peak(lr)
        ),
        PAPER,
    ),
    "compat.big_vision.make": (
        lambda lr, wd: compat.big_vision.make(
            peak(lr), wd, schedule=relative(lr), wd_mults=((".*", 1.0),)
        ),
        PAPER,
    ),
    "compat.paper.adamw": (
        lambda lr, wd: compat.paper.adamw(
            peak(lr), weight_decay=wd, schedule_multiplier=relative(lr)
        ),
        PAPER,
    ),
    "compat.paper.sgdw": (
        lambda lr, wd: compat.paper.sgdw(
            peak(lr), weight_decay=wd, schedule_multiplier=relative(lr)
        ),
        PAPER,
    ),
}
# ηλ/(1 + ηλ), of which the double is not quite twice as much
PROXIMAL = 1 + np.log2((1 + ETA * LAM) / (1 + 2 * ETA * LAM))
LONG = {  # they take seconds to compile or to run
    "contrib.galore": (simple(optax.contrib.galore), OPTAX),
    "contrib.sophia": (
        lambda lr, wd: with_loss(optax.contrib.sophia(lr, weight_decay=wd)),
        OPTAX,
    ),
    "contrib.momo": (
        lambda lr, wd: with_value(optax.contrib.momo(lr, weight_decay=wd)),
        entangled(PROXIMAL, 1, PROXIMAL),
    ),
    "contrib.momo_adam": (
        lambda lr, wd: with_value(optax.contrib.momo_adam(lr, weight_decay=wd)),
        entangled(PROXIMAL, 1, PROXIMAL),
    ),
}


def check(make, expected):
    form, rates_, powers, acts_on = expected
    found = audit(make, SMALL)
    assert found.notes == ()
    for path, leaf in found.leaves.items():
        assert leaf.form == form, (path, leaf)
        np.testing.assert_allclose(leaf.rates, rates_, rtol=1e-6, err_msg=path)
        assert leaf.acts_on == acts_on, (path, leaf)
        for seen, power in zip(leaf.powers, powers, strict=True):
            if power is None or seen is None:
                assert seen is power, (path, leaf.powers)
            else:
                assert abs(seen - power) < 1e-3, (path, leaf.powers)
    return found


QUICK = (
    "optax.lamb",
    "contrib.cocob",
    "sgd_l2 with momentum",
    "proximal",
    "toward_init",
)


@pytest.mark.parametrize("name", QUICK)
def test_known_answers(name):
    check(*KNOWN[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KNOWN | LONG if name not in QUICK])
def test_more_known_answers(name):
    check(*(KNOWN | LONG)[name])


@pytest.mark.slow
def test_muon_decays_what_has_two_axes():
    """Its Adam, for the others, has a weight decay of its own; a stack is no matrix."""
    leaves = audit(simple(optax.contrib.muon)).leaves
    decayed = {path for path, leaf in leaves.items() if leaf.form != "none"}
    assert decayed == {"dense/kernel", "embed/embedding", "blocks/scale"}
    for path in decayed:
        assert leaves[path].rates == constant(pytest.approx(ETA * LAM))


# --- conventions ---------------------------------------------------------------------


def before_the_rate(rule, squared=False, direction=optax.scale_by_adam):
    def make(lr, wd):
        rate = rates.by_learning_rate(wd, lr) if squared else wd
        return optax.chain(direction(), rule(rate), optax.scale_by_learning_rate(lr))

    return make


def after_the_rate(power, factor=1.0):
    def make(lr, wd):
        def rate(t):
            return factor * wd * (lr(t) if callable(lr) else lr) ** power

        return optwd.with_weight_decay(optax.adam(lr), decay.linear(rate))

    return make


ROWS = {
    "paper": KNOWN["compat.paper.adamw"][0],
    "torch.AdamW": simple(compat.torch.adamw),
    "torch.Adam": simple(compat.torch.adam),
    "torch.SGD": simple(compat.torch.sgd),
    "torch.SGD(momentum)": simple(compat.torch.sgd, momentum=0.9),
    "keras": simple(compat.keras.adamw),
    "tf_addons": KNOWN["compat.tf_addons.adamw"][0],
    "tf1": KNOWN["compat.tf_addons.decay_after_update"][0],
    "optax.adamw": simple(optax.adamw),
    "optax.adafactor": KNOWN["optax.adafactor"][0],
    "fastai": KNOWN["compat.fastai.adam"][0],
    "fastai(decouple_wd=False)": KNOWN["compat.fastai.adam, coupled"][0],
    "timm.AdamW": simple(compat.timm.adamw),
    "timm.AdamW(corrected_weight_decay)": KNOWN["compat.timm.adamw, corrected"][0],
    "big_vision": KNOWN["compat.big_vision.make"][0],
    "composer": KNOWN["compat.composer.decoupled_adamw"][0],
    "bitsandbytes": lambda lr, wd: compat.tf_addons.decay_after_update(
        optax.adam(lr), rates.by_learning_rate(wd, lr)
    ),
    "nanodo": lambda lr, wd: optax.adamw(lr, weight_decay=wd / peak(lr)),
    "loss": lambda lr, wd: optax.chain(optax.add_decayed_weights(2 * wd), optax.adam(lr)),
    "optwd.adamw": simple(optwd.adamw),
    "optwd.adamw(scaled_by='schedule')": KNOWN["adamw by schedule"][0],
    "optwd.adamw(scaled_by='nothing')": KNOWN["adamw by nothing"][0],
    "optwd.adam_l2": l2(optwd.adam_l2),
    "deepspeed": simple(optwd.adamw),
    "deepspeed(adam_w_mode=False)": l2(optwd.adam_l2),
    "optax.contrib.muon": simple(optax.contrib.muon),
    "torch.Muon": before_the_rate(decay.linear),
    "moonlight.Muon": before_the_rate(decay.linear),
    "nanochat": before_the_rate(decay.cautious),
    "modded-nanogpt": before_the_rate(decay.cautious, squared=True),
    "levanter": simple(optwd.adamw),
    "praxis": after_the_rate(1),
    "praxis(l2_regularizer_weight)": l2(optwd.adam_l2),
    "t5x.Adafactor": after_the_rate(0),
    "t5x.Adafactor(weight_decay_rate_lr_exponent=2)": after_the_rate(2),
    "easylm.palm": after_the_rate(2, 1e4),
    "emerging_optimizers": simple(optwd.adamw),
    "emerging_optimizers(independent)": simple(optwd.adamw, scaled_by="nothing"),
    "emerging_optimizers(l2)": l2(optwd.adam_l2),
    "emerging_optimizers(palm)": before_the_rate(decay.linear, squared=True),
    "optimi": simple(optwd.adamw),
    "optimi(decouple_lr)": KNOWN["adamw by schedule"][0],
    "optimi.Adam": l2(optwd.adam_l2),
    "bitsandbytes.Lion": before_the_rate(decay.linear, direction=optax.scale_by_lion),
    "bitsandbytes.Lion(0.49)": lambda lr, wd: optax.chain(
        optwd.add_l2(wd), optax.scale_by_lion(), optax.scale_by_learning_rate(lr)
    ),
    "algoperf": simple(optwd.nadamw),
}
# Optax's averages differ from what the row says; see the known answers.
NOT_HERE = {"schedule_free"}


def test_every_convention_has_its_optimizer_here():
    assert set(CONVENTIONS) - NOT_HERE == set(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_audit_finds(name):
    row, found = CONVENTIONS[name], audit(ROWS[name], SMALL)
    assert name in found.like
    for other in map(CONVENTIONS.get, found.like):
        same = row.acts_on, row.scaled_by, row.factor
        # SGD without momentum is L2 and decoupled alike
        assert (
            row.plain
            or other.plain
            or same == (other.acts_on, other.scaled_by, other.factor)
        )


def test_a_convention_needs_its_rate():
    """Half of it is not a row of the table, though its form and powers are."""
    found = audit(lambda lr, wd: optax.adamw(lr, weight_decay=wd / 2), SMALL)
    assert found.like == ()
    assert found.leaves["kernel"].rates == constant(pytest.approx(ETA * LAM / 2))


# --- faults from the field, rebuilt --------------------------------------------------


def problems(make, params=SMALL, **options):
    return "\n".join(audit(make, params, **options).problems)


def test_nothing_decays():
    """In tinygrad #17708 Muon's decay did nothing; its test's tolerance was above lr·wd."""
    found = audit(lambda lr, wd: optax.contrib.muon(lr), SMALL)
    assert all(leaf.form == "none" for leaf in found.leaves.values())
    assert len(found.problems) == 1
    assert "nothing decays with weight_decay=0.1" in found.problems[0]
    assert "optwd.tabulate" in found.problems[0]


def test_weights_grow():
    """cs249r_book #2058: the sign of the decay flipped, all tests green."""

    def make(lr, wd):
        return optax.chain(optax.adam(lr), optax.add_decayed_weights(wd * peak(lr)))

    found = audit(make, dict.fromkeys("pqrstu", np.ones((3, 2))))
    (problem,) = found.problems
    assert problem.startswith("weights grow")
    assert "on p, q, r, s and 2 more. Place" in problem
    assert "optwd.with_weight_decay" in problem
    assert found.leaves["u"].rates == constant(pytest.approx(-ETA * LAM))
    assert found.like == ()
    (problem,) = audit(make, dict.fromkeys("pqrs", np.ones((3, 2)))).problems
    assert "on p, q, r, s. Place" in problem


@pytest.mark.slow
def test_a_penalty_of_the_wrong_sign_grows_too():
    def make(lr, wd):
        return optax.chain(optax.add_decayed_weights(-wd), optax.adam(lr))

    found = audit(make, {"kernel": np.ones((3, 2))})
    assert (found.leaves["kernel"].form, found.leaves["kernel"].l2) == ("coupled", -1)
    assert found.problems[0].startswith("weights grow")


def test_lion_is_coupled_in_one_precision_only():
    """In bitsandbytes #1992 Lion's decay joins the gradient in 32 bit, not in 8 bit.

    Small leaves are in 32 bit there even if 8 bit was asked for, so it shows in one run.
    """

    def make(lr, wd):
        decay_, lion = optax.add_decayed_weights(wd), optax.scale_by_lion()
        rate = optax.scale_by_learning_rate(lr)
        bits = {
            "8 bit": optax.chain(lion, decay_, rate),
            "32 bit": optax.chain(decay_, lion, rate),
        }
        return optax.partition(bits, {"kernel": "8 bit", "small": "32 bit"})

    found = audit(make, {"kernel": np.ones((3, 2)), "small": np.ones((2, 2))})
    (problem,) = found.problems
    assert problem.startswith("more than one kind of decay: on the gradient for small; ")
    assert "on the old weights for kernel" in problem
    forms = [leaf.form for leaf in found.leaves.values()]
    assert forms == ["decoupled", "coupled"]


def test_the_order_of_the_decay_and_the_step():
    """In bitsandbytes #1993 it is after the step on one backend, before it on another."""

    def make(lr, wd):
        def place(mask, after):
            return decay.from_rule(
                lambda u, p, rho: u + rho * (p - u if after else p),
                rates.by_learning_rate(wd, lr),
                mask,
            )

        after = place({"cuda": True, "cpu": False}, True)
        before = place({"cuda": False, "cpu": True}, False)
        return optwd.with_weight_decay(optax.adam(lr), optax.chain(after, before))

    found = audit(make, {"cuda": np.ones((3, 2)), "cpu": np.ones((3, 2))})
    (problem,) = found.problems
    assert "decay: on the old weights for cpu; on the new weights for cuda." in problem
    for path, word in ("cuda", "new"), ("cpu", "old"):
        leaf = found.leaves[path]
        assert (leaf.form, leaf.acts_on, leaf.powers) == ("decoupled", word, (1, 1, 1))
        assert leaf.rates == constant(pytest.approx(ETA * LAM))


@pytest.mark.slow
def test_stacked_norms_decay():
    """salesforce/jaxformer #28: a mask by the number of axes takes a stack of scales."""

    def by_axes(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    params = {"blocks": {"kernel": np.ones((2, 3, 2)), "scale": np.ones((2, 3))}}
    found = audit(simple(optax.adamw, mask=by_axes), params)
    (problem,) = found.problems
    assert problem.startswith("norms and biases decay: blocks/scale.")
    assert "optwd.masks.standard()" in problem


def test_the_standard_mask_has_no_problem():
    params = {"blocks": {"kernel": np.ones((2, 3, 2)), "scale": np.ones((2, 3))}}
    assert audit(simple(optwd.sgdw, mask=optwd.masks.standard()), params).problems == ()


def test_lost_in_bfloat16():
    """OneTrainer #996: weights in bfloat16, and nothing is left of the decay."""
    params = {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)}
    found = audit(simple(optax.adamw), params)
    (problem,) = found.problems
    assert problem.startswith("lost in the rounding of the parameters: kernel.")
    assert "optwd.compensate_rounding" in problem
    assert found.leaves["kernel"].survives == (0, 0)

    def make(lr, wd):
        return optwd.compensate_rounding(optwd.adamw(lr, weight_decay=wd))

    found = audit(make, params)
    assert found.problems == ()
    assert found.leaves["kernel"].survives.own == pytest.approx(1, abs=0.01)


# --- more that looks wrong -----------------------------------------------------------


@pytest.mark.slow
def test_rates_above_one():
    assert "rates above 1 flip the sign" in problems(
        KNOWN["adamw by nothing"][0], weight_decay=1.5
    )
    assert "rates above 1" not in problems(KNOWN["adamw by nothing"][0], weight_decay=0.5)


@pytest.mark.slow
def test_decay_in_the_first_step_only():
    def until(end):
        return lambda lr, wd: optwd.with_weight_decay(
            optax.adam(lr), decay.linear(lambda t: jnp.where(t < end, wd, 0.0))
        )

    make, first = until(1), "decay in the first step only"
    assert f"{first}, on bias, kernel" in problems(make)
    assert f"{first}, on bias, kernel" in problems(make, steps=2)
    assert first not in problems(until(2))
    found = audit(make, SMALL)
    assert found.leaves["kernel"].rates == (pytest.approx(LAM), 0, 0, 0)
    assert "  0.1 … 0  " in str(found)


@pytest.mark.slow
def test_a_decay_that_depends_on_other_leaves():
    """A norm over the whole tree, taken after the decay has been added."""

    def make(lr, wd):
        return optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(wd),
            optax.normalize_by_update_norm(),
            optax.scale_by_learning_rate(lr),
        )

    assert "depends on other leaves: the decay of bias, kernel" in problems(make)
    assert "depends on other leaves" not in problems(simple(optax.lamb))  # a norm per leaf


@pytest.mark.slow
@pytest.mark.parametrize("coupled", [False, True])
def test_a_decay_that_depends_on_one_other_leaf(coupled):
    """The first and the third leaf, which differ in the second bit of their places."""

    def make(lr, wd):
        def update(u, state, params):
            rate = wd * jnp.linalg.norm(params["r"])
            return u | {"p": u["p"] + rate * params["p"]}, state

        decayed = optax.GradientTransformation(lambda _: optax.EmptyState(), update)
        parts = (decayed, optax.scale_by_adam())
        step = optax.chain(*(parts if coupled else parts[::-1]))
        return optax.chain(step, optax.scale_by_learning_rate(lr))

    found = problems(make, dict.fromkeys("pqr", np.ones((3, 2))))
    assert "depends on other leaves: the decay of p changes" in found


@pytest.mark.slow
@pytest.mark.parametrize("at", [lambda lr, t: lr(t + 5), lambda lr, t: lr(t) * (t == 0)])
def test_a_rate_that_is_no_power_of_the_schedule(at):
    def make(lr, wd):
        rate = (lambda t: wd * at(lr, t)) if callable(lr) else wd * lr
        return optwd.with_weight_decay(optax.adam(lr), decay.linear(rate))

    assert audit(make, SMALL).leaves["kernel"].powers.schedule is None


def test_nothing_moves():
    def make(lr, wd):
        return optax.MultiSteps(optax.adamw(lr, weight_decay=wd), 9)

    assert problems(make).startswith("nothing moves: the updates are 0 in every step.")


@pytest.mark.slow
def test_a_matrix_on_the_sphere_that_starts_at_0():
    """Its norm there is 0, so it is left alone; a radius ends that."""

    def held(**options):
        def make(lr, wd):
            # on or off: this needs numbers that are known
            return optwd.with_weight_decay(
                optax.sgd(lr), decay.to_norm(1.0 if wd else 0.0, **options)
            )

        return make

    params = {"out": np.zeros((3, 2)), "kernel": np.ones((3, 2))}
    (problem,) = audit(held(), params).problems
    assert problem.startswith("left alone because they start at 0: out.")
    assert "give decay.to_norm a radius, or a mask" in problem
    assert audit(held(radius=0.1), params).problems == ()


# --- wrapped, stateful, random, scheduled --------------------------------------------

adamw = simple(optax.adamw)


def same_as_adamw(make, paths=("kernel", "bias"), rates_=ETA * LAM):
    found = audit(make, SMALL)
    for path in paths:
        leaf = found.leaves[path]
        assert (leaf.form, leaf.powers, leaf.acts_on) == ("decoupled", (1, 1, 1), "old")
        np.testing.assert_allclose(leaf.rates, rates_, rtol=1e-9)
    return found


@pytest.mark.slow
def test_multi_steps():
    same_as_adamw(
        lambda lr, wd: optax.MultiSteps(adamw(lr, wd), 2),
        rates_=(0, ETA * LAM, 0, ETA * LAM),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda lr, wd: optax.apply_if_finite(adamw(lr, wd), 3),
        lambda lr, wd: optax.inject_hyperparams(optax.adamw)(lr, weight_decay=wd),
        lambda lr, wd: optax.chain(optax.clip_by_global_norm(1.0), adamw(lr, wd)),
        lambda lr, wd: optax.chain(optax.add_noise(0.1, 0.5, 0), adamw(lr, wd)),
    ],
    ids=["apply_if_finite", "inject_hyperparams", "clip", "noise"],
)
@pytest.mark.slow
def test_wrapped(make):
    same_as_adamw(make)


@pytest.mark.slow
def test_noisy_sgd_and_its_seed():
    def make(lr, wd):
        return optax.chain(optax.add_decayed_weights(wd), optax.noisy_sgd(lr, key=3))

    found = same_as_adamw(make)
    assert found.leaves["kernel"].survives.bfloat16 is None  # noise alone moves the weights


@pytest.mark.slow
def test_partition_and_masked():
    labels = {"kernel": "decayed", "bias": "plain"}

    def parts(lr, wd):
        return optax.partition({"decayed": adamw(lr, wd), "plain": optax.adam(lr)}, labels)

    def masked(lr, wd):
        shrink = optax.masked(
            optax.add_decayed_weights(wd), {"kernel": True, "bias": False}
        )
        return optax.chain(optax.scale_by_adam(), shrink, optax.scale_by_learning_rate(lr))

    for make in (parts, masked):
        found = same_as_adamw(make, paths=("kernel",))
        assert found.leaves["bias"].form == "none"
        assert found.problems == ()
        assert "optax.adamw" in found.like


@pytest.mark.slow
def test_decay_schedules():
    def make(lr, wd):
        return optwd.adamw(lr, weight_decay=lambda t: wd / (1 + t))

    found = same_as_adamw(make, rates_=[ETA * LAM / (1 + t) for t in range(4)])
    assert found.like == ()


@pytest.mark.slow
def test_multipliers_of_leaves():
    mask = optwd.masks.multipliers({"kernel": 1.0, "bias": 0.25})
    leaves = audit(simple(optwd.adamw, mask=mask), SMALL).leaves
    assert leaves["kernel"].rates == constant(pytest.approx(ETA * LAM))
    assert leaves["bias"].rates == constant(pytest.approx(0.25 * ETA * LAM))


@pytest.mark.slow
def test_complex_leaves():
    params = {"w": np.ones((3, 4), np.complex64)}
    for name in ("sgdw", "cautious", "adam_l2"):
        make, (form, rates_, powers, acts_on) = KNOWN[name]
        leaf = audit(make, params).leaves["w"]
        assert (leaf.form, leaf.powers, leaf.acts_on) == (form, powers, acts_on)
        np.testing.assert_allclose(leaf.rates, rates_)


@pytest.mark.slow
def test_integers_that_are_eaten():
    params = {"kernel": np.ones((3, 2)), "step": np.ones(3, np.int32)}
    found = audit(simple(optwd.adamw), params)
    assert found.leaves["step"].form == "none"
    assert found.problems == ()

    def make(lr, wd):
        return optax.chain(optax.add_decayed_weights(wd), optax.scale(-1.0))

    assert "integers are changed: step" in problems(make, params)


# --- rounding ------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_left_in_bfloat16():
    wide = {"kernel": np.ones((16, 16), np.float32)}

    def share(make):
        survives = audit(make, wide).leaves["kernel"].survives
        assert survives.own == pytest.approx(1, abs=1e-3)
        return survives.bfloat16

    plain = simple(optwd.adamw)
    assert share(plain) == 0
    assert share(lambda lr, wd: optwd.compensate_rounding(plain(lr, wd))) == pytest.approx(
        1, abs=0.01
    )
    # 256 weights of 128 steps that are rounded at random: a deviation of 1 %
    assert share(
        lambda lr, wd: optwd.round_stochastically(plain(lr, wd), 0)
    ) == pytest.approx(1, abs=0.04)
    assert share(KNOWN["adamw by nothing"][0]) == pytest.approx(
        1, abs=0.02
    )  # a rate of 0.1


# --- loops ---------------------------------------------------------------------------


def sgd_loop(lr, wd, dtype=np.float64):
    """SGD with momentum and a decay of the new weights, as someone may write it."""

    def init(params):
        return {k: np.zeros_like(v) for k, v in params.items()}

    def step(params, gradients, momentum):
        for k in params:
            momentum[k] = 0.9 * momentum[k] + gradients[k]
            params[k] -= lr * momentum[k]  # in place
            params[k] *= 1 - lr * wd
        return {k: v.astype(dtype) for k, v in params.items()}, momentum

    return optwd.Loop(init, step)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_loop_as_it_runs(dtype):
    def make(lr, wd):
        return sgd_loop(lr, wd, dtype)

    found = audit(make, SMALL)
    for leaf in found.leaves.values():
        assert (leaf.form, leaf.acts_on) == ("decoupled", "new")
        assert (leaf.powers.learning_rate, leaf.powers.weight_decay) == (1, 1)
        assert leaf.powers.schedule is None
        np.testing.assert_allclose(
            leaf.rates, ETA * LAM, rtol=1e-9 if dtype == np.float64 else 1e-3
        )
        assert np.all(np.abs(np.subtract(leaf.rates, ETA * LAM)) <= leaf.errors)
    assert found.like == ("bitsandbytes",)  # also where float32 hides the last digits
    assert found.notes[0].startswith("no power of the schedule, for make refused one: ")


def test_a_loop_with_a_schedule():
    def make(lr, wd):
        rate = lr if callable(lr) else lambda t: lr

        def step(params, gradients, t):
            new = {
                k: (1 - rate(t) * wd) * p - rate(t) * gradients[k]
                for k, p in params.items()
            }
            return new, t + 1

        return optwd.Loop(lambda params: 0, step)

    found = audit(make, SMALL)
    assert "torch.SGD" in found.like
    assert found.leaves["kernel"].powers == (1, 1, 1)


# --- not told ------------------------------------------------------------------------


def test_what_is_no_form_is_unclear_and_says_its_figures():
    """L1: as much for large weights as for small ones."""
    rule = decay.from_rule
    found = audit(adam_and(rule, lambda u, p, rho: u + rho * jnp.sign(p)), SMALL)
    leaf = found.leaves["kernel"]
    assert leaf.form == "unclear"
    assert leaf.figures == (
        "the largest element of the decay is 0.1, but 0.1 with gradients × −1000 and 0.1 "
        "with weights × 2"
    )
    assert any(p.startswith("unclear: bias, kernel") for p in found.problems)
    assert found.like == ()


def test_runs_that_differ_are_unclear():
    rng = np.random.default_rng(0)

    def make(lr, wd):
        def step(params, gradients, state):
            noise = {k: rng.normal(size=p.shape) for k, p in params.items()}
            return {k: (1 - wd) * p - noise[k] for k, p in params.items()}, state

        return optwd.Loop(lambda params: None, step)

    found = audit(make, SMALL)
    assert {leaf.form for leaf in found.leaves.values()} == {"unclear"}
    assert "fix the seed" in found.notes[0]
    assert found.problems[0].startswith("unclear")


def test_a_decay_that_only_moving_weights_show():
    """It pulls towards the weights of the step before, which are these if they rest."""

    def make(lr, wd):
        def step(params, gradients, old):
            new = {k: p - lr * gradients[k] - wd * (p - old[k]) for k, p in params.items()}
            return new, params

        def init(params):
            return None

        def begin(params, gradients, old):
            return step(params, gradients, params if old is None else old)

        return optwd.Loop(init, begin)

    leaf = audit(make, SMALL).leaves["kernel"]
    assert leaf.form != "none"


def test_a_decay_that_only_weights_on_their_way_show():
    """It pulls back what the last step but one did, and two steps at rest are no step."""

    def make(lr, wd):
        def step(params, gradients, past):
            old, older = past or (params, params)
            new = {
                k: p - lr * gradients[k] - wd * (old[k] - older[k])
                for k, p in params.items()
            }
            return new, (params, old)

        return optwd.Loop(lambda params: None, step)

    leaf = audit(make, SMALL).leaves["kernel"]
    assert leaf.form == "unclear"
    assert leaf.figures.startswith("no decay while the weights are held still, but after 4")


@pytest.mark.slow
def test_a_tiny_decay_is_seen_and_its_share_is_not():
    """1e-9 per step: bfloat16 rounds more than all of it, so no share can be told."""
    found = audit(adamw, {"kernel": np.ones((3, 2))}, weight_decay=1e-7)
    leaf = found.leaves["kernel"]
    assert leaf.form == "decoupled"
    np.testing.assert_allclose(leaf.rates, ETA * 1e-7, rtol=1e-5)
    assert leaf.survives.bfloat16 is None


@pytest.mark.slow
def test_one_weight_whose_step_rarely_shrinks_it():
    """Gradients of the other sign show the steps in which a cautious decay holds still."""
    leaf = audit(KNOWN["cautious"][0], {"kernel": np.ones((1, 1))}).leaves["kernel"]
    assert leaf.form == "cautious"
    np.testing.assert_allclose(leaf.rates, LAM)


def test_not_finite():
    def make(lr, wd):
        return optax.chain(
            optax.add_decayed_weights(wd), optax.scale(jnp.inf if wd else lr)
        )

    leaf = audit(make, SMALL).leaves["kernel"]
    assert (leaf.form, leaf.figures) == ("unclear", "updates that are not finite")


# --- cost ----------------------------------------------------------------------------


def counted(optimizer, calls):
    """The same, with how often Python runs its `update`: once for every compilation."""

    def update(updates, state, params=None):
        calls.append(None)
        return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def test_it_is_compiled_four_times():
    """For one pair of numbers, for all, for all with a schedule, and in bfloat16."""
    calls = []
    found = audit(lambda lr, wd: counted(optax.adamw(lr, weight_decay=wd), calls), SMALL)
    assert len(calls) == 4
    assert found.leaves["kernel"].powers == (1, 1, 1)


@pytest.mark.slow
def test_numbers_that_must_be_known_are_known():
    """Then there is a program for each pair of them, for its first step, in bfloat16."""
    calls, seen = [], []

    def make(lr, wd):
        peak_ = lr(0) if callable(lr) else lr
        seen.append(float(peak_) * float(wd))
        return counted(optax.adamw(lr, weight_decay=wd), calls)

    found = audit(make, SMALL)
    assert len(calls) == 9
    assert {x.form for x in found.leaves.values()} == {"decoupled"}
    assert found.leaves["kernel"].powers == (1, 1, 1)
    assert "optax.adamw" in found.like


def test_a_penalty_of_an_unknown_factor_is_coupled():
    """No small multiple of it fits, and the signs of large gradients hide it."""

    def make(lr, wd):
        penalty = optax.add_decayed_weights(3 * wd)
        return optax.chain(penalty, optax.scale_by_lion(), optax.scale(-peak(lr)))

    found = audit(make, {"kernel": np.ones((3, 2))})
    leaf = found.leaves["kernel"]
    assert (leaf.form, leaf.l2, leaf.acts_on) == ("coupled", None, "gradient")
    assert leaf.figures.startswith("the largest element of the decay is ")
    assert found.like == ()


@pytest.mark.slow
def test_a_make_that_asks_for_the_type_of_a_number():
    """What it returns for a traced one is something else, which is not taken."""

    def make(lr, wd):
        return optax.adamw(lr, weight_decay=wd if isinstance(wd, float) else 0.0)

    check(make, OPTAX)


# --- refused -------------------------------------------------------------------------


def test_an_optimizer_that_raises():
    def make(lr, wd):
        def update(updates, state, params=None):
            raise ValueError("needs at least 128 columns")

        return optax.GradientTransformation(lambda params: (), update)

    with pytest.raises(
        ValueError,
        match=r"(?s)make\(0.01, 0.1\) returned raised ValueError: "
        r"needs at least 128 columns.*kernel \(3, 2\).*none is cut",
    ):
        audit(make, SMALL)


def test_a_make_that_raises():
    def make(lr, wd):
        return optax.adamw(lr, weight_decay=1 / wd)

    with pytest.raises(
        ValueError, match=r"(?s)make\(0.01, 0\) raised ZeroDivisionError.*also 0"
    ):
        audit(make, SMALL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a number > 0, got -1.0"),
        ({"steps": 1}, "steps must be 2 or more, got 1"),
        ({"params": {}}, "params hold no leaf"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        audit(adamw, **arguments)


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match=r"make\(0.01, 0.1\) returned 3.*optwd.Loop"):
        audit(lambda lr, wd: 3)


# --- the value -----------------------------------------------------------------------


def test_the_text():
    found = audit(simple(optwd.adamw, mask={"kernel": True, "bias": False}), SMALL)
    table, like, verdict = str(found).rsplit("\n", 2)
    assert table.splitlines() == [
        "leaf    form       rate per step  η  schedule  λ  acts on  bf16  own",
        "bias    none       –              –  –         –  –        –     –",
        "kernel  decoupled  0.001          1  1         1  old θ    0%    100%",
    ]
    assert like == f"like: {', '.join(found.like)}"
    assert verdict == "no problems"


def test_the_session_is_left_as_it_was():
    audit(adamw, SMALL)
    assert jnp.ones(1).dtype == jnp.float32


def test_long_axes_are_cut_and_equal_ones_stay_equal():
    shapes = []

    def make(lr, wd):
        def init(params):
            shapes.append([p.shape for p in jax.tree.leaves(params)])
            return ()

        return optax.GradientTransformation(init, adamw(lr, wd).update)

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    params = [shape(50257, 768), shape(768, 3072), shape(12, 768), shape(4)]
    with pytest.raises(ValueError, match="raised"):
        audit(make, params)
    assert shapes[0] == [(6, 4), (4, 5), (3, 4), (4,)]


@pytest.mark.slow
def test_a_transformer():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    def norm():
        return {"scale": shape(768), "bias": shape(768)}

    def dense(rows, columns):
        return {"kernel": shape(rows, columns), "bias": shape(columns)}

    params = {
        f"layer_{i}": {
            "ln_1": norm(),
            "qkv": dense(768, 2304),
            "proj": dense(768, 768),
            "ln_2": norm(),
            "up": dense(768, 3072),
            "down": dense(3072, 768),
        }
        for i in range(12)
    } | {"wte": {"embedding": shape(50257, 768)}}
    kernels = optwd.masks.path("layer_?/**/kernel")  # forgets layers 10 and 11
    found = audit(simple(optwd.adamw, mask=kernels), params)
    decayed = {path for path, leaf in found.leaves.items() if leaf.form == "decoupled"}
    names = ("qkv", "proj", "up", "down")
    assert decayed == {f"layer_{i}/{name}/kernel" for i in range(10) for name in names}
    assert found.problems == ()


@pytest.mark.slow
def test_the_tour(tmp_path, capsys):
    import audit_tour

    found = audit_tour.main(["--quick", "--out", str(tmp_path)])
    forms = {name: x.leaves["dense/kernel"].form for name, x in found.items()}
    assert forms == {
        "adamw": "decoupled",
        "lion": "decoupled",
        "adafactor": "decoupled",
        "lamb": "entangled",
        "lars": "coupled",
        "contrib.muon": "decoupled",
        "contrib.madgrad": "coupled",
    }
    text = (tmp_path / "audit_tour.txt").read_text(encoding="utf-8")
    assert "Wrote" in capsys.readouterr().out
    for name in forms:
        assert name in text
