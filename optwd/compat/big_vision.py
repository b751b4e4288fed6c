"""big_vision's recipe: one base rate, one schedule, and decay by (pattern, multiplier)."""

from collections.abc import Sequence

import optax
from jax.typing import ArrayLike

from optwd import _check, decay, masks
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd._precision import in_float32
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import Mask


def make(
    lr: ArrayLike,
    wd: ArrayLike = 0.0,
    *,
    schedule: ScalarOrSchedule = 1.0,
    wd_mults: Sequence[tuple[str, float]] = ((".*/kernel$", 1.0),),
    grad_clip_norm: ArrayLike | None = None,
    direction: optax.GradientTransformation | None = None,
) -> Optimizer:
    """big_vision's ``optax.make``: the schedule scales the decay, the base rate does not.

        θ ← θ − sₜ(lr·û + wd·multiplier·θ)

    Place in the chain: a finished optimizer; its updates are added to the parameters.

    Args:
      lr: the base learning rate ≥ 0.
      wd: λ ≥ 0.
      schedule: sₜ ≥ 0, which is 1 at its peak: a number, or a schedule of the step.
      wd_mults: regular expressions for the whole path, each with the multiplier of its
        leaves. The first match decides; no match is no decay.
      grad_clip_norm: bound > 0 on the norm of all gradients; None is without.
      direction: what stands in ``config.optax_name``; None is `optwd.scale_by_adam`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters where λ is not 0.

    Raises:
      ValueError: a hyperparameter outside its domain; a pattern that matches no leaf,
        which big_vision only logs.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = make(0.1, 0.5), {"dense": {"kernel": jnp.ones(1)}}
    >>> zero = {"dense": {"kernel": jnp.zeros(1)}}
    >>> print(optimizer.update(zero, optimizer.init(theta), theta)[0]["dense"]["kernel"])
    [-0.5]

    Source: google-research/big_vision, ``big_vision/optax.py``.
    """
    wd = _check.number("wd", wd)
    return in_float32(
        optax.chain(
            _parts.NOTHING
            if grad_clip_norm is None
            else optax.clip_by_global_norm(_check.number("grad_clip_norm", grad_clip_norm)),
            scale_by_adam() if direction is None else direction,
            _parts.learning_rate("lr", lr, flip_sign=False),
            *(decay.linear(wd * k, mask) for mask, k in _first_match(wd_mults)),
            _parts.learning_rate("schedule", schedule),
        )
    )


def _first_match(wd_mults: Sequence[tuple[str, float]]) -> list[tuple[Mask, float]]:
    """A mask for every pattern, without the leaves that earlier patterns take."""
    found, taken = [], None
    for pattern, k in wd_mults:
        mask = masks.regex(pattern)
        found.append((mask if taken is None else mask & ~taken, k))
        taken = mask if taken is None else taken | mask
    return found
