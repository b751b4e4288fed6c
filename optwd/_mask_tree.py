"""Masks that are trees: of bools or floats, or a prefix of one."""

import collections
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optwd import _check, _paths
from optwd._paths import Leaf, PyTree


def factors(mask: PyTree, params: PyTree) -> list[float]:
    """The multiplier of every leaf, from a tree of bools or floats or a prefix of one.

    Where the containers differ (dict and FrozenDict), leaves are aligned by their paths.
    """
    given = [
        (path, multiplier(path, x))
        for path, x, _ in _paths.walk(mask)
        if jax.tree_util.all_leaves([x])
    ]
    try:
        subtrees = jax.tree.structure(mask).flatten_up_to(params)
    except (ValueError, TypeError, KeyError):
        return _by_path(given, _paths.leaves(params))
    per_leaf = (
        [factor] * len(jax.tree.leaves(subtree))
        for (_, factor), subtree in zip(given, subtrees, strict=True)
    )
    return list(itertools.chain.from_iterable(per_leaf))


def _by_path(given: list[tuple[str, float]], params: list[Leaf]) -> list[float]:
    """The multiplier at each leaf's path, or at the beginning of its path."""
    at = dict(given)
    held = [leaf.path for leaf in params if leaf.shape is not None]
    for what, all_paths in (("mask", [m for m, _ in given]), ("parameters", held)):
        _check_distinct(what, all_paths)
    owners = [next((m for m in _beginnings(path) if m in at), None) for path in held]
    missing = [path for path, owner in zip(held, owners, strict=True) if owner is None]
    # a mask may say what happens to leaves that are not here: None, or another's
    absent = {leaf.path for leaf in params if leaf.shape is None}
    known = {m for path in absent for m in _beginnings(path)}.union(owners)
    extra = [m for m in at if m not in known and absent.isdisjoint(_beginnings(m))]
    if missing or extra:
        globs = any("*" in m for m in extra)
        raise ValueError(
            "the mask must be a tree like the parameters, or a prefix of it: "
            f"{_paths.difference('mask', extra, 'parameters', missing)}"
            f"{' For globs as keys say masks.multipliers.' if globs else ''}"
        )
    return [at[owner] for owner in owners if owner is not None]


def _check_distinct(what: str, all_paths: list[str]) -> None:
    """Raise if two leaves have one path, as `{"a/b": …, "a": {"b": …}}` has."""
    [(path, times)] = collections.Counter(all_paths).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(
            f"{path}: {times} leaves of the {what} have this path, so the mask cannot be "
            "matched to the parameters by paths. Give it in the parameters' own containers "
            "(dict or FrozenDict), or rename a key that has a slash."
        )


def _beginnings(path: str) -> list[str]:
    """`a/b` begins with `<root>`, `a` and `a/b`."""
    segments = path.split("/")
    return ["<root>", *("/".join(segments[: n + 1]) for n in range(len(segments)))]


def multiplier(path: str, leaf: Any) -> float:
    """A leaf of a mask as a Python float, or an error that names its path."""
    if isinstance(leaf, Tracer):
        raise ValueError(
            f"{path}: the mask depends on a traced value. Which leaves decay must be known "
            "when the step is traced: compute the mask outside jit, from paths, shapes and "
            "dtypes."
        )
    if _check.is_real(leaf) and jnp.shape(leaf) == () and 0.0 <= float(leaf) < math.inf:
        return float(leaf)
    patterns = " For patterns say masks.path." if isinstance(leaf, str) else ""
    raise ValueError(
        f"{path}: a mask leaf must be True, False or a finite number ≥ 0, got {leaf!r}."
        f"{patterns}"
    )
