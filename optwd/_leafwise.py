"""One way to run an equation on every leaf.

A leaf takes part if its gradient and its parameter are real or complex floating point.
The others pass through:

- gradient ``None``: the update is ``None``, and the state of that leaf does not change;
- integer, boolean or float0: the update is zero, and the state does not change;
- ``optax.MaskedNode`` and ``None`` parameters are no leaves at all.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwd import _check, _dtypes, _paths, _rounding, _shards, _zeros
from optwd._paths import PyTree


class Equation:
    """What happens to one leaf: stages that give its next state, then a read.

        state ← stage(u, *params, *state, s)     for each stage, stored in its dtype
        u ← read(u, *params, *state, s)          of the state as stored

    ``u`` is the gradient or direction, ``params`` the parameter if the transformation has
    a mask, and ``s`` the scalars of the step. Arrays come in float32 at least.

    Each equation has one jitted function, so that it is traced once per type of leaf, and
    freed together with the equation.
    """

    def __init__(
        self,
        read: Callable[..., Any],
        *stages: Callable[..., Any],
        store: Sequence[_rounding.Store] = (),
        measures: str = "",
    ) -> None:
        """`store` rounds each tree of the state; without it, by the chance of the step.

        `measures` is the name of what sees whole leaves, and refuses shards of them.
        """
        self.measures = measures
        self.on_leaf = jax.jit(functools.partial(_on_leaf, read, stages, store))


def _on_leaf(
    read: Any, stages: Any, store: Any, row: Any, state: Any, scalars: Any, chance: Any
) -> Any:
    store = store or (_rounding.by_step,) * len(state)
    real = _dtypes.at_least_float32(*(x.dtype for x in (*row, *state)))

    def wide(x: Any) -> jax.Array:
        return x.astype(_dtypes.complex_of(real) if _dtypes.is_complex(x) else real)

    def stored(new: Any, old: Any, like: Any, store: Any) -> jax.Array:
        # Down and up, so that the compiler reads what it writes and keeps no wide copy.
        return new if new is old else store(new, like.dtype, chance).astype(old.dtype)

    u, *params = map(wide, row)
    now = tuple(map(wide, state))
    s = jax.tree.map(lambda x: jnp.asarray(x).astype(real), scalars)
    for stage in stages:
        new = stage(u, *params, *now, s)
        now = tuple(map(stored, new, now, state, store))
    new = read(u, *params, *now, s)
    if new is None:
        raise TypeError(
            f"{getattr(read, '__name__', read)} returned None; a rule returns the new u."
        )
    if jnp.shape(new) != u.shape:
        raise ValueError(
            f"{getattr(read, '__name__', read)} turned a leaf of shape {u.shape} into "
            f"{jnp.shape(new)}; a rule must keep the shape."
        )
    return new.astype(row[0].dtype), tuple(
        x.astype(like.dtype) for x, like in zip(now, state, strict=True)
    )


class Field(NamedTuple):
    """How a state keeps one tree.

    Attributes:
      init: the tree at first, from the parameters.
      real: whether it is real for complex parameters.
      is_number: whether it may hold less than an array like the leaf: one number, or one
        per matrix, of the shape of the leaf's first axes.
    """

    init: Callable[[PyTree], PyTree]
    real: bool = False
    is_number: bool = False


def moment(dtype: Any, *, real: bool = False) -> Field:
    """Zeros like the parameters: float32 at least unless `dtype` says otherwise.

    A complex leaf has a complex moment of the precision of `dtype` unless `real`. Integer
    and boolean leaves keep their dtype; nothing will ever move them.
    """

    def zeros(p: Any) -> jax.Array:
        if not _dtypes.is_inexact(p):
            return _zeros.like(p)
        own = _dtypes.at_least_float32(_dtypes.dtype_of(p)) if dtype is None else dtype
        if _dtypes.is_complex(p) and not real:
            own = _dtypes.complex_of(jnp.finfo(own).dtype)
        return _zeros.like(p, own)

    return Field(functools.partial(jax.tree.map, zeros), real)


def transformation(
    name: str,
    equation: Equation,
    state_type: type[Any],
    fields: Mapping[str, Field],
    scalars: Callable[[Any], Any],
    factors: Callable[[PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that runs `equation` on every leaf.

    Its state is a `state_type` of the `fields` and, unless it has none, of a ``count`` or
    ``step`` of the updates so far. `scalars` are of the state before the step.
    With `factors` (a mask, resolved), the equation gets the parameters, and its one scalar
    times the factor of the leaf; a leaf for which that is known to be 0 is not touched.
    """
    clock = next((f for f in state_type._fields if f in ("count", "step")), None)

    def init(params: Any) -> Any:
        start = {field: of.init(params) for field, of in fields.items()}
        if clock is not None:
            start[clock] = jnp.zeros([], jnp.int32)
        return state_type(**start)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        _check.need_state(name, state, state_type)
        if factors is not None:
            _check.need_params(name, params)
        now = None if clock is None else increment(getattr(state, clock))
        updates, new = run(
            equation,
            updates,
            {field: getattr(state, field) for field in fields},
            scalars(state),
            fields=fields,
            params=None if factors is None else params,
            factors=None if factors is None else factors(params),
            chance=now,
        )
        return updates, state._replace(**new, **({} if clock is None else {clock: now}))

    return optax.GradientTransformationExtraArgs(init, update)


def run(
    equation: Equation,
    updates: PyTree,
    state: Mapping[str, PyTree],
    scalars: Any,
    *,
    fields: Mapping[str, Field],
    params: PyTree = None,
    factors: PyTree = None,
    chance: Any = None,
) -> tuple[PyTree, dict[str, PyTree]]:
    """The new updates, and the new trees of `state`; see `transformation`.

    `chance` is what a rounding is drawn from: one for all leaves, or a list.
    """
    if updates is None:
        raise ValueError("update needs a tree of gradients, got None.")
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    columns = {k: _paths.align(k, tree, updates, treedef) for k, tree in state.items()}
    weights, multipliers = [()] * len(leaves), [1.0] * len(leaves)
    if factors is not None:
        weights = [(p,) for p in _paths.align("parameters", params, updates, treedef)]
        multipliers = _paths.align("mask", factors, updates, treedef)
    # Once for all leaves with the same multiplier; arithmetic makes a constant part of the
    # traced program, where the call of a leaf need not hold it.
    distinct = {k for k in multipliers if isinstance(k, float)}
    wide = _dtypes.wide_scalar
    scaled = {k: scalars if k == 1.0 else wide(scalars) * k for k in distinct}
    idle = {k for k, s in scaled.items() if factors is not None and _is_zero(k, s)}
    scaled = jax.tree.map(lambda s: jnp.asarray(s, float) * 1, scaled)

    results: list[tuple[Any, Any]] = []
    for i, (u, p, k) in enumerate(zip(leaves, weights, multipliers, strict=True)):
        kept = tuple(column[i] for column in columns.values())
        for x in p if u is not None else ():
            _fit(updates, i, "parameters", u, x, fields)
        if u is None:
            pass
        elif not all(map(_dtypes.is_inexact, (u, *p))):
            u = _zero(u, (*p, *kept))
        elif k not in idle:
            drawn = chance[i] if isinstance(chance, list) else chance
            for name, x in zip(columns, kept, strict=True):
                _fit(updates, i, name, u, x, fields)
            if equation.measures:
                _shards.refuse(equation.measures, u, *p)
            u, kept = equation.on_leaf((u, *p), kept, scaled[k], drawn)
        results.append((u, kept))

    new = {}
    for j, (name, tree) in enumerate(state.items()):
        own = jax.tree.structure(tree, is_leaf=_is_none)
        new[name] = own.unflatten([kept[j] for _, kept in results])
    return treedef.unflatten([u for u, _ in results]), new


def increment(count: Any) -> jax.Array:
    """The next step; it stays at the largest int32 instead of wrapping round."""
    return jnp.asarray(optax.safe_increment(count))


def _fit(
    updates: PyTree, i: int, name: str, u: Any, x: Any, fields: Mapping[str, Field]
) -> None:
    """Raise unless `x`, from the tree of that name, goes with the i-th update."""
    of = fields.get(name, Field(lambda params: params))
    if x is None or not jax.tree_util.all_leaves([x]):
        raise ValueError(
            f"{_paths.paths(updates)[i]}: a gradient, but nothing to match it in the "
            f"{name}; give None as its gradient, or init with the parameter."
        )
    axes = jnp.ndim(x) if of.is_number else None
    if jnp.shape(x) != jnp.shape(u)[:axes]:
        raise ValueError(
            f"{_paths.paths(updates)[i]}: the gradient has shape {jnp.shape(u)}, the "
            f"{name} {jnp.shape(x)}; they must be equal, nothing is broadcast."
        )
    if not of.real and _dtypes.is_complex(x) and _is_real(u):
        raise TypeError(
            f"{_paths.paths(updates)[i]}: a gradient of dtype {_dtypes.dtype_of(u)} for "
            f"{name} of dtype {_dtypes.dtype_of(x)}; a complex leaf needs a complex "
            "gradient."
        )


def _zero(u: Any, others: tuple[Any, ...]) -> Any:
    """A zero update; one of dtype float0 takes the dtype of its parameter."""
    if _dtypes.dtype_of(u) != jax.dtypes.float0:
        return jnp.zeros_like(u)
    dtypes = [_dtypes.dtype_of(x) for x in others]
    known = [dtype for dtype in dtypes if dtype != jax.dtypes.float0]
    return jnp.zeros(jnp.shape(u), known[0] if known else jnp.int32)


def _is_real(x: Any) -> bool:
    return _dtypes.is_inexact(x) and not _dtypes.is_complex(x)


def _is_zero(factor: float, scalar: Any) -> bool:
    return factor == 0.0 or (isinstance(scalar, float) and scalar == 0.0)


def _is_none(x: Any) -> bool:
    return x is None
