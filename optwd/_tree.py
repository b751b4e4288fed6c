"""The only code that walks trees: leaves, paths, dtypes, and the errors that name them.

A *leaf* takes part in a transformation when its gradient and everything that belongs to
it are real or complex floating point. What does not take part passes untouched:

- gradient ``None``: the update is ``None``, the state of that leaf stays as it is;
- integer, boolean or float0: the update is zero, the state stays as it is;
- ``optax.MaskedNode`` and ``None`` parameters hold no leaf at all.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from optwd import _rounding

PyTree = Any
Scalar = Any  # a Python number, or a traced or concrete array of shape ()
ScalarOrSchedule = ArrayLike | optax.Schedule

# Trees of state that hold one number a leaf, or (residual) where nothing is kept.
PER_TENSOR = ("multiplier", "bound", "residual")


# --- numbers -------------------------------------------------------------------------


def number(
    name: str, value: Any, *, below: float = math.inf, closed: bool = False
) -> Scalar:
    """A hyperparameter in [0, below) as a Python float, or unchanged while it is traced.

    The interval is [0, below] where it is `closed`.

    A Python float keeps double precision until the moment of use and is weakly typed, so
    it never widens what it multiplies.
    """
    domain = f"[0, {below:g}{']' if closed else ')'}"
    if not _is_real(value) or dtype_of(value) == jnp.bool_:
        raise TypeError(f"{name} must be a real number in {domain}, got {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} must be one number in {domain}, got an array of shape "
            f"{jnp.shape(value)}; use a mask of floats for a value per leaf."
        )
    if isinstance(value, Tracer):
        return value
    if not (0.0 <= float(value) < below or (closed and float(value) == below)):
        raise ValueError(f"{name} must be in {domain}, got {value!r}.")
    return float(value)


def integer(name: str, value: Any) -> Any:
    """An integer as it is, traced or not."""
    if not _is_real(value) or not jnp.issubdtype(dtype_of(value), jnp.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be one integer, got shape {jnp.shape(value)}.")
    return value


def rate(name: str, value: Any) -> Any:
    """A schedule (any callable of the step) as it is, or a checked `number`."""
    return value if callable(value) else number(name, value)


def at_step(name: str, value: Any, step: ArrayLike) -> Scalar:
    """The value of a number or schedule at this step, in float32 at least."""
    value = value(step) if callable(value) else value
    if jnp.shape(value) != ():
        raise ValueError(
            f"the schedule {name} must return one number, got an array of shape "
            f"{jnp.shape(value)}."
        )
    return jnp.asarray(value, jnp.float32) if is_narrow(value) else value


def increment(count: Any) -> jax.Array:
    """The next step; it stays at the largest int32 instead of wrapping round."""
    return jnp.asarray(optax.safe_increment(count))


def _is_real(value: Any) -> bool:
    numbers = (int, float, np.generic, np.ndarray, jax.Array)
    return isinstance(value, numbers) and any(
        jnp.issubdtype(dtype_of(value), kind)
        for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )


# --- dtypes --------------------------------------------------------------------------


def dtype_of(x: Any) -> Any:
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(dtype_of(x), jnp.inexact)


def is_complex(x: Any) -> bool:
    return jnp.issubdtype(dtype_of(x), jnp.complexfloating)


def holds(wide: Any, dtype: Any) -> bool:
    """Whether every number of the floating `dtype` is one of the dtype `wide`."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.promote_types(wide, dtype) == wide


def at_least_float32(*dtypes: Any) -> Any:
    """The real dtype in which leaves of these dtypes are computed."""
    real = [jnp.finfo(dtype).dtype for dtype in dtypes]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *real)


def _complex(real_dtype: Any) -> Any:
    return jnp.complex128 if real_dtype == jnp.float64 else jnp.complex64


class Call(NamedTuple):
    """`equation(*arrays, *scalars)` of one leaf, in at least float32.

    The i-th result comes back in the dtype of the i-th array. With a `chance`, the equation
    is `equation(keep, *arrays, *scalars)`, where `keep(*state)` is its new state as it will
    be read in the next step: rounded, by chance where it is kept in less than float32.
    """

    equation: Callable[..., Any]
    arrays: tuple[Any, ...]
    scalars: tuple[Scalar, ...]
    chance: tuple[Any] | None = None


def _run(calls: list[Call]) -> list[tuple[jax.Array, ...]]:
    """The results of all calls.

    Going through `jax.jit`, an equation is traced and lowered once per type of leaf, and
    n leaves of one type, in √n batches of √n, take 2√n calls. Arrays that are not traced
    go one by one, since they may live on different devices.
    """
    kinds: dict[Any, list[int]] = {}
    for i, (equation, arrays, scalars, _) in enumerate(calls):
        same = (s if isinstance(s, float) else id(s) for s in scalars)
        traced = isinstance(arrays[0], Tracer)
        kind = (equation, *map(jax.typeof, arrays), *same) if traced else i
        kinds.setdefault(kind, []).append(i)

    results: dict[int, tuple[jax.Array, ...]] = {}
    for alike in kinds.values():
        equation, arrays, scalars, chance = calls[alike[0]]
        real = at_least_float32(*map(dtype_of, arrays))
        rest = tuple(_strong(s, real) for s in scalars), chance
        size = math.isqrt(len(alike))
        for start in range(0, len(alike), size):
            batch = alike[start : start + size]
            rows = [calls[i].arrays for i in batch]
            if size > 1:  # also for a rest of one: XLA shares kernels of one text
                new = _batch(equation, rows, *rest)
            else:
                new = [_compute(equation, *rows, *rest)]
            results.update(zip(batch, new, strict=True))
    return [results[i] for i in range(len(calls))]


def _strong(scalar: Scalar, dtype: Any) -> Any:
    """Of that dtype and not weakly typed, once, so that no leaf need convert it."""
    if isinstance(scalar, float):
        return np.asarray(scalar, dtype)
    return jnp.asarray(scalar).astype(dtype)


@functools.partial(jax.jit, static_argnums=0)
def _batch(equation: Any, rows: Any, scalars: Any, chance: Any) -> Any:
    return [_compute(equation, arrays, scalars, chance) for arrays in rows]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _compute(equation: Any, arrays: Any, scalars: Any, chance: Any) -> Any:
    real = at_least_float32(*(x.dtype for x in arrays))
    wide = (x.astype(_complex(real) if is_complex(x) else real) for x in arrays)
    keep = () if chance is None else (functools.partial(_kept, arrays[1:], *chance),)
    results = equation(*keep, *wide, *scalars)
    results = results if isinstance(results, tuple) else (results,)
    for result, like in zip(results, arrays, strict=False):
        if result.shape != like.shape:
            raise ValueError(
                f"{getattr(equation, '__name__', equation)} turned a leaf of shape "
                f"{like.shape} into {result.shape}; a rule must keep the shape."
            )
    return tuple(r.astype(x.dtype) for r, x in zip(results, arrays, strict=False))


def _kept(likes: Any, chance: Any, *state: jax.Array) -> tuple[jax.Array, ...]:
    """The state as it will be read: rounded to what it is kept in, by chance if narrow."""

    def kept(x: jax.Array, like: jax.Array) -> jax.Array:
        if chance is None or not is_narrow(like):
            return x
        narrow = _rounding.by_chance(x.astype(jnp.float32), like.dtype, chance)
        # Down and up, so that the compiler reads what it writes: no wide copy is kept.
        return narrow.astype(like.dtype).astype(x.dtype)

    return tuple(map(kept, state, likes))


def zeros_like(params: PyTree, dtype: Any = None, *, real: bool = False) -> PyTree:
    """Moments: float32 at least unless `dtype` says otherwise, where parameters are float.

    A complex leaf keeps a complex moment (of the precision of `dtype`) unless `real`.
    Integer and boolean leaves keep their dtype; nothing will ever move them.
    """

    def zeros(p: Any) -> jax.Array:
        if not is_inexact(p):
            return _zeros(p)
        wanted = at_least_float32(dtype_of(p)) if dtype is None else dtype
        if is_complex(p) and not real:
            wanted = _complex(jnp.finfo(wanted).dtype)
        return _zeros(p, wanted)

    return jax.tree.map(zeros, params)


def _zeros(p: Any, dtype: Any = None) -> jax.Array:
    return _beside(p, jnp.zeros_like(p, dtype=dtype))


def _beside(p: Any, x: Any) -> Any:
    """`x`, on the devices of `p`, whose shape it has.

    A traced `p` does not say which these are, but what is computed from it elementwise
    lives where it lives. So `p` has a say here that never counts, as XLA does not know:
    where it does, for integers or for a choice between equals, `x` is on one device.
    """
    keys = jnp.issubdtype(dtype_of(p), jax.dtypes.extended)  # random ones, without numbers
    return _where_never(p, x) if isinstance(p, Tracer) and not keys else x


@jax.jit
def _where_never(p: Any, x: Any) -> jax.Array:
    p = p if is_inexact(p) else p.astype(jnp.float32)
    return jnp.where((p == p) & (p != p), jnp.ones_like(x), x)


def moment_dtype(name: str, dtype: Any) -> Any:
    """The argument of that name as a floating dtype, or None."""
    if dtype is None:
        return None
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{name} must be a floating dtype or None, got {dtype}.")
    return dtype


def is_narrow(x: Any) -> bool:
    """Whether `x` is floating and below float32."""
    return is_inexact(x) and jnp.finfo(dtype_of(x)).bits < 32


def widened(*arrays: Any) -> list[jax.Array]:
    """All in one dtype, float32 at least, complex if one of them is."""
    dtype = at_least_float32(*map(dtype_of, arrays))
    dtype = _complex(dtype) if any(map(is_complex, arrays)) else dtype
    return [jnp.asarray(x).astype(dtype) for x in arrays]


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` to the nearest number of that dtype, kept in its own.

    XLA may drop a cast down and up. It does not drop `reduce_precision`, which however
    takes subnormals for 0: those of float16 are weights like any other.
    """
    if is_complex(x):
        return jax.lax.complex(rounded(x.real, dtype), rounded(x.imag, dtype))
    to = jnp.finfo(dtype)
    normal = jax.lax.reduce_precision(x, exponent_bits=to.nexp, mantissa_bits=to.nmant)
    quantum = float(to.smallest_subnormal)
    if quantum < jnp.finfo(x.dtype).tiny:
        return normal
    return jnp.where(jnp.abs(x) < float(to.tiny), jnp.round(x / quantum) * quantum, normal)


def chance(step: jax.Array, *dtypes: Any) -> tuple[Any]:
    """Of rounding up at this step, or None if none of the dtypes is below float32."""
    narrow = any(dtype is not None and jnp.finfo(dtype).bits < 32 for dtype in dtypes)
    return (_rounding.for_step(step) if narrow else None,)


def widen(updates: PyTree) -> PyTree:
    """Leaves below float32 in float32; every other leaf as it is."""

    def up(g: Any) -> Any:
        narrow = is_inexact(g) and dtype_of(g).itemsize < 4
        return jnp.asarray(g).astype(jnp.float32) if narrow else g

    return jax.tree.map(up, updates)


def cast_like(updates: PyTree, like: PyTree) -> PyTree:
    """Every leaf in the dtype of `like`, and None where `like` is None."""

    def down(u: Any, g: Any) -> Any:
        return u if dtype_of(u) == dtype_of(g) else jnp.asarray(u).astype(dtype_of(g))

    leaves, treedef = jax.tree.flatten(like, is_leaf=_is_none)
    new = _align("updates that came back", updates, like, treedef)
    return treedef.unflatten(
        [g if g is None else down(u, g) for u, g in zip(new, leaves, strict=True)]
    )


def replace_float0(updates: PyTree, params: PyTree) -> PyTree:
    """float0 gradients, which nothing can be added to, as zeros that fit the parameter."""
    grads, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    if not any(g is not None and dtype_of(g) == jax.dtypes.float0 for g in grads):
        return updates
    like = grads if params is None else _align("parameters", params, updates, treedef)
    return treedef.unflatten(
        [
            _zero(g, [p]) if g is not None and dtype_of(g) == jax.dtypes.float0 else g
            for g, p in zip(grads, like, strict=True)
        ]
    )


def per_tensor(params: PyTree, value: float) -> PyTree:
    """One number a leaf, in float32 at least."""

    def scalar(p: Any) -> jax.Array:
        dtype = at_least_float32(dtype_of(p)) if is_inexact(p) else jnp.float32
        return jnp.full([], value, dtype)

    return jax.tree.map(scalar, params)


def residuals(params: PyTree, *, wide: bool) -> PyTree:
    """Zeros like the leaves below float32 (or all, if `wide`); elsewhere one zero."""

    def zeros(p: Any) -> jax.Array:
        kept = is_narrow(p) or (wide and is_inexact(p))
        return _zeros(p, dtype_of(p)) if kept else jnp.zeros((), dtype_of(p))

    return jax.tree.map(zeros, params)


def copy(tree: PyTree) -> PyTree:
    """Arrays of their own, which stay when the buffers of `tree` are donated."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def like_params(name: str, tree: PyTree, params: PyTree) -> PyTree:
    """`tree`, with nothing where Optax has masked the parameter or there is none."""
    if not jax.tree.leaves(params):  # nothing at all; also Optax's placeholder at init
        return params

    def absent(p: Any) -> bool:
        return p is None or isinstance(p, optax.MaskedNode)

    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=absent)
    try:
        leaves = treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        said = _difference("parameters", paths(params), name, paths(tree))
        raise ValueError(f"the {name} must be a tree like the parameters: {said}") from None
    kept = []
    for (keys, p), x in zip(with_paths, leaves, strict=True):
        shape = jax.tree.map(jnp.shape, x)
        if not absent(p) and shape != jnp.shape(p):
            raise ValueError(
                f"{path_of(keys)}: the parameter has shape {jnp.shape(p)}, the {name} "
                f"{shape}; they must be equal, nothing is broadcast."
            )
        kept.append(p if absent(p) else _beside(p, x))
    return treedef.unflatten(kept)


# --- paths and structure -------------------------------------------------------------


def _is_none(x: Any) -> bool:
    return x is None


class Leaf(NamedTuple):
    """A leaf as a mask sees it: everything but its values.

    `shape` is None where there is no array: at ``None``, ``MaskedNode``, an empty dict.
    `holder` is the class of the node that holds the leaf: `dict`, `equinox.nn.Linear`.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: Any
    holder: type


def leaves(tree: PyTree) -> list[Leaf]:
    """Every leaf and every empty node, in the order of ``jax.tree.leaves``."""
    return [
        Leaf(path, getattr(x, "shape", ()), _dtype_or_object(x), holder)
        if _is_leaf(x)
        else Leaf(path, None, None, holder)
        for path, x, holder in _walk(tree)
    ]


def unflatten(values: Iterable[Any], like: PyTree) -> PyTree:
    """The tree `like` with one value for every leaf that holds something."""
    return jax.tree.structure(like).unflatten(values)


def by_path(tree: PyTree) -> dict[str, Any]:
    """What every leaf holds, by its path, in the order of ``jax.tree.leaves``."""
    return {path: x for path, x, _ in _walk(tree) if _is_leaf(x)}


def paths(tree: PyTree) -> list[str]:
    """The paths of all leaves, `None` among them."""
    return [path for path, x, _ in _walk(tree) if x is None or _is_leaf(x)]


def path_of(keys: Iterable[Any]) -> str:
    """`params/Dense_0/kernel` from JAX's key path; the root is `<root>`."""
    names = (
        next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)) for k in keys
    )
    # a key that is itself a path, as in nnx.WeightNorm, is more than one segment
    texts = ("/".join(map(str, n)) if isinstance(n, tuple) else str(n) for n in names)
    return "/".join(texts) or "<root>"


def _walk(
    node: Any, keys: tuple[Any, ...] = (), holder: type = object
) -> Iterator[tuple[str, Any, type]]:
    """The path, node and holder of every leaf and of every node without children."""
    children = (
        []
        if _is_leaf(node)
        else jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    )
    if not children:
        yield path_of(keys), node, holder
    # A box of Flax (nnx.Variable, linen's Partitioned) adds no segment: the same
    # parameters come with and without it, from the same optimizer.
    is_box = hasattr(type(node), "add_axis")
    for key, child in children:
        inner = (keys, holder) if is_box else (keys + key, type(node))
        yield from _walk(child, *inner)


def _is_leaf(x: Any) -> bool:
    return jax.tree_util.all_leaves([x])


def _dtype_or_object(x: Any) -> Any:
    """A leaf need not be an array: an Equinox module also holds its activation."""
    known = hasattr(x, "dtype") or isinstance(x, (bool, int, float, complex))
    return dtype_of(x) if known else np.dtype(object)


def _align(what: str, tree: PyTree, updates: PyTree, treedef: Any) -> list[Any]:
    """The subtrees of `tree` at the leaves of `updates`, whose structure is `treedef`."""
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        here, there = paths(updates), paths(tree)
        raise ValueError(
            f"the gradients and the {what} have different structures: "
            f"{_difference('gradients', here, what, there)} "
            "Give `update` gradients with the structure that `init` saw."
        ) from None


def _difference(a: str, here: list[str], b: str, there: list[str]) -> str:
    only_here = [p for p in here if p not in set(there)]
    only_there = [p for p in there if p not in set(here)]
    said = [
        f"only in the {name}: {', '.join(only[:5])}{', …' * (len(only) > 5)}."
        for name, only in ((a, only_here), (b, only_there))
        if only
    ]
    return " ".join(said) or f"same paths, other containers ({a} against {b})."


def map_leaves(
    leaf: Callable[..., Call | tuple[Any, ...]],
    updates: PyTree,
    *,
    params: PyTree = None,
    multipliers: PyTree = None,
    state: Mapping[str, PyTree] | None = None,
) -> tuple[PyTree, ...]:
    """`leaf(g[, p][, k], *state) -> (u, *state)` on every leaf that takes part.

    `leaf` may also return a `Call` whose first arrays are `(g, *state)`; those which it
    does not return stay as they are. `multipliers` come with `params`; the names in `state`
    are for error messages. Returns the tree of updates, then the trees of `state`.
    """
    state = state or {}
    grads, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    columns = {name: _align(name, t, updates, treedef) for name, t in state.items()}
    if params is not None:
        columns = {"parameters": _align("parameters", params, updates, treedef), **columns}
    factors = None
    if multipliers is not None:
        factors = _align("mask", multipliers, updates, treedef)

    results: list[Any] = []
    for i, g in enumerate(grads):
        row = [column[i] for column in columns.values()]
        kept = row if params is None else row[1:]
        if g is None:
            results.append((None, *kept))
        elif not all(is_inexact(x) for x in _checked(updates, i, g, columns, row)):
            results.append((_zero(g, row), *kept))
        elif factors is None:
            results.append(leaf(g, *row))
        else:
            results.append(leaf(g, row[0], factors[i], *kept))
    width = 1 + len(state)
    calls = {i: result for i, result in enumerate(results) if isinstance(result, Call)}
    for i, new in zip(calls, _run(list(calls.values())), strict=True):
        results[i] = (*new, *calls[i].arrays[len(new) : width])
    return tuple(treedef.unflatten([r[j] for r in results]) for j in range(width))


def _checked(
    updates: PyTree, i: int, g: Any, columns: Mapping[str, Any], row: list[Any]
) -> list[Any]:
    """The leaf's arrays, after the checks that name its path."""
    for name, x in zip(columns, row, strict=True):
        if x is None or not jax.tree_util.all_leaves([x]):
            raise ValueError(
                f"{paths(updates)[i]}: a gradient, but nothing to match it in the {name}; "
                "give None as its gradient, or init with the parameter."
            )
        if name not in PER_TENSOR and jnp.shape(x) != jnp.shape(g):
            raise ValueError(
                f"{paths(updates)[i]}: the gradient has shape {jnp.shape(g)}, the {name} "
                f"{jnp.shape(x)}; they must be equal, nothing is broadcast."
            )
        if name != "nu" and is_complex(x) and is_inexact(g) and not is_complex(g):
            raise TypeError(
                f"{paths(updates)[i]}: a gradient of dtype {dtype_of(g)} for {name} of "
                f"dtype {dtype_of(x)}; a complex leaf needs a complex gradient."
            )
    return [g, *row]


def _zero(g: Any, row: list[Any]) -> Any:
    """A zero update; one of dtype float0 takes the dtype of its parameter."""
    if dtype_of(g) != jax.dtypes.float0:
        return jnp.zeros_like(g)
    dtypes = [dtype_of(x) for x in row if dtype_of(x) != jax.dtypes.float0]
    return jnp.zeros(jnp.shape(g), dtypes[0] if dtypes else jnp.int32)


# --- measuring -----------------------------------------------------------------------


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
    return jnp.sqrt(_total(_square_sum(x) for x in jax.tree.leaves(tree) if is_inexact(x)))


def distance(tree: PyTree, other: PyTree) -> jax.Array:
    """The norm of the difference, each leaf in the wider of its two dtypes."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    both = (pair for pair in pairs if all(map(is_inexact, pair)))
    return jnp.sqrt(_total(itertools.starmap(_square_distance, both)))


def share_lost(updates: PyTree, params: PyTree) -> jax.Array:
    """The share of elements that adding the update does not move, though it is not 0."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=_is_none)
    params = _align("parameters", params, updates, treedef)
    pairs = [
        (u, p)
        for u, p in zip(leaves, params, strict=True)
        if u is not None and p is not None and is_inexact(u) and is_inexact(p)
    ]
    elements = sum(jnp.size(p) for _, p in pairs)
    return _total(itertools.starmap(_lost, pairs)) / max(elements, 1)


def instances(tree: PyTree, kind: type) -> Iterator[Any]:
    """Every node of that class, also inside of another."""
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)):
        if isinstance(node, kind):
            yield node
            for child in node:
                yield from instances(child, kind)


def _total(numbers: Iterable[jax.Array]) -> jax.Array:
    return sum(numbers, start=jnp.zeros((), jnp.float32))


@jax.jit
def _square_sum(x: Any) -> jax.Array:
    """|x|², summed in float32 at least."""
    (x,) = widened(x)
    return jnp.sum(x.real**2 + x.imag**2 if is_complex(x) else x**2).astype(jnp.float32)


@jax.jit
def _square_distance(x: Any, y: Any) -> jax.Array:
    x, y = widened(x, y)
    return _square_sum(x - y)


@jax.jit
def _lost(u: Any, p: Any) -> jax.Array:
    u, wide = widened(u, p)
    new = rounded(wide + u, dtype_of(p))
    return jnp.sum((new == wide) & (u != 0)).astype(jnp.float32)


# --- masks ---------------------------------------------------------------------------


def broadcast_mask(mask: PyTree, params: PyTree) -> PyTree:
    """A tree of bools or floats, or a prefix of one, as one Python float per parameter.

    Where the containers differ (dict and FrozenDict), leaves are aligned by their paths.
    """
    factors = [(path, multiplier(path, x)) for path, x, _ in _walk(mask) if _is_leaf(x)]
    try:
        subtrees = jax.tree.structure(mask).flatten_up_to(params)
    except (ValueError, TypeError, KeyError):
        return unflatten(_by_path(dict(factors), leaves(params)), params)
    per_leaf = (
        [factor] * len(jax.tree.leaves(subtree))
        for (_, factor), subtree in zip(factors, subtrees, strict=True)
    )
    return unflatten(itertools.chain.from_iterable(per_leaf), params)


def _by_path(factors: Mapping[str, float], params: list[Leaf]) -> Iterator[float]:
    """The factor at each leaf's path, or at the beginning of its path."""
    owners = {
        leaf.path: next((m for m in _beginnings(leaf.path) if m in factors), None)
        for leaf in params
        if leaf.shape is not None
    }
    missing = [path for path, owner in owners.items() if owner is None]
    # a mask may say what happens to leaves that are not here: None, or another's
    absent = {leaf.path for leaf in params if leaf.shape is None}
    known = {m for path in absent for m in _beginnings(path)}.union(owners.values())
    extra = [m for m in factors if m not in known and absent.isdisjoint(_beginnings(m))]
    if missing or extra:
        raise ValueError(
            "the mask must be a tree like the parameters, or a prefix of it: "
            f"{_difference('mask', extra, 'parameters', missing)}"
        )
    return (factors[m] for m in owners.values() if m is not None)


def _beginnings(path: str) -> list[str]:
    """`a/b` begins with `<root>`, `a` and `a/b`."""
    segments = path.split("/")
    return ["<root>", *("/".join(segments[: n + 1]) for n in range(len(segments)))]


def multiplier(path: str, leaf: Any) -> float:
    """A leaf of a mask as a Python float, or an error that names its path."""
    if isinstance(leaf, Tracer):
        raise ValueError(
            f"{path}: the mask depends on a traced value. Who decays must be known when "
            "the step is traced: compute the mask outside jit, from paths, shapes and "
            "dtypes."
        )
    if _is_real(leaf) and jnp.shape(leaf) == () and 0.0 <= float(leaf) < math.inf:
        return float(leaf)
    raise ValueError(
        f"{path}: a mask leaf must be True, False or a finite number ≥ 0, got {leaf!r}."
    )
