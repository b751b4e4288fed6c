"""What each kind of mask decides, leaf by leaf, and the errors of those that cannot."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping

from optwd import _globs, _standard
from optwd._paths import Leaf

Decision = tuple[float | None, str]  # the multiplier, None for undecided, and what decided
Rule = Callable[[list[Leaf]], list[Decision]]


class MaskError(ValueError):
    """A mask that cannot be what was meant, such as a pattern that matches no leaf."""


MaskError.__module__ = "optwd.masks"  # where users find it, and tracebacks name it


def path(globs: tuple[str, ...], leaves: list[Leaf]) -> list[Decision]:
    """1 where a glob matches, else 0."""
    first = _first(globs, [_match_glob(glob, leaves) for glob in globs])
    return [(0.0, "no pattern") if glob is None else (1.0, glob) for glob in first]


def regex(patterns: tuple[str, ...], leaves: list[Leaf]) -> list[Decision]:
    """1 where a regular expression matches, else 0."""
    first = _first(patterns, [_match_regex(pattern, leaves) for pattern in patterns])
    return [(0.0, "no pattern") if p is None else (1.0, p) for p in first]


def ndim(minimum: int, stacked: tuple[str, ...], leaves: list[Leaf]) -> list[Decision]:
    """1 for a leaf with that many axes, layers not counted."""
    axes = [
        len(leaf.shape or ()) - n
        for leaf, n in zip(leaves, stacked_axes(stacked, leaves), strict=True)
    ]
    return [
        (1.0, f"ndim ≥ {minimum}") if n >= minimum else (0.0, f"ndim = {n}") for n in axes
    ]


def stacked_axes(globs: tuple[str, ...], leaves: list[Leaf]) -> list[int]:
    """How many leading axes of each leaf count layers: one for every glob that matches."""
    rows = [_match_glob(glob, leaves) for glob in globs]
    return [sum(row[i] for row in rows) for i in range(len(leaves))]


def standard(leaves: list[Leaf]) -> list[Decision]:
    """1 for a matrix, 0 for a bias, a scale or an embedding, None for what is unknown."""
    shape_at = {leaf.path: leaf.shape for leaf in leaves}.get
    answers = (_standard.classify(leaf, shape_at) for leaf in leaves)
    return [(None if yes is None else float(yes), why) for yes, why in answers]


def multipliers(
    factor: Mapping[str, float], default: float, leaves: list[Leaf]
) -> list[Decision]:
    """The factor of the first glob that matches."""
    rows = [_match_glob(glob, leaves) for glob in factor]
    first = _first(factor, rows)
    for glob, row in zip(factor, rows, strict=True):
        if any(row) and glob not in first:
            raise MaskError(
                f"the pattern {glob!r} is never reached: every leaf that it matches "
                "belongs to an earlier pattern. Put it before them, or remove it."
            )
    return [
        (default, "default") if glob is None else (factor[glob], glob) for glob in first
    ]


def combined(
    by: Callable[..., Decision], rules: list[Rule], leaves: list[Leaf]
) -> list[Decision]:
    """What `both`, `either` or `negated` makes of the decisions of other masks."""
    return list(map(by, *(rule(leaves) for rule in rules)))


def both(a: Decision, b: Decision) -> Decision:
    """The product; a zero decides alone, even where the other is undecided."""
    (x, _), (y, _) = a, b
    if x == 0.0 or y == 0.0:
        return a if x == 0.0 else b
    if x is None or y is None:
        return a if x is None else b
    return x * y, f"{a[1]} & {b[1]}"


def either(a: Decision, b: Decision) -> Decision:
    """The larger; what is undecided gives way to whatever is above zero."""
    (x, _), (y, _) = a, b
    if x and y:
        return a if x >= y else b
    if x or y:
        return a if x else b
    return a if x is None else b


def negated(a: Decision) -> Decision:
    """1 where the multiplier is 0, else 0."""
    factor, why = a
    return None if factor is None else float(factor == 0.0), f"not: {why}"


def undecided(leaves: list[Leaf], others: list[str]) -> MaskError:
    """The error that lists all these leaves, and the patterns that settle them.

    The patterns match none of the paths in `others`.
    """
    alike: dict[tuple[str, object], list[str]] = {}
    for leaf in leaves:
        alike.setdefault((_globs.numbered(leaf.path), leaf.shape), []).append(leaf.path)
    listed = (
        f"{same[0]} {shape}" if len(same) == 1 else f"{len(same)} × {name} {shape}"
        for (name, shape), same in alike.items()
    )
    covering = _globs.covering([leaf.path for leaf in leaves], others, at_most=10)
    globs = ", ".join(map(repr, covering))
    return MaskError(
        "standard() cannot tell by name and shape whether these leaves are matrices: "
        f"{', '.join(listed)}. Say it: standard() | path({globs}) decays them, "
        f"standard() & ~path({globs}) does not."
    )


# --- patterns that match -------------------------------------------------------------


def _first(patterns: Iterable[str], rows: list[list[bool]]) -> list[str | None]:
    """For every leaf the first of the patterns that matches it."""
    patterns = tuple(patterns)
    return [
        next(itertools.compress(patterns, column), None)
        for column in zip(*rows, strict=True)
    ]


def _match_glob(glob: str, leaves: list[Leaf]) -> list[bool]:
    row = [_globs.matches(glob, leaf.path) for leaf in leaves]
    absent = [leaf.path for leaf in leaves if leaf.shape is None]
    if not any(row) and not any(_globs.leads_into(glob, path) for path in absent):
        paths = [leaf.path for leaf in leaves]
        raise _no_leaf(glob, _globs.meant(glob, paths), paths)
    return row


def _match_regex(pattern: str, leaves: list[Leaf]) -> list[bool]:
    compiled = re.compile(pattern)
    row = [compiled.fullmatch(leaf.path) is not None for leaf in leaves]
    if not any(row):
        found = any(compiled.search(leaf.path) for leaf in leaves)
        meant = f".*{pattern}.*" if found else None
        raise _no_leaf(pattern, meant, [leaf.path for leaf in leaves])
    return row


def _no_leaf(pattern: str, meant: str | None, paths: list[str]) -> MaskError:
    fix = "Correct the pattern, or remove it" if meant is None else f"Say {meant!r}"
    return MaskError(
        f"the pattern {pattern!r} matches no leaf; nearest: "
        f"{', '.join(_globs.nearest(pattern, paths))}. {fix}; it must match the whole path."
    )
