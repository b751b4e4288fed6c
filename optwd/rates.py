"""How fast: schedules for a weight decay, and planners that find the number.

Schedules are functions of the step and go wherever a ``weight_decay`` goes:
`by_schedule`, `by_learning_rate`, `inverse_time`. Planners take the numbers of a run and
return one: what a weight decay means (`timescale`, `timescale_share`, `half_life`,
`equilibrium_angle`, `equilibrium_rms`), which one to take (`power_lines`, `normalized`,
`transferred`, `for_width`), and `compare`, which prints the rules side by side.

One rate, two places: with ``rate = by_schedule(λ, η, η_max)``

    chain(scale_by_adam(), scale_by_learning_rate(η, flip_sign=False),
          decay.linear(rate), scale(-1))                  # AdamW of the paper: ηₜλ/η_max
    chain(scale_by_adam(), decay.linear(rate), scale_by_learning_rate(η))
                                                          # AdamC: ηₜ²λ/η_max
"""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _check, _dtypes
from optwd._check import ScalarOrSchedule
from optwd._equilibrium import equilibrium_angle as equilibrium_angle
from optwd._equilibrium import equilibrium_rms as equilibrium_rms
from optwd._equilibrium import equilibrium_steps as equilibrium_steps
from optwd._equilibrium import sgd_equilibrium_rms as sgd_equilibrium_rms
from optwd._equilibrium import sphere_learning_rate as sphere_learning_rate
from optwd._planners import compare as compare
from optwd._planners import for_timescale as for_timescale
from optwd._planners import for_width as for_width
from optwd._planners import half_life as half_life
from optwd._planners import normalized as normalized
from optwd._planners import power_lines as power_lines
from optwd._planners import power_lines_share as power_lines_share
from optwd._planners import timescale as timescale
from optwd._planners import timescale_share as timescale_share
from optwd._planners import transferred as transferred

__all__ = [
    "by_learning_rate",
    "by_schedule",
    "compare",
    "equilibrium_angle",
    "equilibrium_rms",
    "equilibrium_steps",
    "for_timescale",
    "for_width",
    "half_life",
    "inverse_time",
    "normalized",
    "power_lines",
    "power_lines_share",
    "sgd_equilibrium_rms",
    "sphere_learning_rate",
    "timescale",
    "timescale_share",
    "transferred",
]


def __dir__() -> list[str]:
    return __all__


def by_schedule(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    peak_learning_rate: ArrayLike,
) -> optax.Schedule:
    """Let the decay follow the learning rate's schedule, but not its size.

        ρₜ = λ·ηₜ/η_max

    Place in the chain: after the learning rate, with the sign flipped last, this is
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
        eta = _at_step("learning_rate", learning_rate, step)
        return _at_step("weight_decay", weight_decay, step) * (
            eta / _dtypes.wide_scalar(peak)
        )

    return schedule


def by_learning_rate(
    weight_decay: ScalarOrSchedule, learning_rate: ScalarOrSchedule
) -> optax.Schedule:
    """Scale the decay by the learning rate where no learning rate comes after it.

        ρₜ = λ·ηₜ

    Place in the chain: after the learning rate, for a rule that has to stand there
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
    """
    weight_decay = _check.rate("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)

    def schedule(step: ArrayLike) -> _check.Scalar:
        eta = _at_step("learning_rate", learning_rate, step)
        return _at_step("weight_decay", weight_decay, step) * eta

    return schedule


def inverse_time(omega: ArrayLike, offset: ArrayLike = 0.0) -> optax.Schedule:
    """Forget a fixed share of the past, however long that past has become.

        ρₜ = ω/(offset + t)        t = 1, 2, …

    A constant rate remembers a constant number of steps; this one remembers a constant
    fraction of the run. Alone it shrinks a weight like ``t^−ω``, not exponentially.

    Place in the chain: whatever comes after it scales it, as any rate. Before a learning
    rate, ω is in units of 1/learning rate.

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


def _at_step(name: str, value: ScalarOrSchedule, step: ArrayLike) -> _check.Scalar:
    return _dtypes.wide_scalar(_check.at_step(name, value, step))
