"""Low-precision parameters.

In bfloat16 a weight of 1 has its neighbour at 0.996. A step that shrinks it by 1e-4 is
rounded away, and so is every step after it: the weight never moves. `compensate_rounding`
remembers what was rounded away; `round_stochastically` is right on average. Either stands
last in a chain, inside of `in_float32`:

    in_float32(chain(adamw(…), compensate_rounding()))
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _rounding, _tree


class ResidualState(NamedTuple):
    """What rounding has taken from every parameter so far.

    Attributes:
      step: updates so far; int32 of shape ().
      residual: a tree like the parameters, in their dtype; one 0 of shape () for a leaf
        that is not compensated, so who shards by the specs of the parameters replicates it.
    """

    step: jax.Array
    residual: Any


class KeyState(NamedTuple):
    """What the chances of the next step are drawn from.

    Attributes:
      step: updates so far; int32 of shape ().
      key: two words that belong to the seed; uint32 of shape (2,).
    """

    step: jax.Array
    key: jax.Array


def in_float32(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let bfloat16 and float16 updates travel through a whole chain in float32.

        u → float32(u) → transformation → dtype(u)

    Without it every part of a chain rounds its result to the dtype that came in. With it
    there is one rounding, at the end. Leaves in float32 or wider, and chains that hold
    none narrower, compile to the same program as without it.

    Place in the chain: around it. It nests, and the optimizers of this package come
    wrapped in it.

    Args:
      transformation: any transformation. Its state is its own and is not wrapped, and it
        sees the parameters as they are; a transformation whose state takes the dtype of
        its updates (`optax.trace`) needs a wide accumulator dtype.

    Returns:
      The transformation with the same state; each update leaf has the dtype of the
      incoming gradient. A float0 gradient of an integer parameter gives a zero of the
      parameter's dtype.

    >>> import jax.numpy as jnp, optax
    >>> steps = optax.chain(optax.scale(1 / 3), optax.scale(3.0))
    >>> u = in_float32(steps).update(jnp.array([1.1], jnp.bfloat16), steps.init(0.0))[0]
    >>> print(u, u.dtype)
    [1.10156] bfloat16

    Source: mixed-precision training, Micikevicius et al., arXiv 1710.03740.
    """
    inner = optax.with_extra_args_support(transformation)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates = _tree.replace_float0(updates, params)
        new, state = inner.update(_tree.widen(updates), state, params, **extra)
        return _tree.cast_like(new, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def compensate_rounding(*, wide: bool = False) -> optax.GradientTransformationExtraArgs:
    """Remember what rounding takes from a step, and add it to the next one.

        s = u + r
        θ' = round(θ + s)     in the dtype of the parameters
        u ← θ' − θ
        r ← s − (θ' − θ)      in the same dtype, up or down in turn

    The parameters θ and the residual r together follow the exact sum, although each is in
    low precision: θ is never further from it than by half its spacing. Where a step is too
    small even for r, r takes it up in a share of the steps, evenly spread.

    Place in the chain: last, behind the sign flip, inside of `in_float32`:
    ``in_float32(chain(adamw(…), compensate_rounding()))``. The updates are to be added as
    ``optax.apply_updates`` does; each is the difference of two numbers of the parameters'
    dtype, so the sum is exact and it does not matter how the compiler rounds. On GPU and
    TPU this is part of the same pass over memory, with 4 more bytes for a bfloat16 weight;
    on the CPU it is further passes, which need 8 bytes of temporary memory a weight.

    Args:
      wide: keep residuals also for leaves in float32 and wider, which otherwise are left
        as they are, at no cost.

    Returns:
      A transformation with state `precision.ResidualState`, one buffer like the parameters.
      Complex leaves are compensated in both parts.

    Raises:
      ValueError: ``update`` without parameters; gradients that do not fit them.

    >>> import jax.numpy as jnp, optax
    >>> exact, theta = compensate_rounding(), jnp.ones(1, jnp.bfloat16)
    >>> state = exact.init(theta)
    >>> for _ in range(100):  # 1 − 1e-3 is 1 in bfloat16
    ...     u, state = exact.update(jnp.full(1, -1e-3), state, theta)
    ...     theta = optax.apply_updates(theta, u)
    >>> print(theta)
    [0.898438]

    Source: Kahan, Further remarks on reducing truncation errors, 1965; in the training of
    bfloat16 weights, Zamirai et al., arXiv 2010.06192, Algorithm 1.
    """

    def init(params: Any) -> ResidualState:
        residual = _tree.residuals(params, wide=wide)
        return ResidualState(jnp.zeros([], jnp.int32), residual)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        _need_params("compensate_rounding", params)
        chance = _rounding.for_step(state.step)

        def leaf(u: Any, p: Any, r: Any) -> tuple[Any, Any]:
            if wide or _tree.is_narrow(p):
                return _compensate(u, p, r, chance)
            return u, r

        updates, residual = _tree.map_leaves(
            leaf, updates, params=params, state={"residual": state.residual}
        )
        return updates, ResidualState(_tree.increment(state.step), residual)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _compensate(u: Any, p: Any, r: Any, chance: Any) -> tuple[jax.Array, jax.Array]:
    total, theta, residual = _tree.widened(u, p, r)
    total = total + residual
    new = _tree.rounded(theta + total, p.dtype)
    # The difference of two such numbers is one too, unless one is more than twice the
    # other. Then it is rounded, and the sum may miss `new` by a little. The sum is written
    # as in `optax.apply_updates`: what is one expression can be one pass over memory.
    step = _tree.rounded(new - theta, p.dtype)
    new = (p + step.astype(p.dtype)).astype(theta.dtype)
    new = _tree.rounded(new, p.dtype)
    moved = new - theta
    lost = (total - moved) + (theta - (new - moved))  # the last is 0 where p is narrow
    lost = jnp.where(jnp.isfinite(lost), lost, 0)  # where a weight has overflowed
    if _tree.is_narrow(r):  # to nearest, a step too small for it would be lost for ever
        lost = _rounding.by_chance(lost.astype(jnp.float32), r.dtype, chance)
    return step.astype(u.dtype), lost.astype(r.dtype)


def round_stochastically(seed: ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Round the new parameters up or down by chance, so that they are right on average.

        θ' = a neighbour of θ + u in the dtype of the parameters, with mean θ + u
        u ← θ' − θ

    A step far below the spacing of a weight moves it seldom, but then by a whole spacing;
    the mean over steps or over weights is that of exact arithmetic, without any memory.
    What it costs is noise, of at most half a spacing a step: where there is memory for one
    more buffer, `compensate_rounding` has none.

    The chances come from the seed, the step, the leaf's place in the tree and the element's
    place in its leaf, so that the same seed gives the same run, on any number of devices.
    Under ``jax.vmap`` each member needs a seed of its own to have chances of its own;
    inside of ``jax.shard_map`` a place is one in the shard, so shards share their chances.

    Place in the chain: last, behind the sign flip, inside of `in_float32`:
    ``in_float32(chain(adamw(…), round_stochastically(0)))``. The updates are to be added as
    ``optax.apply_updates`` does. A weight that shrinks to less than half in one step gets
    its update rounded to nearest where gradients are in low precision.

    Args:
      seed: an integer.

    Returns:
      A transformation with state `precision.KeyState`; leaves in float32 or wider are left
      as they are.

    Raises:
      TypeError: a seed that is not an integer.
      ValueError: ``update`` without parameters; gradients that do not fit them.

    >>> import jax.numpy as jnp, optax
    >>> rounding, theta = round_stochastically(0), jnp.ones(10_000, jnp.bfloat16)
    >>> u, _ = rounding.update(jnp.full(10_000, -1e-3), rounding.init(theta), theta)
    >>> theta = optax.apply_updates(theta, u)
    >>> print(jnp.unique(theta), theta.astype(float).mean().round(4))
    [0.996094 1] 0.999

    Source: Gupta et al., arXiv 1502.02551, Section 3; Zamirai et al., arXiv 2010.06192.
    """
    seed = _tree.integer("seed", seed)

    def init(params: Any) -> KeyState:
        del params
        return KeyState(jnp.zeros([], jnp.int32), _rounding.key(seed))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        _need_params("round_stochastically", params)
        words = _rounding.words(state.key, state.step, len(jax.tree.leaves(params)))
        place = itertools.count()

        def leaf(u: Any, p: Any) -> tuple[Any]:
            i = next(place)
            return (_draw(u, p, words[i]) if _tree.is_narrow(p) else u,)

        (updates,) = _tree.map_leaves(leaf, updates, params=params)
        return updates, KeyState(_tree.increment(state.step), state.key)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _draw(u: Any, p: Any, words: Any) -> jax.Array:
    step, theta = (x.astype(jnp.float32) for x in (u, p))
    new = _rounding.by_chance(theta + step, p.dtype, _rounding.for_elements(words, p.shape))
    return (new - theta).astype(u.dtype)


def _need_params(name: str, params: Any) -> None:
    if params is None:
        raise ValueError(
            f"{name} needs the parameters: call update(updates, state, params)."
        )
