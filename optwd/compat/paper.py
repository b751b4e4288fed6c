"""AdamW and SGDW as their paper has them, under the paper's names.

A schedule multiplier ηₜ, which is 1 at its peak, scales both the step and the decay. α
scales only the step, so that the two can be tuned apart.
"""

from __future__ import annotations

from jax.typing import ArrayLike

from optwd import rates
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam, trace
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["adamw", "sgdw"]


def __dir__() -> list[str]:
    return __all__


def adamw(
    alpha: ArrayLike = 1e-3,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    epsilon: ArrayLike = 1e-8,
    *,
    weight_decay: ScalarOrSchedule,
    schedule_multiplier: ScalarOrSchedule = 1.0,
    mask: MaskLike = None,
) -> Optimizer:
    """The paper's AdamW: the decay follows the learning rate's schedule, not its size.

        θ ← θ − ηₜ(α·m̂/(√v̂ + ε) + λθ)

    Args:
      alpha: α ≥ 0, the learning rate at the peak.
      beta1: b1 of `optwd.scale_by_adam`; ``beta2`` is its b2, and ``epsilon`` its eps.
      weight_decay: λ ≥ 0: a number, or a schedule of the step. The paper's normalized
        weight decay is ``rates.normalized(λ_norm, b, B, T)``.
      schedule_multiplier: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      mask: which leaves decay; see `optwd.decay.linear`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer = adamw(weight_decay=rates.normalized(0.05, 128, 50_000, 100))
    >>> theta = jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.000253]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2 and Appendix B.1.
    """
    return _parts.decoupled(
        scale_by_adam(beta1, beta2, epsilon),
        _parts.learning_rate("schedule_multiplier", schedule_multiplier),
        weight_decay,
        mask,
        scale=_parts.learning_rate("alpha", alpha, flip_sign=False),
    )


def sgdw(
    alpha: ArrayLike,
    beta1: ArrayLike = 0.9,
    *,
    weight_decay: ScalarOrSchedule,
    schedule_multiplier: ScalarOrSchedule = 1.0,
    mask: MaskLike = None,
) -> Optimizer:
    """The paper's SGDW: the schedule and α enter the momentum.

        m ← β₁m + ηₜαg,   θ ← θ − m − ηₜλθ

    See `adamw` for the other arguments.

    Args:
      beta1: the decay of `optwd.trace`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgdw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([1.0]), optimizer.init(theta), theta)[0])
    [-0.6]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 1.
    """
    return _parts.independent(
        _parts.learning_rate("schedule_multiplier", schedule_multiplier, flip_sign=False),
        _parts.learning_rate("alpha", alpha, flip_sign=False),
        trace(beta1),
        weight_decay=rates.by_learning_rate(weight_decay, schedule_multiplier),
        mask=mask,
    )
