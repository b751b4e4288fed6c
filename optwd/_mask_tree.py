"""Masks that are trees: of bools or floats, or a prefix of one."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optwd import _check, _paths
from optwd._paths import Leaf, PyTree


def broadcast(mask: PyTree, params: PyTree) -> PyTree:
    """A tree of bools or floats, or a prefix of one, as one Python float per parameter.

    Where the containers differ (dict and FrozenDict), leaves are aligned by their paths.
    """
    factors = [
        (path, multiplier(path, x))
        for path, x, _ in _paths.walk(mask)
        if jax.tree_util.all_leaves([x])
    ]
    try:
        subtrees = jax.tree.structure(mask).flatten_up_to(params)
    except (ValueError, TypeError, KeyError):
        return _paths.unflatten(_by_path(dict(factors), _paths.leaves(params)), params)
    per_leaf = (
        [factor] * len(jax.tree.leaves(subtree))
        for (_, factor), subtree in zip(factors, subtrees, strict=True)
    )
    return _paths.unflatten(itertools.chain.from_iterable(per_leaf), params)


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
            f"{_paths.difference('mask', extra, 'parameters', missing)}"
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
    if _check.is_real(leaf) and jnp.shape(leaf) == () and 0.0 <= float(leaf) < math.inf:
        return float(leaf)
    raise ValueError(
        f"{path}: a mask leaf must be True, False or a finite number ≥ 0, got {leaf!r}."
    )
