"""What takes the norm of a matrix: the ratio of norms, and the equations of bounds."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optwd import _check, _dtypes, _leafwise, _measure, _paths, masks
from optwd._leafwise import Equation, Field
from optwd.masks import MaskLike


def scale_by_weight_norm(
    mask: MaskLike = None, *, stacked: str | Iterable[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Give every matrix's direction the norm of its weights.

        u ← u·‖θ‖/‖u‖, and u where either norm is 0

    The learning rate after it is then the relative change of a matrix per step, as in LARS
    and LAMB, and, with `decay.to_norm` after that, its angle, as in AdamH. A decay before
    it only turns the direction; see `decay.linear` for LAMB's.

    Args:
      mask: which leaves are rescaled; see `decay.linear`. A float multiplies the ratio,
        as LARS's trust coefficient does.
      stacked: globs; each takes one leading axis off the leaves that it matches, as in
        `masks.ndim`, so that a stack of layers is as many matrices.

    Returns:
      A transformation without state; leaves of any shape. It computes in at least float32
      and returns the dtype that came in.

    Raises:
      ValueError: as `decay.linear`; a glob that matches no leaf; ``update`` inside
        ``jax.shard_map`` where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> tx, theta = scale_by_weight_norm(), jnp.array([30.0, 40.0])
    >>> print(tx.update(jnp.array([0.0, 2.0]), tx.init(theta), theta)[0])
    [ 0. 50.]

    Source: LARS: You, Gitman and Ginsburg, arXiv 1708.03888; LAMB: You et al., arXiv
    1904.00962, Algorithm 2 with φ(x) = x.
    """
    name = "scale_by_weight_norm"

    def plan(params: Any) -> Any:
        params = _paths.unboxed(params)
        return masks.resolve(mask, params), _measure.depths(name, stacked, params)

    def init(params: Any) -> optax.EmptyState:
        plan(params)  # a pattern that cannot be right fails here already
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        _check.need_params(name, params)
        factors, depths = plan(params)
        for depth in sorted(set(jax.tree.leaves(depths))):
            here = jax.tree.map(lambda k, n, d=depth: k * (n == d), factors, depths)
            updates, _ = _leafwise.run(
                _to_weight_norm(depth), updates, {}, 1.0, fields={}, params=params,
                factors=here,
            )  # fmt: skip
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def _to_weight_norm(depth: int) -> Equation:
    def rescaled(u, p, factor):
        _measure.refuse_shards("scale_by_weight_norm", u, p)
        of_u, of_p = (_measure.over(_measure.norms(x, depth), x) for x in (u, p))
        # The quotient of the norms may be beyond float32 where the result is not.
        unit = u / jnp.where(of_u == 0, 1, of_u)
        return jnp.where((of_u == 0) | (of_p == 0), u, unit * (factor * of_p))

    return Equation(rescaled)


def per_matrix(name: str, stacked: Any, value: float) -> Field:
    """The same number for every matrix, in float32 at least."""

    def start(params: Any) -> Any:
        return _map(name, stacked, params, lambda p, n: _full(p, n, value))

    return Field(start, is_number=True)


def radii(name: str, stacked: Any, radius: Any, params: Any) -> Any:
    """The norm of every matrix: as it is, or from a root mean square."""

    def norm(p: Any, depth: int) -> jax.Array:
        if radius is not None:
            return _full(p, depth, radius) * math.sqrt(_measure.size(p, depth))
        if not _dtypes.is_inexact(p):
            return _full(p, depth, 0.0)
        return _measure.norms(p, depth)

    return _map(name, stacked, params, norm)


def _map(name: str, stacked: Any, params: Any, of_leaf: Any) -> Any:
    # A box of Flax may say how its array is sharded, which one number cannot be.
    params = _paths.unboxed(params)
    return jax.tree.map(of_leaf, params, _measure.depths(name, stacked, params))


def _full(p: Any, depth: int, value: Any) -> jax.Array:
    inexact = _dtypes.is_inexact(p)
    dtype = _dtypes.at_least_float32(_dtypes.dtype_of(p)) if inexact else jnp.float32
    return jnp.full(jnp.shape(p)[:depth], value, dtype)


def _to_norm(u, p, radius, k):
    _measure.refuse_shards("decay.to_norm", u, p)
    new = p - u
    norm = _measure.norms(new, radius.ndim)
    free = (k == 0) | (radius == 0) | (norm == 0)
    excess = k * (1 - radius / jnp.where(norm == 0, 1, norm))
    return jnp.where(_measure.over(free, u), u, u + _measure.over(excess, u) * new)


def _next_multiplier(u, p, multiplier, bound, mu):
    held = jnp.clip(multiplier + mu * (_mean_squares(p, bound) - bound), 0, _MOST)
    return jnp.where(jnp.isinf(bound), 0, held), bound  # where μ = 0 that is 0·inf


def _take_bound(u, p, multiplier, bound, mu):
    take = jnp.isinf(bound) & (mu > 0)
    return multiplier, jnp.where(take, _mean_squares(p, bound), bound)


def _mean_squares(p, bound):
    """Finite, also where squares are not: a bound of inf says that there is none."""
    _measure.refuse_shards("decay.constrained", p)
    finite = jnp.finfo(bound.dtype).max
    return jnp.minimum(_measure.mean_squares(p, bound.ndim), finite)


def _constrained(u, p, multiplier, bound, mu):
    return u + 2 * _measure.over(multiplier, p) * p


_MOST = 0.25  # of Λ: 2Λθ takes away half of the weights, never all of them

TO_NORM = Equation(_to_norm)
CONSTRAINED = Equation(_constrained, _next_multiplier)
TAKE_BOUND = Equation(_constrained, _take_bound, _next_multiplier)
