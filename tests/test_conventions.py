"""What weight_decay means elsewhere, and the number that means the same.

- two conventions with converted numbers walk the same path, under the equations of the
  table written out once more in NumPy, with a constant learning rate and with a schedule;
- there and back is the identity;
- where no number is equivalent an error says what to use instead;
- the table prints.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd.compat import CONVENTIONS, convert_weight_decay, table

PEAK, STEPS = 0.1, 50
LAM = 0.03
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(STEPS, 6))
START = RNG.normal(size=6)

# What a step does: θ' from (θ, u, η, s = η/η_max, λ), with u the step without the decay.
DECOUPLED = {
    "paper": lambda p, u, η, s, λ: p - (u + s * λ * p),
    "torch.AdamW": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "keras": lambda p, u, η, s, λ: p - p * λ * η - u,
    "tf_addons": lambda p, u, η, s, λ: (p - λ * p) - u,
    "tf1": lambda p, u, η, s, λ: (p - u) - λ * (p - u),
    "optax.adamw": lambda p, u, η, s, λ: p - u - η * λ * p,
    "optax.adafactor": lambda p, u, η, s, λ: p - u - λ * p,
    "fastai": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "timm.AdamW": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "timm.AdamW(corrected_weight_decay)": lambda p, u, η, s, λ: (
        p * (1 - η**2 * λ / PEAK) - u
    ),
    "big_vision": lambda p, u, η, s, λ: p - s * λ * p - u,
    "composer": lambda p, u, η, s, λ: p * (1 - s * λ) - u,
    "bitsandbytes": lambda p, u, η, s, λ: (p - u) * (1 - η * λ),
    "deepspeed": lambda p, u, η, s, λ: p - u - η * λ * p,
    "optax.contrib.muon": lambda p, u, η, s, λ: p - u - η * λ * p,
    "torch.Muon": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "moonlight.Muon": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "nanochat": lambda p, u, η, s, λ: p - u - η * λ * p * (u * p >= 0),
    "modded-nanogpt": lambda p, u, η, s, λ: p - (u + η**2 * λ * p * (u * p > 0)),
    "levanter": lambda p, u, η, s, λ: p - u - η * λ * p,
    "praxis": lambda p, u, η, s, λ: p + (-u - η * λ * p),
    "t5x.Adafactor": lambda p, u, η, s, λ: (1 - λ) * p - u,
    "t5x.Adafactor(weight_decay_rate_lr_exponent=2)": lambda p, u, η, s, λ: (
        (1 - λ * η**2) * p - u
    ),
    "easylm.palm": lambda p, u, η, s, λ: p - u - λ / 1e-4 * η**2 * p,
    "emerging_optimizers": lambda p, u, η, s, λ: p - λ * η * p - u,
    "emerging_optimizers(independent)": lambda p, u, η, s, λ: p - λ * p - u,
    "emerging_optimizers(palm)": lambda p, u, η, s, λ: p - λ * η * η * p - u,
    "optimi": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "optimi(decouple_lr)": lambda p, u, η, s, λ: p * (1 - η / PEAK * λ) - u,
    "bitsandbytes.Lion": lambda p, u, η, s, λ: p * (1 - η * λ) - u,
    "schedule_free": lambda p, u, η, s, λ: p - u - η * λ * p,  # of z, where y is z
    "algoperf": lambda p, u, η, s, λ: p - u - η * λ * p,
    "nanodo": lambda p, u, η, s, λ: p - u - η * (λ / PEAK) * p,
    "optwd.adamw": lambda p, u, η, s, λ: p - u - η * λ * p,
    "optwd.adamw(scaled_by='schedule')": lambda p, u, η, s, λ: p - u - s * λ * p,
    "optwd.adamw(scaled_by='nothing')": lambda p, u, η, s, λ: p - u - λ * p,
}
COUPLED = {
    "torch.Adam": lambda p, g, λ: g + λ * p,
    "torch.SGD": lambda p, g, λ: g + λ * p,
    "torch.SGD(momentum)": lambda p, g, λ: g + λ * p,
    "fastai(decouple_wd=False)": lambda p, g, λ: g + λ * p,
    "deepspeed(adam_w_mode=False)": lambda p, g, λ: g + λ * p,
    "praxis(l2_regularizer_weight)": lambda p, g, λ: g + λ * p,
    "emerging_optimizers(l2)": lambda p, g, λ: g + λ * p,
    "optimi.Adam": lambda p, g, λ: g + λ * p,
    "bitsandbytes.Lion(0.49)": lambda p, g, λ: g + λ * p,
    "loss": lambda p, g, λ: g + (λ * (p + 1e-6) ** 2 - λ * (p - 1e-6) ** 2) / 2e-6,
    "optwd.adam_l2": lambda p, g, λ: g + λ * p,
}
SCHEDULES = {
    "constant": lambda t: PEAK,
    "cosine": lambda t: PEAK * 0.5 * (1 + np.cos(t / STEPS * np.pi)),
}


# What is not of the old weights as they are, and what is not of the first power of η.
ELSEWHERE = {"tf1": "new", "bitsandbytes": "new", "schedule_free": "z"}
ELSEWHERE |= dict.fromkeys(["nanochat", "modded-nanogpt"], "cautious")
POWER = dict.fromkeys(
    [
        "tf_addons",
        "tf1",
        "optax.adafactor",
        "t5x.Adafactor",
        "emerging_optimizers(independent)",
        "optwd.adamw(scaled_by='nothing')",
    ],
    0,
) | dict.fromkeys(
    [
        "timm.AdamW(corrected_weight_decay)",
        "modded-nanogpt",
        "t5x.Adafactor(weight_decay_rate_lr_exponent=2)",
        "easylm.palm",
        "emerging_optimizers(palm)",
    ],
    2,
)


@functools.cache
def path(name, lam, schedule, momentum):
    """SGD, with momentum or without, on a noisy quadratic, decayed as `name` does."""
    p, m, seen, eta = START, 0.0, [], SCHEDULES[schedule]
    for t in range(STEPS):
        g = 0.3 * p + NOISE[t]
        g = COUPLED[name](p, g, lam) if name in COUPLED else g
        m = g + momentum * m
        u = eta(t) * m
        p = p - u if name in COUPLED else DECOUPLED[name](p, u, eta(t), eta(t) / PEAK, lam)
        seen.append(p)
    return np.stack(seen)


def allowed(source, target, schedule):
    """The rules of the docstring, by hand."""
    plain = {"torch.SGD"}
    if source in COUPLED and target in COUPLED:
        return True
    coupled = [n for n in (source, target) if n in COUPLED and n not in plain]
    if coupled or ELSEWHERE.get(source) != ELSEWHERE.get(target):
        return False
    follows = {POWER.get(n, 1) for n in (source, target)}
    return schedule == "constant" or len(follows) == 1


def test_every_convention_is_tested():
    assert set(CONVENTIONS) == set(DECOUPLED) | set(COUPLED)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_converted_numbers_walk_the_same_path(schedule):
    converted = 0
    given = PEAK if schedule == "constant" else SCHEDULES[schedule]
    for source, target in itertools.product(CONVENTIONS, repeat=2):
        arguments = {"learning_rate": given, "peak_learning_rate": PEAK}
        if not allowed(source, target, schedule):
            with pytest.raises(ValueError, match=re.escape(CONVENTIONS[source].here)):
                convert_weight_decay(LAM, source=source, target=target, **arguments)
            continue
        start = LAM * 1e-4 if source == "easylm.palm" else LAM  # else a step takes all
        lam = convert_weight_decay(start, source=source, target=target, **arguments)
        momentum = 0.0 if "torch.SGD" in (source, target) else 0.9
        expected = path(source, start, schedule, momentum)
        difference = np.abs(path(target, lam, schedule, momentum) - expected).max()
        assert difference < (1e-8 if "loss" in (source, target) else 1e-12)
        assert np.abs(path(target, 1.1 * lam, schedule, momentum) - expected).max() > 1e-4
        back = convert_weight_decay(lam, source=target, target=source, **arguments)
        assert back == pytest.approx(start, rel=1e-15)
        converted += 1
    assert converted > 100


def test_no_number_between_coupled_and_decoupled_and_it_says_so():
    with pytest.raises(ValueError, match=r"0.1 of torch.Adam .*compat.torch.adam; other"):
        convert_weight_decay(
            0.1, source="torch.Adam", target="torch.AdamW", learning_rate=1e-3
        )
    assert not np.allclose(  # and indeed none does: the best of many is far off
        min(
            np.abs(path("torch.AdamW", lam, "constant", 0.9) - other).max()
            for other in [path("torch.Adam", LAM, "constant", 0.9)]
            for lam in np.linspace(0, 1, 201)
        ),
        0,
        atol=1e-3,
    )


def test_a_schedule_needs_its_peak():
    eta = optax.cosine_decay_schedule(PEAK, 10)
    names = {"source": "torch.AdamW", "target": "composer"}
    with pytest.raises(ValueError, match="needs peak_learning_rate"):
        convert_weight_decay(0.1, **names, learning_rate=eta)
    lam = convert_weight_decay(0.1, **names, learning_rate=eta, peak_learning_rate=PEAK)
    assert lam == 0.1 * PEAK
    assert convert_weight_decay(0.1, **names, learning_rate=0.5) == 0.1 * 0.5
    begun = {"learning_rate": 0.5, "peak_learning_rate": 0.25}  # as a run that goes on
    assert convert_weight_decay(0.1, **names, **begun) == 0.1 * 0.25


def test_a_schedule_does_where_it_cancels():
    eta = optax.cosine_decay_schedule(PEAK, 10)
    names = {"source": "torch.AdamW", "target": "keras"}
    assert convert_weight_decay(0.1, **names, learning_rate=eta) == 0.1
    names = {"source": "loss", "target": "torch.Adam"}
    assert convert_weight_decay(0.1, **names, learning_rate=eta) == 0.2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"source": "torch.adamw"},
            r"source 'torch.adamw' is not .*nearest: .*torch.AdamW",
        ),
        ({"target": "nothing like it"}, "target 'nothing like it' is not a convention"),
        ({"target": "torch"}, r"nearest: torch\.\w+, torch\.\w+, torch[^,]*\. All"),
        ({"weight_decay": -0.1}, "weight_decay must be in"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"learning_rate": -1.0}, "learning_rate must be in"),
    ],
)
def test_bad_input(change, says):
    given = {"weight_decay": 0.1, "source": "torch.AdamW", "target": "tf_addons"}
    given |= {"learning_rate": 1e-3, **change}
    with pytest.raises(ValueError, match=says):
        convert_weight_decay(given.pop("weight_decay"), **given)


def test_the_number_is_the_one_that_our_optimizers_take(x64):
    """A run under scaled_by='schedule' equals one under the learning rate's coupling."""

    def run(optimizer):
        p = jnp.asarray(START)
        state, update = optimizer.init(p), jax.jit(optimizer.update)
        for t in range(STEPS):
            updates, state = update(0.3 * p + NOISE[t], state, p)
            p = optax.apply_updates(p, updates)
        return p

    def eta(t):
        return PEAK * 0.5 * (1 + jnp.cos(t / STEPS * np.pi))

    lam = convert_weight_decay(
        0.3,
        source="optwd.adamw",
        target="optwd.adamw(scaled_by='schedule')",
        learning_rate=eta,
        peak_learning_rate=PEAK,
    )
    ours = optwd.adamw(eta, weight_decay=lam, scaled_by="schedule", peak_learning_rate=PEAK)
    np.testing.assert_allclose(
        run(ours), run(optwd.adamw(eta, weight_decay=0.3)), rtol=0, atol=1e-12
    )


def test_table_has_a_row_for_every_framework():
    head, blank, *lines = table().splitlines()
    assert head.startswith("weight_decay of ")
    assert blank == ""
    assert max(map(len, lines)) <= 100
    rows = {}
    for line in lines:
        if not line.startswith(" "):
            name = line.split()[0]
            rows[name], line = "", line.removeprefix(name)
        rows[name] += " " + line.strip()
    shown = {k: c for k, c in CONVENTIONS.items() if not k.startswith("optwd.")}
    assert list(rows) == list(shown)
    for name, c in shown.items():
        for said in (f"{c.decay} [{c.acts_on}]", c.epsilon, c.defaults, f"here: {c.here}"):
            assert said in rows[name]
        assert rows[name].endswith(f"checked: {c.evidence}")


def test_a_row_that_no_machine_has_checked_says_so():
    words = {c.checked: c.evidence for c in CONVENTIONS.values()}
    assert words[""] == "by no machine, only read"
    assert words["once"] == "once, by running its code"
    assert words["torch"] == "the tests audit torch"
    # not one name more without a test: tests/parity/test_audit_rows.py runs these packages
    packages = {"torch", "keras", "timm", "fastai", "optax", "optimi", "schedulefree"}
    assert words.keys() == packages | {"", "once", "jax", "optwd"}


def test_an_error_says_the_number_that_was_given():
    names = {"source": "loss", "target": "torch.AdamW", "learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"equivalent to 0\.1 of loss"):
        convert_weight_decay(0.1, **names)


@pytest.mark.parametrize(
    ("number", "source", "target", "eta", "says"),
    [
        (1.7e308, "loss", "torch.Adam", 0.1, r"1\.7e\+308 of loss is too large a number"),
        (1e308, "tf_addons", "torch.AdamW", 1e-3, r"1e\+308 of tf_addons is too large"),
        (
            1e-320,
            "torch.AdamW",
            "tf_addons",
            1e-5,
            r"of torch\.AdamW is too small a number",
        ),
    ],
)
def test_numbers_at_the_ends_do_not_overflow(number, source, target, eta, says):
    with pytest.raises(ValueError, match=says):
        convert_weight_decay(number, source=source, target=target, learning_rate=eta)


def test_what_is_in_range_has_no_intermediate_that_is_not():
    corrected = "timm.AdamW(corrected_weight_decay)"
    names = {"source": corrected, "target": "torch.AdamW", "learning_rate": 1e-200}
    assert convert_weight_decay(0.1, **names, peak_learning_rate=1e-200) == 0.1
    names["target"] = "tf_addons"  # by way of 1e-400
    got = convert_weight_decay(0.1, **names, peak_learning_rate=1e-200)
    assert got == pytest.approx(1e-201, rel=1e-15, abs=0)
    assert (
        convert_weight_decay(0.0, source="loss", target="torch.Adam", learning_rate=1) == 0
    )
