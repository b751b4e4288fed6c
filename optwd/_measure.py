"""Norms of whole trees, and where they would be wrong."""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from optwd import _dtypes, _paths, _rounding
from optwd._paths import PyTree


def refuse_shards(name: str, *trees: PyTree) -> None:
    """Raise inside of `jax.shard_map` where a leaf may be a shard of its tensor.

    `jax.pmap` is one as well in newer JAX. There, a sum over a leaf is the sum over what
    this device has of it.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if not manual:
        return
    # Everything looks the same on all devices where shard_map does not check (check_vma).
    checked = _varying(jax.lax.axis_index(manual[0]))
    for x in jax.tree.leaves(trees):
        if axes := _varying(x) if checked else manual:
            raise ValueError(
                f"{name} measures whole tensors, and inside shard_map (or pmap) over the "
                f"axes {tuple(axes)} it may see shards. Update outside of it, under jit; "
                "or, where every device has the whole, in shard_map with check_vma=True."
            )


def _varying(x: Any) -> Iterable[Any]:
    """The axes along which `x` may differ from device to device."""
    aval: Any = jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", aval)  # as of JAX 0.10
    return sorted(getattr(kind, "varying", getattr(kind, "vma", ())))


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm over all floating leaves, as a float32 of shape ()."""
    return jnp.sqrt(
        _total(_square_sum(x) for x in jax.tree.leaves(tree) if _dtypes.is_inexact(x))
    )


def distance(tree: PyTree, other: PyTree) -> jax.Array:
    """The norm of the difference, each leaf in the wider of its two dtypes."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    both = (pair for pair in pairs if all(map(_dtypes.is_inexact, pair)))
    return jnp.sqrt(_total(itertools.starmap(_square_distance, both)))


def share_lost(updates: PyTree, params: PyTree) -> jax.Array:
    """The share of elements that adding the update does not move, though it is not 0."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    params = _paths.align("parameters", params, updates, treedef)
    pairs = [
        (u, p)
        for u, p in zip(leaves, params, strict=True)
        if u is not None
        and p is not None
        and _dtypes.is_inexact(u)
        and _dtypes.is_inexact(p)
    ]
    elements = sum(jnp.size(p) for _, p in pairs)
    return _total(itertools.starmap(_lost, pairs)) / max(elements, 1)


def _total(numbers: Iterable[jax.Array]) -> jax.Array:
    return sum(numbers, start=jnp.zeros((), jnp.float32))


@jax.jit
def _square_sum(x: Any) -> jax.Array:
    """|x|², summed in float32 at least."""
    (x,) = _dtypes.widened(x)
    return jnp.sum(x.real**2 + x.imag**2 if _dtypes.is_complex(x) else x**2).astype(
        jnp.float32
    )


@jax.jit
def _square_distance(x: Any, y: Any) -> jax.Array:
    x, y = _dtypes.widened(x, y)
    return _square_sum(x - y)


@jax.jit
def _lost(u: Any, p: Any) -> jax.Array:
    u, wide = _dtypes.widened(u, p)
    new = _rounding.nearest(wide + u, _dtypes.dtype_of(p))
    return jnp.sum((new == wide) & (u != 0)).astype(jnp.float32)
