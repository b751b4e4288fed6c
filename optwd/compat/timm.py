"""timm's AdamW, with its corrected weight decay and its caution."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _leafwise, rates
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _parts
from optwd.compat._moments import scale_by_amsgrad_raw
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["adamw"]


def __dir__() -> list[str]:
    return __all__


def adamw(
    lr: ScalarOrSchedule = 1e-3,
    betas: tuple[ArrayLike, ArrayLike] = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    amsgrad: bool = False,
    caution: bool = False,
    corrected_weight_decay: bool = False,
    maximize: bool = False,
    *,
    max_lr: ArrayLike | None = None,
    mask: MaskLike = None,
) -> Optimizer:
    """``timm.optim.AdamW``: torch's, with two options.

        θ ← θ(1 − ηₜλ) − ηₜû
        θ ← θ(1 − ηₜ²λ/η_max) − ηₜû     corrected_weight_decay

    With ``caution``, û is 0 where its sign differs from the gradient's, and elsewhere
    divided by the share of the leaf that is left (at least 1e-3). The decay is not changed.

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      betas: b1 and b2 of `optwd.scale_by_adam`, which also explains ``eps``.
      weight_decay: λ ≥ 0: a number, or a schedule of the step.
      amsgrad: divide by the largest second moment so far; see
        `optwd.compat.scale_by_amsgrad_raw`.
      caution: as above. For decay that is itself cautious see `optwd.decay.cautious`.
      corrected_weight_decay: the second equation, which is AdamC's.
      maximize: ascend. The decay still shrinks.
      max_lr: η_max > 0: what timm's ``lr`` was at construction. Needed for the correction
        where ``lr`` is a schedule.
      mask: which leaves decay; see `optwd.decay.linear`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; a correction without ``max_lr``;
        caution in ``jax.shard_map``, where the share would be that of a shard.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: timm 1.0, ``timm/optim/adamw.py``; caution: Liang et al., arXiv 2411.16085;
    AdamC: Defazio, arXiv 2506.02285.
    """
    if max_lr is not None and not corrected_weight_decay:
        raise ValueError(
            f"max_lr={max_lr!r} is only used by corrected_weight_decay=True; leave it out."
        )
    direction = (scale_by_amsgrad_raw if amsgrad else scale_by_adam)(*betas, eps)
    if corrected_weight_decay:
        peak = _parts.peak("max_lr", max_lr, lr)
        weight_decay = rates.by_schedule(weight_decay, lr, peak)
    return _parts.decoupled(
        _cautious(direction) if caution else direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def _cautious(direction: optax.GradientTransformationExtraArgs) -> Optimizer:
    """The direction where its sign is the gradient's, divided by the share of those."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = direction.update(updates, state, params, **extra)
        gradients = {"gradients": updates}
        u, _ = _leafwise.run(_AGREEING, u, gradients, (), fields={})
        return u, state

    return optax.GradientTransformationExtraArgs(direction.init, update)


def _agreeing(u, g, s):
    agrees = (u * g > 0).astype(u.dtype)
    return u * (agrees / jnp.maximum(jnp.mean(agrees), 1e-3))


_AGREEING = _leafwise.Equation(_agreeing, measures="compat.timm.adamw with caution=True")
