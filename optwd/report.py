"""Seeing it: who decays and how fast, before training; what it did, during it."""

import collections
import importlib.util
import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwd import _tree, masks, rates
from optwd._tree import Leaf
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

    Leaves that `masks.standard` cannot classify are listed as undecided, with a ``?``;
    every transformation would raise.

    Args:
      params: the parameters, or anything with their paths, shapes and dtypes.
      mask: who decays; see `decay.linear`.
      weight_decay: λ ≥ 0, a number; of a schedule, its value at the step in question.
      learning_rate: ηₜ ≥ 0, a number. None if the decay is not scaled by it.

    Returns:
      Text, the same for the same arguments. Where standard output is a terminal and rich
      is installed (``pip install optwd[report]``), the same in colour.

    Raises:
      MaskError: as the mask; but not for leaves that are undecided.
      ValueError: a rate that is negative or not finite, a learning rate on its own.

    >>> params = {"Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}
    >>> print(tabulate(params, masks.standard(), weight_decay=0.1, learning_rate=1e-3))
    leaf            shape   dtype    elements  decay  decided by    per step  half-life
    Dense_0/bias    (4,)    float32         4      –  vector               –          –
    Dense_0/kernel  (3, 4)  float32        12      1  named kernel    0.0001      6,931
    decayed: 1 leaf, 12 elements; not decayed: 1 leaf, 4 elements

    Source: none.
    """
    scale = _rate(weight_decay, learning_rate)
    rows = [
        (leaf, factor, why) if _tree.is_inexact(leaf) else (leaf, 0.0, "not floating point")
        for leaf, factor, why in masks.explain(mask, params)
    ]
    header = ("leaf", "shape", "dtype", "elements", "decay", "decided by")
    if scale is not None:
        header += ("per step", "half-life")
    table = [_row(*row, scale) for row in rows]
    return _render([header, *table], [_totals(rows), *_warnings(rows, scale)])


def _rate(weight_decay: Any, learning_rate: Any) -> float | None:
    """The rate of a leaf with multiplier 1; None if it is not asked for."""
    if weight_decay is None and learning_rate is None:
        return None
    if weight_decay is None:
        raise ValueError("tabulate: learning_rate without weight_decay; give both.")
    rate = float(_tree.number("weight_decay", weight_decay))
    if learning_rate is None:
        return rate
    return rate * float(_tree.number("learning_rate", learning_rate))


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


# --- text ----------------------------------------------------------------------------

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


# --- measuring -----------------------------------------------------------------------


class MonitorState(NamedTuple):
    """What was measured in the last step, beside the state of what was measured.

    Attributes:
      inner: the state of the monitored transformation; empty for `monitor_rounding`.
      metrics: from names to float32 arrays of shape (); 0 before the first step.
    """

    inner: Any
    metrics: Mapping[str, jax.Array]


def monitor(
    transformation: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Measure what a transformation does to the updates, and change nothing.

        name/norm_in = ‖u‖    name/norm_added = ‖u' − u‖    name/ratio = added/in

    with ``u'`` what the transformation makes of ``u``, and the Euclidean norm over all
    leaves. Around a decay, the ratio says how strong it is beside the rest of the step.

    Place in the chain: around any part of it. Where nothing is monitored, nothing is
    computed; a monitor costs three passes over the updates.

    Args:
      transformation: any transformation.
      name: under which `metrics` reports; each monitor needs its own.

    Returns:
      The transformation, with state `MonitorState` around its own.

    Raises:
      ValueError: a name that is not a string or is empty; ``update`` inside of
        ``jax.shard_map`` where a leaf may be a shard.

    >>> from optwd import decay
    >>> tx, theta = monitor(decay.linear(0.1), "decay"), jnp.array([10.0])
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(theta), theta)
    >>> print({key: float(value) for key, value in metrics(state).items()})
    {'decay/norm_in': 2.0, 'decay/norm_added': 1.0, 'decay/ratio': 0.5}

    Source: none.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"monitor: name must be a string that says what, got {name!r}.")
    transformation = optax.with_extra_args_support(transformation)

    def measure(norm_in: Any, norm_added: Any) -> dict[str, jax.Array]:
        ratio = jnp.where(norm_added > 0, norm_added / norm_in, 0)
        values = {"norm_in": norm_in, "norm_added": norm_added, "ratio": ratio}
        return {f"{name}/{key}": value for key, value in values.items()}

    def init(params: Any) -> MonitorState:
        zero = jnp.zeros((), jnp.float32)
        return MonitorState(transformation.init(params), measure(zero, zero))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, inner = transformation.update(updates, state.inner, params, **extra)
        _tree.refuse_shards(f"monitor {name!r}", updates, new)
        measured = measure(_tree.norm(updates), _tree.distance(new, updates))
        return new, MonitorState(inner, measured)

    return optax.GradientTransformationExtraArgs(init, update)


def monitor_rounding() -> optax.GradientTransformationExtraArgs:
    """Measure the share of elements whose step is lost to rounding, and change nothing.

        rounding/lost = share of elements with u ≠ 0 and round(θ + u) = θ

    with the rounding of the parameter's dtype, as in ``optax.apply_updates``. Near 1, the
    parameters stand still: see `optwd.compensate_rounding`.

    Place in the chain: last, where the updates are about to be added; inside `in_float32`,
    so that it sees them before they are rounded themselves.

    Returns:
      A transformation with state `MonitorState` that returns the updates as they are.

    Raises:
      ValueError: ``update`` without parameters, or inside of ``jax.shard_map`` where a leaf
        may be a shard.

    >>> tx, theta = monitor_rounding(), jnp.ones(4, jnp.bfloat16)
    >>> u = jnp.array([1e-4, 1e-3, 1e-2, 1e-1])
    >>> _, state = tx.update(u, tx.init(theta), theta)
    >>> print(metrics(state)["rounding/lost"])
    0.5

    Source: none.
    """

    def init(params: Any) -> MonitorState:
        del params
        return MonitorState((), {"rounding/lost": jnp.zeros((), jnp.float32)})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del state, extra
        if params is None:
            raise ValueError(
                "monitor_rounding needs the parameters: "
                "call update(updates, state, params)."
            )
        _tree.refuse_shards("monitor_rounding", updates, params)
        lost = _tree.share_lost(updates, params)
        return updates, MonitorState((), {"rounding/lost": lost})

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(state: Any) -> dict[str, jax.Array]:
    """Everything that monitors recorded, for any logger.

    Args:
      state: the state of an optimizer, of any depth (``optax.chain``, ``partition``,
        ``masked``, ``MultiSteps``, ``inject_hyperparams``, …), an ``nnx.Optimizer``, or
        whatever else holds one.

    Returns:
      A new dict from names to arrays of shape (), empty where nothing is monitored. No
      device is waited for.

    Raises:
      ValueError: two monitors of one name.

    >>> metrics(optax.chain(optax.scale(1), monitor_rounding()).init(jnp.ones(2)))
    {'rounding/lost': Array(0., dtype=float32)}

    Source: none.
    """
    found: dict[str, jax.Array] = {}
    for monitored in _tree.instances(state, MonitorState):
        for name, value in monitored.metrics.items():
            if name in found:
                raise ValueError(
                    f"two monitors record {name!r}; give each its own name, as in "
                    "monitor(…, 'decay of the head')."
                )
            (found[name],) = jax.tree.leaves(value)  # nnx.Optimizer boxes every leaf
    return found
