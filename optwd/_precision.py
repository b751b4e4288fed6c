"""Low-precision parameters.

In bfloat16 the next number below 1 is 0.996. A step that shrinks a weight by 1e-4 is
rounded away, and so is every later one: the weight never moves.
`compensate_rounding` remembers what was rounded away; `round_stochastically` is right on
average. Either wraps a finished optimizer:

    compensate_rounding(adamw(…))
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwd import _check, _dtypes, _eight_bits, _leafwise, _paths, _rounding, _zeros
from optwd._leafwise import Equation


class ResidualState(NamedTuple):
    """What rounding has taken from every parameter so far.

    To set a weight by hand, set its residual to 0 as well: it would move the new weight.

    Attributes:
      step: updates so far; int32 of shape ().
      residual: a tree like the parameters, in their dtype or int8; one 0 of shape () for a
        leaf that is not compensated.
      inner: the state of the optimizer.
    """

    step: jax.Array
    residual: Any
    inner: Any


class KeyState(NamedTuple):
    """What the random numbers of the next step are drawn from.

    Attributes:
      step: updates so far; int32 of shape ().
      key: two words that belong to the seed; uint32 of shape (2,).
      inner: the state of the optimizer.
    """

    step: jax.Array
    key: jax.Array
    inner: Any


def in_float32(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let bfloat16 and float16 updates travel through a whole chain in float32.

        u → float32(u) → transformation → cast

    Without it every part of a chain rounds its result to the dtype that came in. With it
    there is at most one rounding, at the end: to the wider of the dtypes of gradient and
    parameter, so that only low-precision weights get low-precision updates. Leaves in
    float32 or wider, and chains that hold none narrower, compile to the same program.

    The optimizers of this package come wrapped in it, and it nests.

    Args:
      transformation: any transformation. Its state is its own, and it sees the parameters
        as they are; one whose state takes the dtype of its updates (`optax.trace`) needs a
        wide accumulator dtype.

    Returns:
      The transformation with the same state. If ``update`` is not given the parameters, a
      low-precision gradient gives a float32 update. A float0 gradient of an integer
      parameter gives a zero of the parameter's dtype.

    >>> import jax.numpy as jnp, optax
    >>> steps, theta = optax.chain(optax.scale(1 / 3), optax.scale(3.0)), jnp.ones(1)
    >>> g = jnp.array([1.1], jnp.bfloat16)  # 1.1015625
    >>> print(in_float32(steps).update(g, steps.init(theta), theta)[0])
    [1.1015625]

    Source: mixed-precision training, Micikevicius et al., arXiv 1710.03740.
    """
    inner = optax.with_extra_args_support(transformation)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        updates = _without_float0(updates, params)
        new, state = inner.update(_widened(updates), state, params, **extra)
        return _cast(new, updates, params), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def compensate_rounding(
    optimizer: optax.GradientTransformation,
    *,
    wide: bool = False,
    residual_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Remember what rounding takes from a step, and add it to the next one.

        s = u + r
        θ' = round(θ + s)     in the dtype of the parameters
        u ← θ' − θ
        r ← s − (θ' − θ)      in the same dtype, up or down in turn

    The parameters θ and the residual r together follow the exact sum, although each is in
    low precision: θ is never further from it than half its spacing. If a step is too small
    even for r, r takes it up in an evenly spread share of the steps.

    Add the updates by ``optax.apply_updates``. Each is the difference of two numbers of the
    parameters' dtype, so the sum is exact, and it does not matter how the compiler rounds.
    On GPU and TPU this is part of the same pass over memory, with 4 more bytes per bfloat16
    weight; on CPU it is further passes, with 8 bytes of temporary memory per weight.

    Args:
      optimizer: a finished optimizer, whose updates are added to the parameters. It sees
        gradients in float32 at least.
      wide: keep residuals also for leaves in float32 and wider, which otherwise are left
        as they are, at no cost.
      residual_dtype: None for the dtype of the parameters, or ``jnp.int8``: one byte per
        weight, which counts 127ths of half the spacing of the weight. So a bfloat16 weight
        and its residual are together as fine as 24 bits. A weight that shrinks to less than
        half in one step may lose up to half the spacing that it had.

    Returns:
      An optimizer with state `optwd.ResidualState`: one more buffer like the parameters.
      Complex leaves are compensated in both parts.

    Raises:
      ValueError: another ``residual_dtype``; ``update`` without parameters; gradients that
        do not fit them.
      TypeError: a complex leaf, compensated in ``jnp.int8``; a state whose residuals are
        of another dtype than ``residual_dtype`` says.

    >>> import jax.numpy as jnp, optax
    >>> theta, exact = jnp.ones(1, jnp.bfloat16), compensate_rounding(optax.sgd(1e-3))
    >>> state = exact.init(theta)
    >>> for _ in range(100):  # 1 − 1e-3 is 1 in bfloat16
    ...     u, state = exact.update(jnp.ones(1), state, theta)
    ...     theta = optax.apply_updates(theta, u)
    >>> print(theta)
    [0.898438]

    Source: Kahan, Further remarks on reducing truncation errors, 1965; in the training of
    bfloat16 weights, Zamirai et al., arXiv 2010.06192, Algorithm 1.
    """
    inner = optax.with_extra_args_support(optimizer)
    dtype = _residual_dtype(residual_dtype)
    equation = _COMPENSATED if dtype is None else _IN_EIGHT_BITS

    def compensated(p: Any) -> bool:
        return _dtypes.is_inexact(p) and (wide or _dtypes.is_narrow(p))

    def residual(p: Any) -> Any:
        if compensated(jax.tree.leaves(p)[0]):
            return jax.tree.map(lambda x: _zeros.like(x, dtype), p)
        return jnp.zeros((), _dtypes.dtype_of(jax.tree.leaves(p)[0]))

    def check(residual: Any, params: Any) -> None:
        pairs = zip(jax.tree.leaves(residual), jax.tree.leaves(params), strict=False)
        for i, (r, p) in enumerate(pairs):
            if compensated(p) and (_dtypes.dtype_of(r) == jnp.int8) != (dtype is not None):
                raise TypeError(
                    f"{list(_paths.by_path(params))[i]}: a residual of dtype {r.dtype} for "
                    f"residual_dtype={residual_dtype}; the state must come from `init` of "
                    "this optimizer."
                )

    def init(params: Any) -> ResidualState:
        for path, p in _paths.by_path(params).items() if dtype is not None else ():
            if compensated(p) and _dtypes.is_complex(p):
                raise TypeError(
                    f"{path}: a complex leaf has no residual in int8, which holds one real "
                    "number per weight; leave residual_dtype out."
                )
        start = jax.tree.map(residual, params, is_leaf=_paths.is_box)
        return ResidualState(jnp.zeros([], jnp.int32), start, inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _check.need_params("compensate_rounding", params)
        _check.need_state("compensate_rounding", state, ResidualState)
        check(state.residual, params)
        updates = _without_float0(updates, params)
        u, new = inner.update(_widened(updates), state.inner, params, **extra)
        step = _leafwise.increment(state.step)
        u, kept = _leafwise.run(
            equation,
            u,
            {"weight": params, "moved": params, "residual": state.residual},
            1.0,
            fields={},
            params=params,
            factors=jax.tree.map(lambda p: float(compensated(p)), params),
            chance=step,
        )
        return _cast(u, updates, params), ResidualState(step, kept["residual"], new)

    return optax.GradientTransformationExtraArgs(init, update)


def _next_weight(u, p, weight, moved, r, s):
    return p + (u + r), moved, r


def _next_move(u, p, weight, moved, r, s):
    # exact, unless one weight is more than twice the other; then it is rounded, and
    return weight, weight - p, r


def _moved_weight(u, p, weight, moved, r, s):
    # the weight that `optax.apply_updates` computes is another
    return (p, moved), moved, r


def _next_residual(u, p, weight, moved, r, s):
    total, gone = u + r, weight - p
    lost = (total - gone) + (p - (weight - gone))  # the last is 0 where p is narrow
    return weight, moved, jnp.where(jnp.isfinite(lost), lost, 0)  # a weight overflowed


def _move(u, p, weight, moved, r, s):
    return moved


_COMPENSATED = Equation(
    _move,
    *(_next_weight, _next_move, _moved_weight, _next_residual),
    store=(_rounding.as_applied, _rounding.nearest, _rounding.by_step),
)


def _in_eight_bits(row: Any, state: Any, scalars: Any, chance: Any) -> Any:
    weight, moved, codes = state
    residual = _eight_bits.load(codes, row[1])
    u, (weight, moved, residual) = _COMPENSATED.on_leaf(
        row, (weight, moved, residual), scalars, chance
    )
    return u, (weight, moved, _eight_bits.store(residual, weight, chance))


class _EightBits(Equation):
    """`_COMPENSATED`, between residuals as they are stored."""

    def __init__(self) -> None:
        self.measures = ""
        self.on_leaf = jax.jit(_in_eight_bits)


_IN_EIGHT_BITS = _EightBits()


def _residual_dtype(dtype: Any) -> Any:
    if dtype is None or jnp.dtype(dtype) == jnp.int8:
        return None if dtype is None else jnp.int8
    raise ValueError(
        f"residual_dtype must be None, for the dtype of the parameters, or jnp.int8, got "
        f"{jnp.dtype(dtype)}."
    )


def round_stochastically(
    optimizer: optax.GradientTransformation, seed: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """Round the new parameters up or down at random, so that they are right on average.

        θ' = a neighbour of θ + u in the dtype of the parameters, with mean θ + u
        u ← θ' − θ

    A step far below the spacing of a weight moves it seldom, but then by a whole spacing;
    the mean over steps or over weights is that of exact arithmetic, without any memory.
    It costs noise, of at most half a spacing per step: if there is memory for one more
    buffer, `compensate_rounding` has none.

    The random numbers come from the seed, the step, the leaf's place in the tree and the
    element's place in its leaf, so the same seed gives the same run on any number of
    devices. Under ``jax.vmap`` each member needs its own seed. Inside ``jax.shard_map`` an
    element's place is that in the shard, so shards share random numbers.

    Add the updates by ``optax.apply_updates``. A weight that shrinks to less than half in
    one step gets its update rounded to nearest if gradients are in low precision too.

    Args:
      optimizer: See `compensate_rounding`.
      seed: an integer in [0, 2³²).

    Returns:
      An optimizer with state `optwd.KeyState`; leaves in float32 or wider are left as they
      are.

    Raises:
      TypeError: a seed that is not an integer.
      ValueError: a seed out of range; ``update`` without parameters; gradients that do not
        fit them.

    >>> import jax.numpy as jnp, optax
    >>> theta = jnp.ones(10_000, jnp.bfloat16)
    >>> rounding = round_stochastically(optax.sgd(1e-3), seed=0)
    >>> u, _ = rounding.update(jnp.ones(10_000), rounding.init(theta), theta)
    >>> theta = optax.apply_updates(theta, u)
    >>> print(jnp.unique(theta), theta.astype(float).mean().round(4))
    [0.996094 1] 0.999

    Source: Gupta et al., arXiv 1502.02551, Section 3; Zamirai et al., arXiv 2010.06192.
    """
    inner = optax.with_extra_args_support(optimizer)
    seed = _check.integer("seed", seed)

    def init(params: Any) -> KeyState:
        start = jnp.zeros([], jnp.int32)
        return KeyState(start, _rounding.key(seed), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _check.need_params("round_stochastically", params)
        _check.need_state("round_stochastically", state, KeyState)
        updates = _without_float0(updates, params)
        u, new = inner.update(_widened(updates), state.inner, params, **extra)
        places = len(jax.tree.leaves(u, is_leaf=_is_none))
        u, _ = _leafwise.run(
            _ROUNDED,
            u,
            {"weight": params},
            1.0,
            fields={},
            params=params,
            factors=jax.tree.map(lambda p: float(_dtypes.is_narrow(p)), params),
            chance=list(_rounding.words(state.key, state.step, places)),
        )
        step = _leafwise.increment(state.step)
        return _cast(u, updates, params), KeyState(step, state.key, new)

    return optax.GradientTransformationExtraArgs(init, update)


def _rounded_weight(u, p, weight, s):
    return (_rounding.two_sum(p, u),)


def _difference(u, p, weight, s):
    return weight - p


_ROUNDED = Equation(_difference, _rounded_weight, store=(_rounding.by_element,))


def _widened(updates: Any) -> Any:
    """Leaves below float32 in float32; every other leaf unchanged."""

    def up(g: Any) -> Any:
        return jnp.asarray(g).astype(jnp.float32) if _dtypes.is_narrow(g) else g

    return jax.tree.map(up, updates)


def _cast(new: Any, updates: Any, params: Any) -> Any:
    """Every leaf in the wider of the dtypes of its gradient and its parameter.

    None where the gradient is None. A narrow gradient whose parameter is not given stays
    in float32: the parameter may be.
    """
    grads, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    leaves = _paths.align("updates that came back", new, updates, treedef)
    weights = [None] * len(grads)
    if params is not None:
        weights = _paths.align("parameters", params, updates, treedef)

    def cast(u: Any, g: Any, p: Any) -> Any:
        if g is None:
            return None
        dtype = _dtypes.dtype_of(g)
        if p is not None and _dtypes.is_inexact(g) and _dtypes.is_inexact(p):
            dtype = _dtypes.wider(g, p)
        elif p is None and _dtypes.is_narrow(g):
            dtype = jnp.float32
        return u if _dtypes.dtype_of(u) == dtype else jnp.asarray(u).astype(dtype)

    return treedef.unflatten(map(cast, leaves, grads, weights))


def _without_float0(updates: Any, params: Any) -> Any:
    """float0 gradients, which nothing can be added to, as zeros that fit the parameter."""
    grads, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    float0 = jax.dtypes.float0
    if not any(g is not None and _dtypes.dtype_of(g) == float0 for g in grads):
        return updates
    like = grads
    if params is not None:
        like = _paths.align("parameters", params, updates, treedef)

    def zero(g: Any, p: Any) -> Any:
        if g is None or _dtypes.dtype_of(g) != float0:
            return g
        dtype = _dtypes.dtype_of(p)
        return jnp.zeros(jnp.shape(g), jnp.int32 if dtype == float0 else dtype)

    return treedef.unflatten(map(zero, grads, like))


def _is_none(x: Any) -> bool:
    return x is None
