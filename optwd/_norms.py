"""What takes the norm of every matrix: the ratio of norms, a bound, the sphere."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from optwd import _check, _dtypes, _leafwise, _measure, _paths, _rule, masks
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation, Field
from optwd.masks import MaskLike


class ConstrainedState(NamedTuple):
    """The bound on every matrix, and how hard it is held to it at present.

    Attributes:
      step: updates so far; int32 of shape ().
      multiplier: Λ ≥ 0 of each leaf, of shape () or of that of its stack; a tree like the
        parameters.
      bound: κ, likewise; inf until the warm start takes it.
    """

    step: jax.Array
    multiplier: Any
    bound: Any


class NormState(NamedTuple):
    """The norm that every matrix is pulled to.

    Attributes:
      step: updates so far; int32 of shape ().
      radius: the norm for each leaf, of shape () or of that of its stack; a tree like the
        parameters, which never changes.
    """

    step: jax.Array
    radius: Any


def scale_by_weight_norm(
    mask: MaskLike = None, *, stacked: str | Iterable[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Give every matrix's direction the norm of its weights.

        u ← u·‖θ‖/‖u‖, and u where either norm is 0

    The learning rate after it is then the relative change of a matrix per step, as in LARS
    and LAMB, and, with `decay.to_norm` after that, its angle, as in AdamH. A decay before
    it only turns the direction, as in LAMB.

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
        factors, _ = plan(params)  # a pattern that cannot be right fails here already
        masks.warn_if_idle(name, mask, params, factors)
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


def constrained(
    bound: ArrayLike | None = None,
    mask: MaskLike = None,
    *,
    stacked: str | Iterable[str] = (),
    warm_start: int | None = None,
    update_rate: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Hold every matrix's mean square to a bound, with as much decay as that takes.

        Λ ← Λ + μ(R(θ)/n − κ), then to [0, ¼]     R(θ) = ‖θ‖², over the n elements
        u ← u + Λ∇R(θ) = u + 2Λθ

    A matrix below its bound is not decayed; above it Λ grows until it is held. The
    statistic is the mean of squares, so that one κ and one μ serve matrices of every size:
    the paper's algorithm with the bound ``nκ`` and the rate ``μ/n``, as in its authors'
    code. A leaf is one matrix unless `stacked` says otherwise, also where it is sharded.

    The limit of ¼ is not the paper's. There weights at most halve in a step, so that from
    any start they come down to the bound in a few steps: with Λ above ½ they would cross
    zero, and above 1 grow without end.

    It stands after the learning rate, last before ``scale(-1)``, where Λ is the whole rate.
    What stands after it scales the pull, and Λ then has to grow by as much more, which
    before a learning rate of 1e-3 takes too long or meets the limit.

    Args:
      bound: κ ≥ 0, in units of the weights squared, for every matrix; or leave it out and
        give ``warm_start``. With ``inf`` nothing decays.
      mask: which leaves are bounded; see `decay.linear`. A float multiplies μ.
      stacked: See `to_norm`.
      warm_start: the number of steps, ≥ 0, after which every matrix's own mean square
        becomes its bound.
      update_rate: μ ≥ 0, in units of the weights to the power −2: a number or a schedule.
        The paper keeps 1, which is made for initial weights of common size, whose mean
        square of 1e-3 or so makes Λ move in small steps. For weights near 1 take less:
        ``μ(R/n − κ)`` well below ¼ holds them without overshooting.

    Returns:
      A transformation with state `optwd.ConstrainedState`; leaves of any shape.

    Raises:
      ValueError: as `decay.linear`; both or neither of ``bound`` and ``warm_start``; a glob
        that matches no leaf; ``update`` inside ``jax.shard_map`` where a leaf may be a
        shard.

    >>> import jax.numpy as jnp
    >>> decay, theta = constrained(3.9), jnp.array([2.0])
    >>> step, state = decay.update(jnp.array([0.0]), decay.init(theta), theta)
    >>> print(step.round(2), state.multiplier.round(2))  # 4 is above 3.9 by 0.1
    [0.4] 0.1

    Source: CPR: Franke et al., arXiv 2311.09058, Algorithm 1 with Kappa-K (the bound
    given), Algorithm 2 for Kappa-WS (the warm start).
    """
    if (bound is None) == (warm_start is None):
        raise ValueError(
            "decay.constrained needs either bound or warm_start, got "
            f"bound={bound!r}, warm_start={warm_start!r}; leave one of them out."
        )
    name = "decay.constrained"
    if warm_start is None:
        kappa = _check.number("bound", bound, closed=True)
        equation, rate = _CONSTRAINED, update_rate
    else:
        kappa, equation = math.inf, _TAKE_BOUND
        rate = _from_step(warm_start, _check.rate("update_rate", update_rate))
    fields = {
        "multiplier": _per_matrix(name, stacked, 0.0),
        "bound": _per_matrix(name, stacked, kappa),
    }
    return _rule.transformation(
        name, equation, "update_rate", rate, mask, ConstrainedState, fields
    )


def to_norm(
    pull: ScalarOrSchedule = 1.0,
    radius: ArrayLike | None = None,
    mask: MaskLike = None,
    *,
    stacked: str | Iterable[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Pull the norm of every matrix to its norm at ``init``, or to a given one.

        θ' = θ − u
        θ' ← θ'·(1 − k(1 − R/‖θ'‖))        k = pull × the mask's multiplier
        u  ← θ − θ'

    With ``k = 1`` every matrix stays on the sphere of radius R, and no other decay is
    needed: that is AdamH, MuonH, Hyperball. With ``k < 1`` the norm goes there gradually,
    as in AdamWN; with ``k = 0`` nothing happens.

    It stands after the learning rate, last before ``scale(-1)``, where ``θ − u`` are the
    next weights:

        chain(scale_by_adam(), scale_by_weight_norm(),
              scale_by_learning_rate(η, flip_sign=False), decay.to_norm(), scale(-1))

    A matrix that starts at 0 has ``R = 0`` and is left alone, as is one whose next weights
    are all 0: they have no direction.

    Args:
      pull: in [0, 1], dimensionless: a number or a schedule of the step.
      radius: the root mean square > 0 that gives each matrix of n elements
        ``R = radius·√n``. None for the norm at ``init``, which the state keeps.
      mask: See `decay.linear`.
      stacked: globs; each takes one leading axis off the leaves that it matches, as in
        `masks.ndim`, so that a stack of layers or experts is as many matrices.

    Returns:
      A transformation with state `optwd.NormState`; leaves of any shape.

    Raises:
      ValueError: as `decay.linear`; a pull above 1; a radius of 0; a glob that matches no
        leaf; ``update`` inside ``jax.shard_map`` where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> sphere, theta = to_norm(), jnp.array([3.0, 4.0])
    >>> step, _ = sphere.update(jnp.array([-3.0, -4.0]), sphere.init(theta), theta)
    >>> print(theta - step)  # from (6, 8) back to a norm of 5
    [3. 4.]

    Source: Hyperball, arXiv 2606.16899; AdamWN: Loshchilov, arXiv 2311.11446.
    """
    name = "decay.to_norm"
    if radius is not None:
        radius = _check.number("radius", radius)
        if isinstance(radius, float) and radius == 0.0:
            raise ValueError("radius must be > 0, got 0; for zero see decay.linear.")

    def start(params: Any) -> Any:
        return _radii(name, stacked, radius, params)

    fields = {"radius": Field(start, is_number=True)}
    return _rule.transformation(
        name, _TO_NORM, "pull", pull, mask, NormState, fields, most=1.0
    )


@functools.cache
def _to_weight_norm(depth: int) -> Equation:
    def rescaled(u, p, factor):
        of_u, of_p = (_measure.over(_measure.norms(x, depth), x) for x in (u, p))
        # The quotient of the norms may be beyond float32 where the result is not.
        unit = u / jnp.where(of_u == 0, 1, of_u)
        return jnp.where((of_u == 0) | (of_p == 0), u, unit * (factor * of_p))

    return Equation(rescaled, measures="scale_by_weight_norm")


def _per_matrix(name: str, stacked: Any, value: float) -> Field:
    """The same number for every matrix, in float32 at least."""

    def start(params: Any) -> Any:
        return _map(name, stacked, params, lambda p, n: _full(p, n, value))

    return Field(start, is_number=True)


def _radii(name: str, stacked: Any, radius: Any, params: Any) -> Any:
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
    new = p - u
    norm = _measure.norms(new, radius.ndim)
    free = (k == 0) | (radius == 0) | (norm == 0)
    excess = k * (1 - radius / jnp.where(norm == 0, 1, norm))
    # The same difference again, or a TPU would write it out to read it back.
    new = jax.lax.optimization_barrier(p) - u
    return jnp.where(_measure.over(free, u), u, u + _measure.over(excess, u) * new)


def _next_multiplier(u, p, multiplier, bound, mu):
    held = jnp.clip(multiplier + mu * (_mean_squares(p, bound) - bound), 0, _MOST)
    return jnp.where(jnp.isinf(bound), 0, held), bound  # where μ = 0 that is 0·inf


def _take_bound(u, p, multiplier, bound, mu):
    take = jnp.isinf(bound) & (mu > 0)
    return multiplier, jnp.where(take, _mean_squares(p, bound), bound)


def _mean_squares(p, bound):
    """Finite, also where squares are not: a bound of inf says that there is none."""
    finite = jnp.finfo(bound.dtype).max
    return jnp.minimum(_measure.mean_squares(p, bound.ndim), finite)


def _constrained(u, p, multiplier, bound, mu):
    return u + 2 * _measure.over(multiplier, p) * p


_MOST = 0.25  # of Λ: 2Λθ takes away half of the weights, never all of them

_NAME = "decay.constrained"
_TO_NORM = Equation(_to_norm, measures="decay.to_norm")
_CONSTRAINED = Equation(_constrained, _next_multiplier, measures=_NAME)
_TAKE_BOUND = Equation(_constrained, _take_bound, _next_multiplier, measures=_NAME)


def _from_step(first: Any, rate: Any) -> optax.Schedule:
    """The rate from that step on, and 0 before."""
    integer = _check.is_real(first) and jnp.issubdtype(_dtypes.dtype_of(first), np.integer)
    if not integer or jnp.shape(first) or (not isinstance(first, Tracer) and first < 0):
        raise ValueError(f"warm_start must be a number of steps ≥ 0, got {first!r}.")

    def schedule(step: Any) -> Any:
        now = _check.at_step("update_rate", rate, step)
        return jnp.where(step < jnp.asarray(first, jnp.int32), 0.0, now)

    return schedule
