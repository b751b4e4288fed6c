"""Norms of matrices and of whole trees, and where they would be wrong."""

import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optwd import _dtypes, _paths, _rounding, masks
from optwd._paths import PyTree


def depths(name: str, stacked: str | Iterable[str], params: PyTree) -> PyTree:
    """How many leading axes of each leaf count matrices instead of being part of one.

    Each glob of `stacked` takes one axis off the leaves that it matches, as in
    `masks.ndim`. The tree is like `params` without the boxes of Flax; integers, which have
    no norm, get 0.
    """
    params = _paths.unboxed(params)
    globs = (stacked,) if isinstance(stacked, str) else tuple(stacked)
    rows = [masks.resolve(masks.path(glob), params) for glob in globs]
    axes = [
        int(sum(row)) if _dtypes.is_inexact(x) else 0
        for x, *row in zip(*map(jax.tree.leaves, (params, *rows)), strict=True)
    ]
    for (path, x), n in zip(_paths.by_path(params).items(), axes, strict=True):
        if n > jnp.ndim(x):
            raise ValueError(
                f"{name}: {n} of the globs in stacked={globs!r} match {path}, which has "
                f"shape {jnp.shape(x)}; each takes one axis off it. Let fewer match."
            )
    return _paths.unflatten(axes, params)


def norms(x: jax.Array, depth: int = 0) -> jax.Array:
    """The Euclidean norm of each matrix, in an array of the shape of its `depth` axes.

    In float32 at least, and right for numbers of every size that this dtype has: those
    whose squares it does not have are summed in other units. All sums take one pass over
    `x` on an accelerator; a maximum to divide by would take a pass of its own.
    """
    (x,) = _dtypes.widened(x)
    limits = jnp.finfo(x.dtype)
    unit = 2.0 ** (limits.maxexp * 5 // 8)  # float32: 2⁸⁰

    def sums(scale: Any) -> jax.Array:
        return jnp.sum(_squares(x * scale), axis=tuple(range(depth, x.ndim)))

    # XLA would turn (c·x)² into c²·x², and c² into inf, for a constant that it knows.
    up, down = jax.lax.optimization_barrier(
        (jnp.asarray(unit, limits.dtype), jnp.asarray(1 / unit, limits.dtype))
    )
    plain, small, large = sums(1), sums(up), sums(down)
    # Below this, what underflows in the plain sum may be a part that one would see.
    is_small = plain < 2.0 ** (limits.minexp * 9 // 16)
    is_large = plain == jnp.inf
    units = jnp.where(is_small, 1 / unit, jnp.where(is_large, unit, 1))
    total = jnp.where(is_small, small, jnp.where(is_large, large, plain))
    root = jnp.sqrt(jnp.where(total == 0, 1, total))  # with a derivative also at 0
    return jnp.where(total == 0, 0, units * root)


def cosines(x: jax.Array, y: jax.Array, depth: int = 0) -> jax.Array:
    """The cosine of the angle between each matrix of `x` and of `y`; 0 if either is 0.

    In float32 at least, and right for numbers from 1e-33 to 1e33, in the pass of `norms`.
    """
    x, y = _dtypes.widened(x, y)
    limits = jnp.finfo(x.dtype)
    unit = 2.0 ** (limits.maxexp * 3 // 8)  # float32: 2⁴⁸

    def sums(scale: Any) -> jax.Array:
        products = ((x * scale).conj() * (y * scale)).real
        return jnp.sum(products, axis=tuple(range(depth, x.ndim)))

    up, down = jax.lax.optimization_barrier(  # see norms
        (jnp.asarray(unit, limits.dtype), jnp.asarray(1 / unit, limits.dtype))
    )
    sizes = norms(x, depth), norms(y, depth)
    is_small = sizes[0] * sizes[1] < 1
    units = jnp.where(is_small, up, down)
    product = (sizes[0] * units) * (sizes[1] * units)
    total = jnp.where(is_small, sums(up), sums(down))
    return jnp.clip(total / jnp.where(product == 0, 1, product), -1, 1)


def mean_squares(x: jax.Array, depth: int = 0) -> jax.Array:
    """The mean of |x|² of each matrix, in float32 at least."""
    squares = _squares(*_dtypes.widened(x))
    return jnp.sum(squares, axis=tuple(range(depth, x.ndim))) / size(x, depth)


def _squares(x: jax.Array) -> jax.Array:
    return x.real**2 + x.imag**2 if _dtypes.is_complex(x) else x**2


def size(x: jax.Array, depth: int = 0) -> int:
    """How many elements each matrix has; 1 if none, so that a sum may be divided by it."""
    return max(math.prod(jnp.shape(x)[depth:]), 1)


def over(numbers: jax.Array, x: jax.Array) -> jax.Array:
    """One number per matrix, with axes of length 1 to multiply `x` by."""
    return numbers.reshape(numbers.shape + (1,) * (x.ndim - numbers.ndim))


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


def is_zero(x: Any, axis: Any = None) -> np.ndarray | None:
    """Whether an array is 0 along those axes; None where its values are not held here."""
    known = isinstance(x, np.ndarray) or (
        isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_fully_addressable
    )
    return np.asarray((x == 0).all(axis=axis)) if known else None


def _total(numbers: Iterable[jax.Array]) -> jax.Array:
    return sum(numbers, start=jnp.zeros((), jnp.float32))


@jax.jit
def _square_sum(x: Any) -> jax.Array:
    """|x|², summed in float32 at least."""
    (x,) = _dtypes.widened(x)
    return jnp.sum(_squares(x)).astype(jnp.float32)


@jax.jit
def _square_distance(x: Any, y: Any) -> jax.Array:
    x, y = _dtypes.widened(x, y)
    return _square_sum(x - y)


@jax.jit
def _lost(u: Any, p: Any) -> jax.Array:
    u, wide = _dtypes.widened(u, p)
    new = _rounding.nearest(wide + u, _dtypes.dtype_of(p))
    return jnp.sum((new == wide) & (u != 0)).astype(jnp.float32)
