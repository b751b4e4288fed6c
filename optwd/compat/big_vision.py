"""big_vision's recipe: one base rate, and (pattern, value) pairs for everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import optax
from jax.typing import ArrayLike

from optwd import _check, _paths, decay, masks
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd._paths import PyTree
from optwd._precision import in_float32
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import Mask

__all__ = ["make"]

T = TypeVar("T")
Patterns = Sequence[tuple[str, T]]


def __dir__() -> list[str]:
    return __all__


def make(
    lr: ArrayLike,
    wd: ArrayLike = 0.0,
    *,
    schedule: ScalarOrSchedule | Patterns[ScalarOrSchedule | None] = 1.0,
    lr_mults: Patterns[float] = (),
    wd_mults: Patterns[float] = ((".*/kernel$", 1.0),),
    grad_clip_norm: ArrayLike | None = None,
    direction: optax.GradientTransformation | None = None,
) -> Optimizer:
    """big_vision's ``optax.make``: the schedule scales the decay, the base rate does not.

        θ ← θ − sₜ(lr·lr_mult·û + wd·wd_mult·θ)

    Patterns are regular expressions for the whole path of a leaf, and the first that
    matches decides.

    Args:
      lr: the base learning rate ≥ 0.
      wd: λ ≥ 0. With 0 nothing decays, and ``wd_mults`` is not looked at.
      schedule: sₜ ≥ 0, which is 1 at its peak: a number, a schedule of the step, or pairs
        of a pattern and one of these. None instead freezes the leaves: they do not move,
        keep no state, and do not count in the norm of the gradients. Every leaf must match.
      lr_mults: pairs of a pattern and a multiplier > 0; leaves that match none have 1.
      wd_mults: pairs of a pattern and a multiplier ≥ 0; leaves that match none have 0.
      grad_clip_norm: bound > 0 on the norm of all gradients; None is without.
      direction: what stands in ``config.optax_name``; None is `optwd.scale_by_adam`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters where λ is not 0.

    Raises:
      ValueError: a hyperparameter outside its domain; a leaf without a schedule; a pattern
        that matches no leaf, which big_vision only logs.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = make(0.1, 0.5), {"dense": {"kernel": jnp.ones(1)}}
    >>> zero = {"dense": {"kernel": jnp.zeros(1)}}
    >>> print(optimizer.update(zero, optimizer.init(theta), theta)[0]["dense"]["kernel"])
    [-0.5]

    Source: google-research/big_vision, ``big_vision/optax.py``.
    """
    wd = _check.number("wd", wd)
    given = [] if isinstance(wd, float) and wd == 0.0 else _first_match(wd_mults)
    clip = (
        _parts.NOTHING
        if grad_clip_norm is None
        else optax.clip_by_global_norm(_check.number("grad_clip_norm", grad_clip_norm))
    )
    direction = scale_by_adam() if direction is None else direction
    per_leaf = isinstance(schedule, Sequence)
    scheduled = _first_match(schedule) if per_leaf else []
    frozen = [mask for mask, s in scheduled if s is None]
    if frozen:
        moving = (~_union(frozen)).tree
        clip, direction = optax.masked(clip, moving), optax.masked(direction, moving)
    return in_float32(
        optax.chain(
            _all_scheduled([mask for mask, _ in scheduled]) if per_leaf else _parts.NOTHING,
            clip,
            direction,
            _parts.learning_rate("lr", lr, flip_sign=False),
            *(_times(k, mask) for mask, k in _first_match(lr_mults)),
            *(decay.linear(wd * k, mask) for mask, k in given),
            *(
                optax.masked(
                    optax.set_to_zero()
                    if s is None
                    else _parts.learning_rate("schedule", s),
                    mask.tree,
                )
                for mask, s in scheduled
            ),
            _parts.NOTHING if per_leaf else _parts.learning_rate("schedule", schedule),
        )
    )


def _times(multiplier: float, mask: Mask) -> optax.GradientTransformation:
    if _check.number("a multiplier in lr_mults", multiplier) == 0.0:
        raise ValueError("lr_mults must be > 0, got 0; schedule=None freezes a leaf.")
    return optax.masked(optax.scale(multiplier), mask.tree)


def _first_match(patterns: Patterns[T]) -> list[tuple[Mask, T]]:
    """A mask for every pattern, without the leaves that earlier patterns take."""
    found: list[tuple[Mask, T]] = []
    taken: list[Mask] = []
    for pattern, value in patterns:
        mask = masks.regex(pattern)
        found.append((mask & ~_union(taken) if taken else mask, value))
        taken.append(mask)
    return found


def _union(some: Sequence[Mask]) -> Mask:
    union, *others = some
    for mask in others:
        union = union | mask
    return union


def _all_scheduled(scheduled: Sequence[Mask]) -> optax.GradientTransformation:
    """Raise at `init` unless every leaf has a schedule."""

    def init(params: PyTree) -> optax.EmptyState:
        decided = _paths.by_path(_union(scheduled).tree(params))
        if missing := [path for path, yes in decided.items() if not yes]:
            raise ValueError(
                f"{', '.join(missing[:5])}{', …' * (len(missing) > 5)}: no pattern of "
                "schedule matches; add one, with None to freeze the leaf."
            )
        return optax.EmptyState()

    return optax.GradientTransformation(init, optax.identity().update)
