"""How fast: every schedule and planner against its equation.

- in float64, rates are products in float64, also of Optax's float32 schedules;
- schedules over a warm-up that starts at 0, as numbers and schedules, traced and not,
  under strict promotion, at the last count that an int32 holds;
- AdamW of the paper and AdamC are one rate in two places;
- inverse_time alone shrinks weights like a power of t;
- planners against simulation: a half-life halves, a timescale is the time constant;
- planners for a budget against their equations and the values that were published;
- the well-known mistake: λ from a scaling law with another run's learning rate;
- `compare` gives each rule's λ for every scaling, and prints what it gives;
- the example `run_length`: slopes of a loss made up here; in short runs (slow) the best
  decay of weights that have to be forgotten shrinks with the length;
- bad input raises, with the name, the value and the fix.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import run_length

from optwd import decay, masks, rates
from tests.test_decay import path_of

ETA = optax.warmup_cosine_decay_schedule(0.0, 0.2, 10, 100)  # 0 at the first step
LAMBDA = optax.linear_schedule(0.3, 0.1, 100)

SCHEDULES = {
    "by_schedule": (rates.by_schedule(LAMBDA, ETA, 0.2), lambda t, e, lam: lam * e / 0.2),
    "by_learning_rate": (rates.by_learning_rate(LAMBDA, ETA), lambda t, e, lam: lam * e),
    "inverse_time": (rates.inverse_time(2.0, 5), lambda t, e, lam: 2 / (5 + t + 1)),
}


@pytest.mark.parametrize(("schedule", "equation"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule, equation):
    steps = jnp.arange(100)
    got, eta, lam = (jax.jit(jax.vmap(f))(steps) for f in (schedule, ETA, LAMBDA))
    want = equation(np.arange(100), np.float64(eta), np.float64(lam))
    assert want[0] == 0 or equation is SCHEDULES["inverse_time"][1]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    eager = [schedule(t) for t in (0, 1, 50)]
    np.testing.assert_allclose(eager, want[[0, 1, 50]], rtol=1e-5)
    last = schedule(jnp.int32(2**31 - 1))
    assert np.isfinite(last)
    assert last >= 0


def test_rates_of_numbers_are_numbers():
    assert rates.by_learning_rate(0.1, 0.02)(7) == pytest.approx(0.002)
    assert rates.by_learning_rate(lambda t: 0.1 * t, 0.5)(3) == pytest.approx(0.15)
    assert rates.by_schedule(0.1, 0.02, 0.04)(7) == pytest.approx(0.05)


def test_inverse_time_begins_with_omega():
    np.testing.assert_allclose(
        [rates.inverse_time(2.0)(t) for t in range(3)], [2, 1, 2 / 3]
    )


def test_strict_promotion(x64):
    def eta(t):
        return jnp.float32(0.02)

    with jax.numpy_dtype_promotion("strict"):
        for schedule, want in (
            (rates.by_schedule(0.1, eta, 0.04), 0.05),
            (rates.by_learning_rate(0.1, eta), 0.002),
            (rates.inverse_time(2.0, 4.0), 0.2),
        ):
            assert float(jax.jit(schedule)(jnp.int32(5))) == pytest.approx(want)


def test_products_keep_the_wider_precision(x64):
    """Optax's schedules are float32 under x64; 0.3 and 0.07 are float64, and stay so."""
    eta, t = optax.linear_schedule(0.06, 0.0, 100), jnp.int32(7)
    assert eta(t).dtype == jnp.float32
    exact = np.float64(np.asarray(eta(t)))
    for got, want in (
        (rates.by_schedule(0.3, eta, 0.07)(t), 0.3 * exact / 0.07),
        (rates.by_learning_rate(0.3, eta)(t), 0.3 * exact),
        (rates.by_schedule(eta, eta, 0.07)(t), exact * exact / 0.07),
        (rates.by_schedule(jnp.bfloat16(0.5), eta, jnp.float32(0.5))(t), exact),
    ):
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(float(got), want, rtol=4e-16)
    assert rates.by_learning_rate(lambda t: 2, 3)(0) == 6  # integers pass


def test_a_multiplier_of_the_mask_keeps_the_wider_precision(x64):
    """0.3 in float64, times a schedule that is float32 under x64 as well."""
    params, zero = {"w": np.ones(2)}, {"w": np.zeros(2)}
    tx = decay.linear(lambda t: jnp.float32(0.07), masks.multipliers({"w": 0.3}))
    u, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(u["w"], 0.3 * float(np.float32(0.07)), rtol=4e-16)


def test_without_x64_products_are_float32():
    rate = rates.by_schedule(0.3, optax.linear_schedule(0.06, 0.0, 100), 0.07)
    assert rate(7).dtype == jnp.float32


def test_what_both_schedules_return_is_checked():
    """The product of two negative numbers would be a rate like any other."""

    def negative(t):
        return -0.1

    for rate, name in (
        (rates.by_learning_rate(negative, negative), "learning_rate"),
        (rates.by_schedule(negative, negative, 0.1), "learning_rate"),
        (rates.by_learning_rate(negative, 0.1), "weight_decay"),
        (rates.by_schedule(negative, 0.1, 0.1), "weight_decay"),
    ):
        with pytest.raises(ValueError, match=f"the schedule {name} at step 3 must be in"):
            rate(3)


def test_one_rate_in_two_places():
    """After the learning rate: AdamW of the paper. Before it: AdamC."""
    rate, u = rates.by_schedule(0.5, ETA, 0.2), jnp.ones((100, 1))
    flipped = optax.scale_by_learning_rate(ETA, flip_sign=False)
    paper = path_of(optax.chain(flipped, decay.linear(rate)), jnp.ones(1), 0 * u)
    adamc = path_of(optax.chain(decay.linear(rate), flipped), jnp.ones(1), 0 * u)
    eta = np.array([float(ETA(t)) for t in range(100)])
    np.testing.assert_allclose(paper[:, 0], np.cumprod(1 - 0.5 * eta / 0.2), rtol=1e-5)
    np.testing.assert_allclose(adamc[:, 0], np.cumprod(1 - 0.5 * eta**2 / 0.2), rtol=1e-5)


def test_proximal_follows_the_learning_rate():
    proximal = decay.proximal(rates.by_learning_rate(0.5, ETA))
    got = path_of(proximal, jnp.ones(1), jnp.zeros((100, 1)))
    eta = np.array([float(ETA(t)) for t in range(100)])
    np.testing.assert_allclose(got[:, 0], np.cumprod(1 / (1 + 0.5 * eta)), rtol=1e-5)


def test_inverse_time_is_a_power_law(x64):
    """∏(1 − ω/(c + i)) over i ≤ t is Γ(t+1+c−ω)Γ(1+c)/(Γ(1+c−ω)Γ(t+1+c)), about t^−ω."""
    omega, c, t = 1.5, 20.0, 2000
    got = path_of(
        decay.linear(rates.inverse_time(omega, c)), jnp.ones(1), jnp.zeros((t, 1))
    )
    log_gamma = [
        math.lgamma(x) for x in (t + 1 + c - omega, 1 + c, 1 + c - omega, t + 1 + c)
    ]
    want = math.exp(np.dot(log_gamma, [1, 1, -1, -1]))
    np.testing.assert_allclose(got[-1], want, rtol=1e-9)
    slope = math.log(got[-1, 0] / got[t // 2 - 1, 0]) / math.log(0.5)
    assert slope == pytest.approx(omega, rel=0.02)


def test_half_life_halves(x64):
    eta, lam = 0.1, 0.25
    steps = rates.half_life(eta, lam)
    assert (1 - eta * lam) ** steps == pytest.approx(0.5, rel=1e-12)
    path = path_of(decay.linear(eta * lam), jnp.ones(1), jnp.zeros((60, 1)))
    assert path[math.floor(steps) - 1] > 0.5 > path[math.ceil(steps) - 1]
    assert rates.half_life(1e-12, 1e-3) == pytest.approx(math.log(2) * 1e15, rel=1e-12)
    assert rates.half_life(0.0, 0.1) == math.inf
    assert rates.half_life(1.0, 1.0) == 0.0


def test_timescale_is_the_time_constant():
    eta, lam = 1e-3, 0.1
    tau = rates.timescale(eta, lam)
    assert tau == pytest.approx(1e4)
    assert (1 - eta * lam) ** tau == pytest.approx(math.exp(-1), rel=1e-4)
    assert rates.for_timescale(tau, eta) == pytest.approx(lam)
    assert rates.timescale(eta, rates.for_timescale(123, eta)) == pytest.approx(123)
    assert rates.half_life(eta, lam) == pytest.approx(tau * math.log(2), rel=1e-3)
    assert rates.timescale(0.0, 0.1) == math.inf


def test_normalized():
    assert rates.normalized(0.025, 128, 50_000, 1800) == pytest.approx(2.98e-5, rel=1e-3)
    one_batch = rates.normalized(0.05, 50_000, 50_000, 1)
    assert one_batch == pytest.approx(0.05)  # λ_norm is the decay of a single step
    twice = rates.normalized(0.05, 50_000, 50_000, 2)
    assert twice == pytest.approx(0.05 / math.sqrt(2))
    assert isinstance(rates.normalized(np.float32(0.1), jnp.int32(2), 2, 1), float)


RUN = {"batch_tokens": 98_304, "tokens": 20 * 163_009_536, "parameters": 163_009_536}


def test_timescale_share():
    """6·10⁻⁴ and 0.1 over 600 000 steps: the memory is 1/36 of the run."""
    assert rates.timescale_share(6e-4, 0.1, 2**19, 600_000 * 2**19) == pytest.approx(1 / 36)
    share = rates.timescale_share(0.01, 0.2, 50, 50_000)  # examples: τ in epochs
    assert share == pytest.approx(rates.timescale(0.01, 0.2) / 1000)
    assert rates.timescale_share(0.1, 0.0, 1, 1) == math.inf


def test_power_lines():
    """Bergsma et al.: about 1 at one token per parameter, .21 at 20, .03 at 1000."""
    for ratio, published, error in ((1, 1.0, 0.1), (20, 0.21, 0.1), (1000, 0.03, 0.1)):
        share = rates.power_lines_share(ratio * 610e6, 610e6)
        assert share == pytest.approx(published, rel=error)
        assert share == pytest.approx(1.084 * np.exp(-0.527 * np.log(ratio)), rel=1e-14)
    lam = rates.power_lines(1.6e-2, 2**18, 12.2e9, 610e6)
    share = rates.timescale_share(1.6e-2, lam, 2**18, 12.2e9)
    assert share == pytest.approx(rates.power_lines_share(12.2e9, 610e6))
    twice = rates.power_lines(1.6e-2, 2**19, 12.2e9, 610e6)
    assert twice == pytest.approx(2 * lam)  # linear in the batch


def test_the_well_known_mistake():
    """λ = 0.337 goes with η = 4e-4; it was trained with at 1.4e-3, which wants 0.096."""
    assert rates.power_lines(4e-4, **RUN) == pytest.approx(0.33724, rel=2e-4)
    assert rates.power_lines(1.4e-3, **RUN) == pytest.approx(0.096, rel=5e-3)
    meant = rates.power_lines_share(RUN["tokens"], RUN["parameters"])
    trained = rates.timescale_share(1.4e-3, 0.33724, RUN["batch_tokens"], RUN["tokens"])
    assert trained == pytest.approx(meant * 4e-4 / 1.4e-3, rel=2e-4)


def test_transferred_keeps_the_share():
    """λ·√(B'/B)·D/D', with η·√(B'/B), leaves B/(ηλD) as it was."""
    lam, eta, batch, tokens = 0.28, 0.02, 2.0**19, 1.3e9
    for b, d in ((1, 1), (2, 1), (1, 5), (4, 9.5)):
        new = rates.transferred(lam, b, d)
        assert new == pytest.approx(lam * b**0.5 / d)
        share = rates.timescale_share(eta * b**0.5, new, b * batch, d * tokens)
        assert share == pytest.approx(rates.timescale_share(eta, lam, batch, tokens))


def test_width_rules_disagree():
    eta, lam, ratio = 1e-2, 0.1, 4.0
    weight_decay, timescale, gain = (
        rates.for_width(lam, ratio, keeping)
        for keeping in ("weight_decay", "timescale", "gain")
    )
    assert (weight_decay, timescale, gain) == pytest.approx((0.1, 0.4, 0.2))
    steps = rates.timescale(eta / ratio, timescale)
    assert steps == pytest.approx(rates.timescale(eta, lam))
    # Fan et al.: top singular values go as √(η/λ)·d^¾, and keep if λ ∝ √d and η ∝ 1/d
    top = math.sqrt(eta / ratio / gain) * ratio**0.75
    assert top == pytest.approx(math.sqrt(eta / lam))


def test_compare():
    got = rates.compare(1.4e-3, **RUN)
    assert got["Power Lines"] == rates.power_lines(1.4e-3, **RUN)
    assert got["torch's default"] == pytest.approx(0.01)
    assert got["one average per run"] == pytest.approx(
        rates.for_timescale(RUN["tokens"] / RUN["batch_tokens"], 1.4e-3)
    )
    steps = RUN["tokens"] / RUN["batch_tokens"]
    per_step = rates.compare(1.4e-3, **RUN, scaled_by="schedule")
    assert per_step["λ_norm = 0.05"] == pytest.approx(rates.normalized(0.05, 1, steps, 1))
    assert per_step == rates.compare(1.4e-3, **RUN, scaled_by="nothing")
    assert per_step == pytest.approx({rule: 1.4e-3 * lam for rule, lam in got.items()})
    header, *rows = str(got).splitlines()
    assert len(rows) == len(got)
    assert len({len(row) for row in (header, *rows)}) == 1
    cells = rows[-1].split()
    assert cells[:2] == ["Power", "Lines"]
    lam, share, angle, rms = map(float, cells[2:])
    assert (lam, share) == pytest.approx((0.0963, 0.224), rel=1e-2)
    assert angle == pytest.approx(
        np.rad2deg(rates.equilibrium_angle(1.4e-3, lam)), rel=1e-2
    )
    assert rms == pytest.approx(rates.equilibrium_rms(1.4e-3, lam), rel=1e-2)


def test_the_slope_of_run_lengths():
    """Bowls about λ = 10/t, in logarithms; the third seed gains nothing from decay."""
    lengths, decays = (100, 400, 1600), np.linspace(-4, 1, 11)
    vertex = 1 - np.log10(lengths)[:, None, None]
    losses = np.exp((decays[:, None] - vertex) ** 2 * np.ones(3))
    losses[..., 2] = 1.0
    finding = run_length.summary(losses, decays, lengths)
    assert (finding.slope, finding.error) == pytest.approx((-1, 0), abs=1e-9)
    np.testing.assert_allclose(finding.best[:, :2], vertex[:, :, 0] * np.ones(2))
    assert np.isnan(finding.best[:, 2]).all()
    bent = np.array([0.0, 0.3, 0.0])  # a line through these is level, and off by .1, .2, .1
    spread = np.sum(np.square([-1, 0, 1])) * np.log10(4) ** 2
    error = run_length.off_line(np.log10(lengths), bent)
    assert error == pytest.approx(np.sqrt((0.01 + 0.04 + 0.01) / spread))
    planned = run_length.plans(lengths)
    slopes = [run_length.slope_of(values, lengths) for values in planned.values()]
    assert slopes == pytest.approx([-1, -0.5, -0.473, 0])


@pytest.mark.slow
def test_run_length(tmp_path, capsys):
    findings = run_length.main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "run_length.png").stat().st_size > 10_000
    assert "Power Lines" in capsys.readouterr().out
    for setting in ("forget, fresh data", "forget, repeated data"):
        short, long = findings[setting].best.mean(1)
        assert short > long


def test_public_names_are_listed():
    assert set(dir(rates)) == set(rates.__all__)
    assert all(callable(getattr(rates, name)) for name in rates.__all__)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: rates.by_learning_rate(-0.1, ETA),
            r"weight_decay must be in \[0, inf\), got -0.1",
        ),
        (lambda: rates.by_learning_rate(0.1, math.nan), "learning_rate must be .* got nan"),
        (lambda: rates.inverse_time(-1), "omega must be .* got -1"),
        (lambda: rates.inverse_time(1, offset=-2), "offset must be .* got -2"),
        (lambda: rates.by_schedule(0.1, ETA, 0.0), "peak_learning_rate must be > 0, got 0"),
        (lambda: rates.normalized(-1, 1, 1, 1), "norm must be .* got -1"),
        (lambda: rates.normalized(1, 1, 1, 0), "epochs must be > 0, got 0"),
        (lambda: rates.normalized(1, 0, 1, 1), "batch_size must be > 0, got 0"),
        (lambda: rates.for_timescale(0, 0.1), "steps must be > 0, got 0"),
        (lambda: rates.for_timescale(10, 0.0), "learning_rate must be > 0, got 0"),
        (lambda: rates.timescale(0.1, math.inf), "weight_decay must be .* got inf"),
        (lambda: rates.power_lines(0.0, **RUN), "learning_rate must be > 0, got 0"),
        (lambda: rates.power_lines_share(-1, 1), "tokens must be .* got -1"),
        (lambda: rates.timescale_share(1, 1, 1, 0), "tokens must be > 0, got 0"),
        (lambda: rates.transferred(0.1, 1, 0), "tokens_ratio must be > 0, got 0"),
        (lambda: rates.transferred(-0.1, 1, 1), "weight_decay must be .* got -0.1"),
        (lambda: rates.for_width(0.1, 2, "norm"), "keeping must be one of .*; got 'norm'"),
        (
            lambda: rates.compare(1, 1, 1, 1, scaled_by="lr"),
            "scaled_by must be .* got 'lr'",
        ),
        (lambda: rates.half_life(2.0, 0.6), r"must be ≤ 1.*got 2.0 × 0.6 = 1.2"),
    ],
)
def test_bad_numbers_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
