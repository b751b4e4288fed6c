"""How fast: schedules for a weight decay, and the arithmetic of choosing one.

Schedules are functions of the step and go wherever a ``weight_decay`` goes:
`by_schedule`, `by_learning_rate`, `inverse_time`. Planners take numbers and return one:
`normalized`, `timescale`, `for_timescale`, `half_life`.

One rate, two places: with ``rate = by_schedule(λ, η, η_max)``

    chain(scale_by_adam(), scale_by_learning_rate(η, flip_sign=False),
          decay.linear(rate), scale(-1))                  # AdamW of the paper: ηₜλ/η_max
    chain(scale_by_adam(), decay.linear(rate), scale_by_learning_rate(η))
                                                          # AdamC: ηₜ²λ/η_max
"""

import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _check
from optwd._check import ScalarOrSchedule


def by_schedule(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    peak_learning_rate: ArrayLike,
) -> optax.Schedule:
    """Let the decay follow the learning rate's schedule, but not its size.

        ρₜ = λ·ηₜ/η_max

    Place in the chain: behind the learning rate, with the sign flipped last, this is
    AdamW as its paper means it; before the learning rate it is AdamC.

    Args:
      weight_decay: λ ≥ 0, the decay where the schedule peaks: a number or a schedule.
      learning_rate: ηₜ, a schedule or a number, as given to the optimizer.
      peak_learning_rate: η_max > 0, in the units of ``learning_rate``.

    Returns:
      A schedule, from the step (0 at the first) to the rate.

    Raises:
      ValueError: a negative or non-finite number, or a peak of 0.

    >>> import optax
    >>> decay = by_schedule(0.1, optax.linear_schedule(1e-3, 0.0, 10), 1e-3)
    >>> print(f"{decay(0):.3f} {decay(5):.3f}")
    0.100 0.050

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2 (η there is ηₜ/η_max
    here); AdamC: Defazio, arXiv 2506.02285.
    """
    weight_decay = _check.rate("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)
    peak = _check.number("peak_learning_rate", peak_learning_rate)
    if isinstance(peak, float) and peak == 0.0:
        raise ValueError("peak_learning_rate must be > 0, got 0; it divides the schedule.")

    def schedule(step: ArrayLike) -> _check.Scalar:
        eta = _check.at_step("learning_rate", learning_rate, step)
        return _check.at_step("weight_decay", weight_decay, step) * (eta / peak)

    return schedule


def by_learning_rate(
    weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule
) -> optax.Schedule:
    """Scale the decay by the learning rate where no learning rate stands behind it.

        ρₜ = λ·ηₜ

    Place in the chain: behind the learning rate, for a rule that has to stand there
    (`decay.proximal`), or in `optwd.with_weight_decay`. It decays as torch and Optax do;
    before the learning rate the decay would be scaled twice.

    Args:
      weight_decay: λ ≥ 0: a number or a schedule.
      learning_rate: ηₜ, a schedule or a number, as given to the optimizer.

    Returns:
      A schedule, from the step (0 at the first) to the rate.

    Raises:
      ValueError: a negative or non-finite number.

    >>> import optax
    >>> decay = by_learning_rate(0.1, optax.linear_schedule(1e-2, 0.0, 10))
    >>> print(f"{decay(0):.4f} {decay(5):.4f}")
    0.0010 0.0005

    Source: the convention of torch's and Optax's ``AdamW``.
    """
    weight_decay = _check.rate("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)

    def schedule(step: ArrayLike) -> _check.Scalar:
        eta = _check.at_step("learning_rate", learning_rate, step)
        return _check.at_step("weight_decay", weight_decay, step) * eta

    return schedule


def inverse_time(omega: ArrayLike, offset: ArrayLike = 0.0) -> optax.Schedule:
    """Forget a fixed share of the past, however long that past has become.

        ρₜ = ω/(offset + t)        t = 1, 2, …

    A constant rate remembers a constant number of steps; this one remembers a constant
    fraction of the run. On its own it shrinks a weight like ``t^−ω``, not exponentially.

    Place in the chain: what stands behind scales it, as any rate. With a learning rate
    behind it ω is in units of 1/learning rate.

    Args:
      omega: ω ≥ 0, the power with which old weights fade.
      offset: steps ≥ 0 that are added to t, so that the first rates are not large: without
        it the first step takes the share ω of the weights. A tenth of the run is common.

    Returns:
      A schedule, from the step (0 at the first, where t = 1) to the rate.

    Raises:
      ValueError: a negative or non-finite number.

    >>> decay = inverse_time(2.0, offset=9)
    >>> print(f"{decay(0):.2f} {decay(10):.2f}")
    0.20 0.10

    Source: logarithmic-time weight decay: Ferbach et al., arXiv 2602.05298.
    """
    omega = _check.number("omega", omega)
    first = _check.number("offset", offset) + 1.0

    def schedule(step: ArrayLike) -> _check.Scalar:
        return omega / (jnp.asarray(step).astype(float) + first)

    return schedule


def normalized(norm: float, batch_size: float, dataset_size: float, epochs: float) -> float:
    """A weight decay that carries over from short runs to long ones.

        λ = λ_norm·√(b/(B·T))

    The longer the run, the smaller the decay that suits it; λ_norm takes the length out.

    Args:
      norm: λ_norm ≥ 0, tuned once; the paper's are about 0.025 to 0.05.
      batch_size: b > 0, examples a step.
      dataset_size: B > 0, examples an epoch.
      epochs: T > 0, of the run; with warm restarts, of the cycle.

    Returns:
      λ for a decay that the schedule multiplies, as in `by_schedule`.

    Raises:
      ValueError: a number outside its domain.

    >>> print(normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100))
    0.000253

    Source: Loshchilov and Hutter, arXiv 1711.05101, Appendix B.1.
    """
    steps = (
        _positive("dataset_size", dataset_size)
        * _positive("epochs", epochs)
        / _positive("batch_size", batch_size)
    )
    return _check.number("norm", norm) / math.sqrt(steps)


def timescale(learning_rate: float, weight_decay: float) -> float:
    """Over how many steps the weights average their updates.

        τ = 1/(ηλ)

    Decoupled decay makes the weights an exponential moving average of updates; τ is its
    length. It, not λ, is what carries over between learning rates.

    Args:
      learning_rate: η ≥ 0; 1 for a decay that no learning rate scales.
      weight_decay: λ ≥ 0.

    Returns:
      τ in steps; inf without decay.

    Raises:
      ValueError: a negative or non-finite number.

    >>> print(timescale(learning_rate=1e-3, weight_decay=0.1))
    10000.0

    Source: Wang and Aitchison, arXiv 2405.13698.
    """
    rate = _rate_a_step(learning_rate, weight_decay)
    return 1 / rate if rate else math.inf


def for_timescale(steps: float, learning_rate: float) -> float:
    """The weight decay that averages updates over so many steps.

        λ = 1/(η·steps)

    Args:
      steps: τ > 0; the length of the run, or a fixed fraction of it, is a common choice.
      learning_rate: η > 0; 1 for a decay that no learning rate scales.

    Returns:
      λ, the inverse of `timescale`.

    Raises:
      ValueError: a number outside its domain.

    >>> print(for_timescale(steps=10_000, learning_rate=1e-3))
    0.1

    Source: Wang and Aitchison, arXiv 2405.13698.
    """
    return 1 / (_positive("learning_rate", learning_rate) * _positive("steps", steps))


def half_life(learning_rate: float, weight_decay: float) -> float:
    """After how many steps decay alone has halved a weight.

        t½ = ln 2 / −ln(1 − ηλ)

    Args:
      learning_rate: η ≥ 0; 1 for a decay that no learning rate scales.
      weight_decay: λ ≥ 0.

    Returns:
      t½ in steps under `decay.linear`; inf without decay, 0 where one step takes all.

    Raises:
      ValueError: a negative or non-finite number; ``ηλ > 1``, where weights change sign.

    >>> print(half_life(learning_rate=1e-3, weight_decay=0.1))
    6931.1

    Source: the recursion ``θ ← (1 − ηλ)θ``.
    """
    rate = _rate_a_step(learning_rate, weight_decay)
    if rate > 1.0:
        raise ValueError(
            "learning_rate × weight_decay must be ≤ 1, or every step carries the weights "
            f"across zero; got {learning_rate!r} × {weight_decay!r} = {rate:g}."
        )
    if rate in (0.0, 1.0):
        return 0.0 if rate else math.inf
    return math.log(2) / -math.log1p(-rate)


def _rate_a_step(learning_rate: float, weight_decay: float) -> float:
    return _check.number("learning_rate", learning_rate) * _check.number(
        "weight_decay", weight_decay
    )


def _positive(name: str, value: float) -> float:
    value = _check.number(name, value)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0, got 0.")
    return value
