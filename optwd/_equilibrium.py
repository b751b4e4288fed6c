"""Where weights settle: how fast they rotate, how large they are, and after how long.

Gradients that are orthogonal to the weights make them grow, decay makes them shrink, and
the two balance. With ``a = 1 − ρ``, ``ρ`` the share that decay takes per step, and ``b``
the decay of the momentum, weights under independent gradients are a stationary process

    θ' = a·θ − η·u      u a first-order autoregression with coefficient b

whose variance and correlation from step to step are known exactly. The published
formulas are their limits for small ``ρ``.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import jax.numpy as jnp

from optwd import _check

ScaledBy = Literal["learning_rate", "schedule", "nothing"]


def equilibrium_angle(
    learning_rate: float,
    weight_decay: float,
    b1: float = 0.9,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: float | None = None,
) -> float:
    """How far a weight matrix turns per step once decay and gradients balance.

        cos φ = 1 − ρ(1 − b1)/(1 + (1 − ρ)b1)        φ ≈ √(2ηλ(1 − b1)/(1 + b1))

        ρ = ηλ           scaled_by="learning_rate"
        ρ = ηλ/η_max     scaled_by="schedule"
        ρ = λ            scaled_by="nothing"

    The angle depends on neither the gradient's size nor the matrix's, so every
    scale-invariant matrix turns equally fast. It holds for `adamw` and, with ``b1`` the
    momentum, for `sgdw`; for `sgd_l2` give ``weight_decay / (1 − momentum)``.

    Args:
      learning_rate: η ≥ 0 at the step in question. It may be traced; so may the others.
      weight_decay: λ ≥ 0.
      b1: decay of the first moment in [0, 1), or the momentum.
      scaled_by: what the decay is multiplied by, as in `adamw`.
      peak_learning_rate: η_max > 0, for ``scaled_by="schedule"``.

    Returns:
      φ in radians, between θ and θ'.

    Raises:
      ValueError: a number outside its domain; ``ρ > 1``.

    >>> print(equilibrium_angle(1e-3, 0.1), math.sqrt(2 * 1e-3 * 0.1 * 0.1 / 1.9))
    0.0032445 0.0032444

    Source: Kosson et al., arXiv 2305.17212, for the limit of small ρ.
    """
    rho = rate_per_step(learning_rate, weight_decay, scaled_by, peak_learning_rate)
    b = _check.number("b1", b1, below=1.0)
    half = (rho * (1 - b) / (1 + (1 - rho) * b) / 2) ** 0.5  # sin(φ/2)
    arcsin: Any = math.asin if isinstance(half, float) else jnp.arcsin
    return 2 * arcsin(half)


def equilibrium_rms(
    learning_rate: float,
    weight_decay: float,
    b1: float = 0.9,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: float | None = None,
) -> float:
    """How large Adam's weights become once decay and gradients balance.

        rms² = η²·(1 − b1)/(1 + b1) · (1 + ab1)/((1 − a²)(1 − ab1)),    a = 1 − ρ

        rms ≈ η/√(2ρ), which is √(η/(2λ)) if the decay is scaled by the learning rate

    Momentum drops out of the limit. The second moment is taken as known exactly, so that
    Adam's direction has mean square ``(1 − b1)/(1 + b1)``: true to a hundredth for
    ``b2 ≥ .95``.

    Args:
      learning_rate: See `equilibrium_angle`; so too the other arguments.
      weight_decay: λ ≥ 0.
      b1: decay of the first moment in [0, 1).
      scaled_by: what the decay is multiplied by.
      peak_learning_rate: η_max > 0, for ``scaled_by="schedule"``.

    Returns:
      The root mean square of the weights; inf without decay.

    Raises:
      ValueError: a number outside its domain; ``ρ > 1``.

    >>> print(equilibrium_rms(1e-3, 0.1), equilibrium_rms(1e-3, 1e-4, scaled_by="nothing"))
    0.0707 0.0707

    Source: Kosson et al., arXiv 2305.17212, for the limit of small ρ.
    """
    rho = rate_per_step(learning_rate, weight_decay, scaled_by, peak_learning_rate)
    b = _check.number("b1", b1, below=1.0)
    eta = _check.number("learning_rate", learning_rate)
    if isinstance(rho, float) and rho == 0.0:
        return math.inf
    return eta * ((1 - b) ** 2 * _gain(rho, b)) ** 0.5


def sgd_equilibrium_rms(
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    gradient: float,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: float | None = None,
) -> float:
    """How large the weights of `sgdw` become once decay and gradients balance.

        rms⁴ = η²κ²·(1 + aμ)/((1 − μ²)(1 − a²)(1 − aμ)),    a = 1 − ρ

        rms ≈ (η²κ²/(2ρ(1 − μ)²))^¼

    The gradient of a scale-invariant matrix shrinks as the matrix grows, so that the
    product κ of their root mean squares is the same at every size.

    Args:
      learning_rate: See `equilibrium_angle`; so too ``weight_decay`` and the keywords.
      weight_decay: λ ≥ 0.
      momentum: μ in [0, 1).
      gradient: κ ≥ 0, the root mean square of the gradient times that of the weights,
        both taken at any one step.
      scaled_by: what the decay is multiplied by.
      peak_learning_rate: η_max > 0, for ``scaled_by="schedule"``.

    Returns:
      The root mean square of the weights; inf without decay.

    Raises:
      ValueError: a number outside its domain; ``ρ > 1``.

    >>> print(sgd_equilibrium_rms(0.1, 5e-4, 0.9, gradient=1e-3))
    0.316

    Source: Kosson et al., arXiv 2305.17212, for the limit of small ρ.
    """
    rho = rate_per_step(learning_rate, weight_decay, scaled_by, peak_learning_rate)
    mu = _check.number("momentum", momentum, below=1.0)
    eta = _check.number("learning_rate", learning_rate)
    kappa = _check.number("gradient", gradient)
    if isinstance(rho, float) and rho == 0.0:
        return math.inf
    return (eta * kappa) ** 0.5 * _gain(rho, mu) ** 0.25


def equilibrium_steps(
    initial: float,
    learning_rate: float,
    weight_decay: float,
    *,
    within: float = 0.05,
    power: int = 2,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: float | None = None,
) -> float:
    """After how many steps the weights are as large as they will stay.

        |(1 ± within)ᵖ − 1| = |initialᵖ − 1|·(1 − ρ)^(pt)

    For Adam the mean square relaxes exponentially, so ``p = 2``; for SGD, whose gradients
    shrink as the weights grow, its square does, so ``p = 4``. A run shorter than this
    never reaches its equilibrium.

    Args:
      initial: root mean square of the weights now, in units of `equilibrium_rms` or of
        `sgd_equilibrium_rms`.
      learning_rate: See `equilibrium_angle`; so too ``weight_decay`` and the last two.
      weight_decay: λ ≥ 0.
      within: in (0, 1), relative: how near counts as reached.
      power: 2 for Adam, 4 for SGD.
      scaled_by: what the decay is multiplied by.
      peak_learning_rate: η_max > 0, for ``scaled_by="schedule"``.

    Returns:
      t in steps; 0 if already that near, inf without decay.

    Raises:
      ValueError: a number outside its domain; ``ρ > 1``.

    >>> start = 0.02 / equilibrium_rms(1e-3, 0.1)
    >>> print(f"{equilibrium_steps(start, 1e-3, 0.1):,.0f}")
    11,222
    """
    rho = rate_per_step(learning_rate, weight_decay, scaled_by, peak_learning_rate)
    initial = _check.number("initial", initial)
    within = positive("within", within, below=1.0)
    if power not in (2, 4):
        raise ValueError(f"power must be 2 (Adam) or 4 (SGD), got {power!r}.")
    near = 1 + within if initial > 1 else 1 - within
    gap = (initial**power - 1) / (near**power - 1)
    if gap <= 1.0:
        return 0.0
    if rho in (0.0, 1.0):
        return 1.0 if rho else math.inf
    return math.log(gap) / -(power * math.log1p(-rho))


def sphere_learning_rate(
    learning_rate: float,
    weight_decay: float,
    b1: float = 0.9,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: float | None = None,
) -> float:
    """The learning rate on the sphere that turns weights as fast as AdamW does.

        η_s = √((1 − a²)(1 − ab1)/(1 + ab1))/a,   a = 1 − ρ

        η_s ≈ √(2ηλ(1 − b1)/(1 + b1))

    On the sphere each step is η_s times the weights' norm, whatever the gradient:

        chain(scale_by_adam(b1), scale_by_weight_norm(), scale_by_learning_rate(η_s,
              flip_sign=False), decay.to_norm(), scale(-1))

    A run that goes over to the sphere at AdamW's equilibrium keeps the size and the
    rotation of every matrix. Under a schedule η_s follows the square root of ηλ.

    Args:
      learning_rate: See `equilibrium_angle`; so too the other arguments.
      weight_decay: λ ≥ 0.
      b1: decay of the first moment in [0, 1), the same before and after.
      scaled_by: what AdamW's decay is multiplied by.
      peak_learning_rate: η_max > 0, for ``scaled_by="schedule"``.

    Returns:
      η_s, the length of a step over the norm of the weights.

    Raises:
      ValueError: a number outside its domain; ``ρ ≥ 1``.

    >>> print(sphere_learning_rate(1e-3, 0.1), sphere_learning_rate(1e-3, 0.1, b1=0.0))
    0.003246 0.014143

    Source: Kosson et al., arXiv 2305.17212, for the limit of small ρ.
    """
    rho = rate_per_step(learning_rate, weight_decay, scaled_by, peak_learning_rate)
    if isinstance(rho, float) and rho == 1.0:
        raise ValueError("decay takes all of the weights per step; give a smaller one.")
    b = _check.number("b1", b1, below=1.0)
    a = 1 - rho
    return (rho * (2 - rho) * (1 - a * b) / (1 + a * b)) ** 0.5 / a


def positive(name: str, value: Any, *, below: float = math.inf) -> float:
    """A number in (0, below)."""
    value = _check.number(name, value, below=below)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0, got 0.")
    return value


def one_of(name: str, value: Any, literal: Any) -> None:
    """Raise unless `value` is one of the words of a `Literal`."""
    if value not in get_args(literal):
        words = ", ".join(map(repr, get_args(literal)))
        raise ValueError(f"{name} must be one of {words}; got {value!r}.")


def rate_per_step(learning_rate: Any, weight_decay: Any, scaled_by: str, peak: Any) -> Any:
    """ρ, what decay takes of the weights per step."""
    eta = _check.number("learning_rate", learning_rate)
    lam = _check.number("weight_decay", weight_decay)
    one_of("scaled_by", scaled_by, ScaledBy)
    if (peak is not None) != (scaled_by == "schedule"):
        raise ValueError(
            f"peak_learning_rate={peak!r} with scaled_by={scaled_by!r}: it is needed by "
            "scaled_by='schedule', and by nothing else."
        )
    if scaled_by == "schedule":
        rho = lam * (eta / positive("peak_learning_rate", peak))
    else:
        rho = eta * lam if scaled_by == "learning_rate" else lam
    if isinstance(rho, float) and rho > 1.0:
        raise ValueError(
            f"decay takes {rho:g} of the weights per step, from learning_rate={eta!r} and "
            f"weight_decay={lam!r}; above 1 they change sign every step."
        )
    return rho


def _gain(rho: Any, b: Any) -> Any:
    """The variance of θ for η = 1 and independent gradients of variance 1, summed by b."""
    a = 1 - rho
    return (1 + a * b) / ((1 - b * b) * rho * (2 - rho) * (1 - a * b))
