"""MosaicML Composer's optimizers: the decay follows the schedule, not the learning rate."""

from __future__ import annotations

from jax.typing import ArrayLike

from optwd import rates
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _parts
from optwd.compat._moments import scale_by_amsgrad_raw
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["decoupled_adamw", "decoupled_sgdw"]


def __dir__() -> list[str]:
    return __all__


def decoupled_adamw(
    lr: ScalarOrSchedule = 1e-3,
    betas: tuple[ArrayLike, ArrayLike] = (0.9, 0.95),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-5,
    amsgrad: bool = False,
    *,
    initial_lr: ArrayLike | None = None,
    mask: MaskLike = None,
) -> Optimizer:
    """``composer.optim.DecoupledAdamW``: decay relative to the first learning rate.

        θ ← θ(1 − λ·ηₜ/η_init) − ηₜ m̂/(√v̂ + ε)

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      betas: b1 and b2 of `optwd.scale_by_adam`, which also explains ``eps``.
      weight_decay: λ ≥ 0: a number, or a schedule of the step. It is the share of the
        weights that a step at ``initial_lr`` removes.
      amsgrad: divide by the largest second moment so far; see
        `optwd.compat.scale_by_amsgrad_raw`.
      initial_lr: η_init > 0: what Composer's ``lr`` was at construction, before its
        scheduler changed it. Needed where ``lr`` is a schedule.
      mask: which leaves decay; see `optwd.decay.linear`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; a schedule without ``initial_lr``.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = decoupled_adamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.5]

    Source: mosaicml/composer, ``composer/optim/decoupled_weight_decay.py``.
    """
    return _parts.independent(
        (scale_by_amsgrad_raw if amsgrad else scale_by_adam)(*betas, eps),
        _parts.learning_rate("lr", lr, flip_sign=False),
        weight_decay=_scheduled(weight_decay, lr, initial_lr),
        mask=mask,
    )


def decoupled_sgdw(
    lr: ScalarOrSchedule,
    momentum: ArrayLike = 0.0,
    dampening: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    *,
    initial_lr: ArrayLike | None = None,
    mask: MaskLike = None,
) -> Optimizer:
    """``composer.optim.DecoupledSGDW``: torch's SGD with the decay of `decoupled_adamw`.

        m ← (1 − dampening)·g + momentum·m,   θ ← θ(1 − λ·ηₜ/η_init) − ηₜm

    See `decoupled_adamw` for the other arguments.

    Args:
      momentum: the decay of `optwd.trace`, which also explains ``nesterov``. With 0, no
        momentum is kept.
      dampening: See `optwd.compat.trace_dampened`. With ``nesterov`` it must be 0.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = decoupled_sgdw(0.1, 0.9, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.5]

    Source: mosaicml/composer, ``composer/optim/decoupled_weight_decay.py``.
    """
    _parts.check_nesterov(momentum, dampening, nesterov)
    return _parts.independent(
        _parts.momentum(momentum, nesterov, dampening),
        _parts.learning_rate("lr", lr, flip_sign=False),
        weight_decay=_scheduled(weight_decay, lr, initial_lr),
        mask=mask,
    )


def _scheduled(weight_decay: ScalarOrSchedule, lr: ScalarOrSchedule, initial_lr):
    return rates.by_schedule(weight_decay, lr, _parts.peak("initial_lr", initial_lr, lr))
