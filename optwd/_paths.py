"""Leaves and their paths, and errors that name them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import FlattenedIndexKey

from optwd import _dtypes

PyTree = Any  # what jax.tree takes; no type checker can say more


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
        for path, x, holder in walk(tree)
    ]


def unflatten(values: Iterable[Any], like: PyTree) -> PyTree:
    """The tree `like` with one value for every leaf that holds something."""
    return jax.tree.structure(like).unflatten(values)


def by_path(tree: PyTree) -> dict[str, Any]:
    """What every leaf holds, by its path, in the order of ``jax.tree.leaves``."""
    return {path: x for path, x, _ in walk(tree) if _is_leaf(x)}


def paths(tree: PyTree) -> list[str]:
    """The paths of all leaves, `None` among them."""
    return [path for path, x, _ in walk(tree) if x is None or _is_leaf(x)]


def path_of(keys: Iterable[Any]) -> str:
    """`params/Dense_0/kernel` from JAX's key path; the root is `<root>`."""
    return "/".join(map(_segment, keys)) or "<root>"


def _segment(key: Any) -> str:
    names = (getattr(key, a) for a in ("key", "name", "idx") if hasattr(key, a))
    name = next(names, key)
    # a key that is itself a path, as in nnx.WeightNorm, is more than one segment
    return "/".join(map(str, name)) if isinstance(name, tuple) else str(name)


def is_box(node: Any) -> bool:
    """Whether `node` is a wrapper around one array, which is there.

    Such are the boxes of Flax (``nnx.Variable``, linen's ``Partitioned``), and any node
    that holds one array without a key (haliax's ``NamedArray``). A wrapper adds no segment
    to a path: the same parameters come with and without it, from the same optimizer.
    """
    return _wraps(node, _children(node)) and bool(jax.tree.leaves(node))


def unboxed(tree: PyTree) -> PyTree:
    """The tree without the wrappers around its arrays, or around what stands for them."""

    def wraps(x: Any) -> bool:
        return _wraps(x, _children(x))

    def bare(x: Any) -> Any:
        return unboxed(_children(x)[0][1]) if wraps(x) else x

    return jax.tree.map(bare, tree, is_leaf=lambda x: x is None or wraps(x))


def align(what: str, tree: PyTree, updates: PyTree, treedef: Any) -> list[Any]:
    """The subtrees of `tree` at the leaves of `updates`, whose structure is `treedef`.

    Wrappers may be around the arrays of one tree and not of the other.
    """
    try:
        return treedef.flatten_up_to(tree)
    except (ValueError, TypeError, KeyError):
        bare = jax.tree.structure(unboxed(updates), is_leaf=_is_none)
        try:
            return bare.flatten_up_to(unboxed(tree))
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"the gradients and the {what} have different structures: "
                f"{difference('gradients', paths(updates), what, paths(tree))} "
                "Give `update` gradients with the structure that `init` saw."
            ) from None


def difference(a: str, here: list[str], b: str, there: list[str]) -> str:
    """Which paths only one of two trees has."""
    in_here, in_there = set(here), set(there)
    only_here = [p for p in here if p not in in_there]
    only_there = [p for p in there if p not in in_here]
    said = [
        f"only in the {name}: {', '.join(only[:5])}{', …' * (len(only) > 5)}."
        for name, only in ((a, only_here), (b, only_there))
        if only
    ]
    return " ".join(said) or f"same paths, other containers ({a} against {b})."


def instances(tree: PyTree, kind: type) -> Iterator[Any]:
    """Every node of that class, also inside of another."""
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)):
        if isinstance(node, kind):
            yield node
            for child in node:
                yield from instances(child, kind)


def walk(
    node: Any, keys: tuple[Any, ...] = (), holder: type = object
) -> Iterator[tuple[str, Any, type]]:
    """The path, node and holder of every leaf and of every node without children."""
    children = _children(node)
    if not children:
        yield path_of(keys), node, holder
    elif _wraps(node, children):
        yield from walk(children[0][1], keys, holder)
    else:
        for key, child in children:
            yield from walk(child, keys + key, type(node))


Children = list[tuple[tuple[Any, ...], Any]]  # with their keys


def _children(node: Any) -> Children:
    if _is_leaf(node):
        return []
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def _wraps(node: Any, children: Children) -> bool:
    """Whether `node` is only a wrapper around its one child; see `is_box`."""
    if len(children) != 1 or isinstance(node, (dict, list, tuple)):
        return False
    if hasattr(type(node), "add_axis"):  # Flax's own mark of a box
        return True
    [((key, *_), child)] = children
    inner = _children(child)
    return isinstance(key, FlattenedIndexKey) and (not inner or _wraps(child, inner))


def _is_leaf(x: Any) -> bool:
    return jax.tree_util.all_leaves([x])


def _is_none(x: Any) -> bool:
    return x is None


def _dtype_or_object(x: Any) -> Any:
    """A leaf need not be an array: an Equinox module also holds its activation."""
    known = hasattr(x, "dtype") or isinstance(x, (bool, int, float, complex))
    return _dtypes.dtype_of(x) if known else np.dtype(object)
