"""What weights are pulled towards: checked, copied, and kept only where it is needed."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from optwd import _check, _dtypes, _paths, _zeros, masks
from optwd._paths import PyTree
from optwd.masks import MaskLike


def kept(anchor: Any, mask: MaskLike, params: PyTree) -> PyTree:
    """The anchor as a state keeps it: copies, which stay if the anchor is donated.

    A leaf that is not pulled, or pulled towards one number, keeps that number only. It is
    in no box of Flax, which may say how its array is sharded.
    """
    if not jax.tree.leaves(params):  # nothing at all; also Optax's placeholder at init
        return params
    is_number = _check.is_real(anchor) and jnp.shape(anchor) == ()
    if is_number and not isinstance(anchor, Tracer) and not math.isfinite(anchor):
        raise ValueError(
            "the anchor must be one finite number, or a tree like the parameters, got "
            f"{anchor!r}."
        )
    targets = params if is_number else _like(anchor, params)

    def leaf(p: Any, factor: Any, target: Any) -> Any:
        pulled = jax.tree.leaves(factor)[0] > 0.0
        if is_number or not pulled:
            return jnp.full((), anchor if pulled else 0, _number_dtype(p))
        return jax.tree.map(_copy, p, target)

    factors = masks.resolve(mask, params)
    return jax.tree.map(leaf, params, factors, targets, is_leaf=_paths.is_box)


def _number_dtype(p: Any) -> Any:
    dtype = _dtypes.dtype_of(jax.tree.leaves(p)[0])
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    return _dtypes.at_least_float32(dtype) if inexact else dtype


def _copy(p: Any, x: Any) -> jax.Array:
    """Its own buffer beside `p`; integers would not do as what a float is pulled to."""
    x = jnp.array(x, copy=True)
    return _zeros.beside(p, x if _dtypes.is_inexact(x) else x.astype(_dtypes.dtype_of(p)))


def _like(anchor: Any, params: PyTree) -> PyTree:
    """The anchor, with nothing where Optax has masked the parameter or there is none."""

    def absent(p: Any) -> bool:
        return p is None or isinstance(p, optax.MaskedNode)

    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=absent)
    try:
        leaves = treedef.flatten_up_to(anchor)
    except (ValueError, TypeError, KeyError):
        here, there = _paths.paths(params), _paths.paths(anchor)
        raise ValueError(
            "the anchor must be one number, or a tree like the parameters: "
            f"{_paths.difference('parameters', here, 'anchor', there)}"
        ) from None
    for (keys, p), x in zip(with_paths, leaves, strict=True):
        if absent(p):
            continue
        shape = jax.tree.map(jnp.shape, x)
        if shape != jnp.shape(p):
            raise ValueError(
                f"{_paths.path_of(keys)}: the parameter has shape {jnp.shape(p)}, the "
                f"anchor {shape}; they must be equal, nothing is broadcast."
            )
        if _dtypes.is_complex(x) and not _dtypes.is_complex(p):
            raise TypeError(
                f"{_paths.path_of(keys)}: the parameter is of dtype {_dtypes.dtype_of(p)}, "
                f"the anchor of {_dtypes.dtype_of(x)}; give a real anchor, such as its "
                "real part."
            )
    kept = [p if absent(p) else x for (_, p), x in zip(with_paths, leaves, strict=True)]
    return treedef.unflatten(kept)
