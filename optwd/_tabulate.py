"""The table: which leaves decay, and how fast."""

from __future__ import annotations

import collections
import importlib.util
import math
import sys
from typing import Any

import jax.numpy as jnp
import optax

from optwd import _check, _dtypes, _measure, _paths, masks, rates
from optwd._paths import Leaf
from optwd.masks import MaskLike

Row = tuple[str, ...]


def tabulate(
    params: Any,
    mask: MaskLike = None,
    *,
    weight_decay: float | None = None,
    learning_rate: float | None = None,
) -> str:
    """A table of what a mask does to every leaf, and of how fast that leaf decays.

        per step = ρ = learning_rate × weight_decay × the mask's multiplier
        half-life = ln 2 / −ln(1 − ρ) steps, and `flips` for ρ > 1, which changes signs

    A ``!`` marks a rate below half an ulp of the leaf's dtype: ``θ − ρθ`` then rounds back
    to ``θ`` for some weights or for all, and a line below says so.

    Matrices that decay and are 0, whole leaves or slices of a stack, are named below too:
    `decay.to_norm`, which keeps the norm that they start with, leaves them alone.

    Leaves that `masks.standard` cannot classify are listed as undecided, with a ``?``;
    every transformation would raise.

    Args:
      params: the parameters, or anything with their paths, shapes and dtypes. What is 0 is
        known of arrays that this process holds.
      mask: which leaves decay; see `decay.linear`.
      weight_decay: λ ≥ 0, a number; of a schedule, its value at the step in question.
      learning_rate: ηₜ ≥ 0, a number. None if the decay is not scaled by it.

    Returns:
      Text, the same for the same arguments. Where standard output is a terminal and rich
      is installed (``pip install optwd[report]``), the same in color.

    Raises:
      MaskError: as the mask; but not for leaves that are undecided.
      ValueError: a rate that is negative or not finite, a learning rate on its own.

    >>> import jax.numpy as jnp
    >>> from optwd import masks
    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    >>> print(tabulate(params, masks.standard(), weight_decay=0.1, learning_rate=1e-3))
    leaf            shape   dtype    elements  decay  decided by    per step  half-life
    Dense_0/bias    (4,)    float32         4      –  vector               –          –
    Dense_0/kernel  (3, 4)  float32        12      1  named kernel    0.0001      6,931
    decayed: 1 leaf, 12 elements; not decayed: 1 leaf, 4 elements

    """
    for node in _paths.instances(params, tuple):
        if hasattr(optax, type(node).__name__) and hasattr(node, "_fields"):
            raise TypeError(
                "tabulate takes the parameters, not an optimizer's state; this holds a "
                f"{type(node).__name__}."
            )
    scale = _rate(weight_decay, learning_rate)
    rows = [
        (leaf, factor, why)
        if _dtypes.is_inexact(leaf)
        else (leaf, 0.0, "not floating point")
        for leaf, factor, why in masks.explain(mask, params)
    ]
    header = ("leaf", "shape", "dtype", "elements", "decay", "decided by")
    if scale is not None:
        header += ("per step", "half-life")
    table = [_row(*row, scale) for row in rows]
    notes = [_totals(rows), *_warnings(rows, scale), *_zeros(rows, params)]
    return _render([header, *table], notes)


def _rate(weight_decay: Any, learning_rate: Any) -> float | None:
    """The rate of a leaf with multiplier 1; None if it is not asked for."""
    given = {"weight_decay": weight_decay, "learning_rate": learning_rate}
    for name, value in given.items():
        if callable(value):
            raise TypeError(
                f"tabulate: {name} must be a number here, got {value!r}; of a schedule "
                "give its value at one step, such as schedule(0)."
            )
    if weight_decay is None and learning_rate is None:
        return None
    if weight_decay is None:
        raise ValueError("tabulate: learning_rate without weight_decay; give both.")
    rate = float(_check.number("weight_decay", weight_decay))
    if learning_rate is None:
        return rate
    return rate * float(_check.number("learning_rate", learning_rate))


def _row(leaf: Leaf, factor: float | None, why: str, scale: float | None) -> Row:
    cells = (
        leaf.path,
        str(leaf.shape),
        str(leaf.dtype),
        f"{_elements(leaf):,}",
        "?" if factor is None else f"{factor:g}" if factor else "–",
        why,
    )
    if scale is None:
        return cells
    if not (factor and scale):
        return (*cells, "–", "–")
    rho = factor * scale
    lost = "! " * (rho < _half_ulp(leaf))
    return (*cells, f"{lost}{rho:.3g}", _steps(rho))


def _steps(rho: float) -> str:
    if rho > 1.0:
        return "flips"  # past zero: a rate that no half-life describes
    steps = rates.half_life(1.0, rho)
    return f"{steps:,.0f}" if steps >= 10 else f"{steps:.2g}"


def _elements(leaf: Leaf) -> int:
    return math.prod(leaf.shape or ())


def _half_ulp(leaf: Leaf) -> float:
    """Relative to the weights that suffer most; a quarter for those that suffer least."""
    return float(jnp.finfo(leaf.dtype).eps) / 2


def _totals(rows: list[tuple[Leaf, float | None, str]]) -> str:
    parts = []
    for name, chosen in (
        ("decayed", [leaf for leaf, k, _ in rows if k]),
        ("not decayed", [leaf for leaf, k, _ in rows if k == 0.0]),
        ("undecided", [leaf for leaf, k, _ in rows if k is None]),
    ):
        if chosen or name != "undecided":
            leaves = f"{len(chosen):,} {'leaf' if len(chosen) == 1 else 'leaves'}"
            parts.append(f"{name}: {leaves}, {sum(map(_elements, chosen)):,} elements")
    return "; ".join(parts)


def _warnings(rows: list[tuple[Leaf, float | None, str]], scale: float | None) -> list[str]:
    lost = [leaf for leaf, k, _ in rows if k and scale and k * scale < _half_ulp(leaf)]
    counts = collections.Counter((str(leaf.dtype), _half_ulp(leaf)) for leaf in lost)
    return [
        f"! {count} {dtype}: below half an ulp ({half:.2g}), so plain rounding undoes the "
        "decay of some weights or all; see optwd.compensate_rounding"
        for (dtype, half), count in counts.items()
    ]


def _zeros(rows: list[tuple[Leaf, float | None, str]], params: Any) -> list[str]:
    values = _paths.by_path(params)
    parts = {
        leaf.path: part
        for leaf, k, _ in rows
        if k and leaf.shape and len(leaf.shape) > 1 and (part := _zero(values[leaf.path]))
    }
    return [
        f"0: {path}, {part}: a matrix that starts at 0 is left alone by decay.to_norm(); "
        "give it a radius"
        for path, part in parts.items()
    ]


def _zero(x: Any) -> str:
    """How much of a matrix or a stack is 0; empty if nothing is, or values are unknown."""
    axes = tuple(range(1, len(x.shape))) if len(x.shape) > 2 else None
    zero = _measure.is_zero(x, axes)
    if zero is None or not zero.any() or not x.size:
        return ""
    return "all of it" if zero.all() else f"{zero.sum()} of {zero.size} slices"


_RIGHT = {"elements", "decay", "per step", "half-life"}


def _render(table: list[Row], notes: list[str]) -> str:
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        return _render_in_colour(table, notes)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if name in _RIGHT else cell.ljust(width)
            for name, cell, width in zip(table[0], row, widths, strict=True)
        ).rstrip()
        for row in table
    )
    return "\n".join([*lines, *notes])


def _render_in_colour(table: list[Row], notes: list[str]) -> str:
    """For a terminal: undecided leaves in red, those that do not decay dim."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, *rows = table
    grid = Table(box=None, pad_edge=False)
    for name in header:
        grid.add_column(
            name, justify="right" if name in _RIGHT else "left", overflow="fold"
        )
    for row in rows:
        grid.add_row(*map(Text, row), style={"?": "red", "–": "dim"}.get(row[4]))
    console = Console()
    with console.capture() as captured:
        console.print(grid, *(Text(note, "bold") for note in notes), sep="\n")
    return captured.get().rstrip("\n")
