"""Whole leaves, or shards of them: where a sum over a leaf would be wrong."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import optax

_REPLICATED = contextvars.ContextVar("optwd_replicated", default=False)


def replicated(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Say that every device holds whole leaves, as under ``jax.pmap`` with a copy each.

    What takes the norm of a leaf (`monitor`, `monitor_rotation`, `decay.constrained`,
    `decay.to_norm`, `scale_by_weight_norm`) raises inside ``jax.pmap`` and unchecked
    ``jax.shard_map``, where a shard looks like a whole. Around an optimizer whose
    parameters and gradients are the same on every device this says so, and it runs. Around
    one whose leaves are sharded the norms would be those of the shards.

    Under ``jax.jit`` with sharded arrays it is not needed: norms are of whole leaves there.

    Args:
      optimizer: any transformation.

    Returns:
      The transformation, with its own state.

    >>> import jax, jax.numpy as jnp, optwd
    >>> tx = replicated(optwd.monitor(optwd.decay.linear(0.1), "decay"))
    >>> theta = jnp.array([[3.0, 4.0]])  # of one device
    >>> step = jax.pmap(lambda g, p: tx.update(g, tx.init(p), p)[1])
    >>> print(optwd.metrics(step(0 * theta, theta))["decay/norm_added"])
    [0.5]
    """
    inner = optax.with_extra_args_support(optimizer)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        with _replicated():
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


@contextlib.contextmanager
def _replicated() -> Iterator[None]:
    token = _REPLICATED.set(True)
    try:
        yield
    finally:
        _REPLICATED.reset(token)


def refuse(name: str, *trees: Any) -> None:
    """Raise inside ``jax.shard_map`` or ``jax.pmap`` where a leaf may be a shard."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual or _REPLICATED.get():
        return
    # Everything looks the same on all devices if shard_map does not check (check_vma).
    checked = _varying(jax.lax.axis_index(manual[0]))
    for x in jax.tree.leaves(trees):
        if axes := _varying(x) if checked else manual:
            raise ValueError(
                f"{name} measures whole leaves, and inside shard_map or pmap over the axes "
                f"{tuple(axes)} it may see shards. Update outside of it, under jit; or, if "
                "every device has whole leaves, as pmap's replicated parameters are, wrap "
                "the optimizer in optwd.replicated."
            )


def _varying(x: Any) -> Iterable[Any]:
    """The axes along which `x` may differ from device to device."""
    aval: Any = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", aval)  # as of JAX 0.10
    return sorted(getattr(kind, "varying", getattr(kind, "vma", ())))
