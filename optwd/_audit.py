"""What anyone's optimizer does with its weight decay, found by running it."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from optwd import _dtypes, _measure, _paths, _probe, _verdict, masks
from optwd._probe import Tree
from optwd._trial import LeafAudit, Trial
from optwd.compat import CONVENTIONS, Convention


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an optimizer does with its weight decay; ``print`` it to read it.

    Attributes:
      leaves: a `LeafAudit` for each path.
      like: the names in `compat.CONVENTIONS` of which nothing seen differs. ε and the
        direction of the step are not compared.
      problems: what looks wrong, each with its fix; empty if nothing does.
      notes: what the audit could not find out, and why.
    """

    leaves: Mapping[str, LeafAudit]
    like: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = (
            "leaf",
            "form",
            "rate per step",
            "η",
            "schedule",
            "λ",
            "acts on",
            "bf16",
            "own",
        )
        rows = [head, *(_row(path, leaf) for path, leaf in self.leaves.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        lines += [f"{p}: {x.figures}" for p, x in self.leaves.items() if x.figures]
        lines += [f"like: {', '.join(self.like) or 'no convention in the table'}"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems] or ["no problems"]
        return "\n".join(line.rstrip() for line in lines)


def audit(
    make: Callable[[Any, Any], Any],
    params: Any = None,
    *,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.1,
    steps: int = 4,
) -> Audit:
    """Find out by running it what an optimizer does with its weight decay.

        Δ(λ) − Δ(0), the updates with the decay less those without, on the same gradients
        and on weights that are held still: this difference is the decay

    It is repeated with larger gradients of the other sign, with larger weights, with
    weights that move, with the other leaves changed, and with the learning rate doubled,
    its schedule halved and the weight decay doubled. From that follows for each leaf

    - ``"none"``: no difference;
    - ``"decoupled"``: ``−ρθ``, whatever the gradients are;
    - ``"cautious"``: ``−ρθ`` where the step shrinks the weight, nothing elsewhere;
    - ``"anchored"``: ``−ρ(θ − θ₀)``, with θ₀ the weights at ``init``;
    - ``"coupled"``: what ``λθ`` added to the gradient gives, or what fades as gradients
      grow;
    - ``"entangled"``: none of these, and not the same for larger weights: LAMB, norms;
    - ``"unclear"``: none of these; ``figures`` says what was seen.

    The runs are in float64 on the CPU. SGD without momentum is decoupled, since L2 in the
    gradient does the same there; its ``l2`` is 1.

    Args:
      make: ``make(learning_rate, weight_decay)`` returns an optimizer, any transformation
        of Optax or a `Loop`. It is called with numbers, and with a schedule for the
        learning rate, largest at step 0; if it refuses that, a note says so.
      params: leaves to run on: arrays or shapes. Long axes are cut, and of values it only
        matters which leaves are all 0. By default a kernel, a bias, the scale of a norm,
        an embedding, and a stack of three layers.
      learning_rate: η > 0.
      weight_decay: λ > 0.
      steps: how many, ≥ 2. An optimizer that waits, such as ``optax.MultiSteps``, needs
        enough of them for two updates.

    Returns:
      An `Audit`. ``audit(…).problems == ()`` is a test to write.

    Raises:
      ValueError: an argument outside its domain, or an optimizer that raises.
      TypeError: `make` returned neither an optimizer nor a `Loop`.

    >>> import optax
    >>> found = audit(lambda lr, wd: optax.lion(lr, weight_decay=wd), {"w": jnp.ones(3)})
    >>> found.leaves["w"].form, found.leaves["w"].powers
    ('decoupled', Powers(learning_rate=1.0, schedule=1.0, weight_decay=1.0))
    """
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not 0 < value < math.inf:
            raise ValueError(f"audit: {name} must be a number > 0, got {value!r}.")
    if steps < 2:
        raise ValueError(f"audit: steps must be 2 or more, got {steps!r}.")
    params = _default() if params is None else params
    tree = Tree.like(params)
    if not tree.paths:
        raise ValueError("audit: params hold no leaf; give a tree of arrays or shapes.")
    with _probe.exactly():
        trial = Trial(make, tree, learning_rate, weight_decay, steps)
        leaves = dict(zip(tree.paths, trial.leaves(), strict=True))
        others = [tree.paths[i] for i in trial.dependent()]
        stuck = [tree.paths[i] for i in trial.stuck(_zeros(params))]
    return Audit(
        MappingProxyType(leaves),
        _like(leaves.values(), learning_rate, weight_decay),
        tuple(_problems(leaves, params, others, stuck, trial.still(), weight_decay)),
        tuple(trial.notes),
    )


def _default() -> Any:
    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return {
        "dense": {"kernel": leaf(3, 4), "bias": leaf(4)},
        "norm": {"scale": leaf(4)},
        "embed": {"embedding": leaf(3, 4)},
        "blocks": {"kernel": leaf(3, 3, 4), "scale": leaf(3, 4)},
    }


# --- conventions ---------------------------------------------------------------------

_POWERS = {  # of the learning rate and of its schedule
    "learning rate": (1.0, 1.0),
    "schedule": (0.0, 1.0),
    "learning rate × schedule": (1.0, 2.0),
    "learning rate²": (2.0, 2.0),
    "nothing": (0.0, 0.0),
}


def _like(leaves: Iterable[LeafAudit], eta: float, lam: float) -> tuple[str, ...]:
    """The conventions of which no decayed leaf differs."""
    decayed = [leaf for leaf in leaves if leaf.form != "none"]
    return tuple(
        row.name
        for row in CONVENTIONS.values()
        if decayed and all(_matches(leaf, row, eta, lam) for leaf in decayed)
    )


def _matches(leaf: LeafAudit, row: Convention, eta: float, lam: float) -> bool:
    if row.acts_on == "gradient":
        form = "decoupled" if row.plain else "coupled"
        return leaf.form == form and leaf.l2 == row.factor
    form = "cautious" if "where" in row.acts_on else "decoupled"
    powers = (*_POWERS[row.scaled_by], 1.0)
    rate = row.factor * lam * eta ** powers[0]
    return (
        leaf.form == form
        and f"{leaf.acts_on} θ" == row.acts_on.removesuffix(" where uθ ≥ 0")
        and not leaf.remembers
        and all(seen in (None, p) for seen, p in zip(leaf.powers, powers, strict=True))
        and all(
            math.isclose(seen, rate, rel_tol=1e-5, abs_tol=error)
            for seen, error in zip(leaf.rates, leaf.errors, strict=True)
        )
    )


# --- problems ------------------------------------------------------------------------


def _problems(
    leaves: Mapping[str, LeafAudit],
    params: Any,
    others: list[str],
    stuck: list[str],
    still: bool,
    lam: float,
) -> Iterable[str]:
    def those(true: Callable[[LeafAudit], Any]) -> list[str]:
        return [path for path, leaf in leaves.items() if true(leaf)]

    forms = {leaf.form for leaf in leaves.values()}
    if still:
        yield (
            "nothing moves: the updates are 0 in every step. Give more `steps` if the "
            "optimizer waits for them."
        )
    elif forms == {"none"}:
        yield (
            f"nothing decays with weight_decay={lam:g}. Hand the number on to the "
            "optimizer, and see what its mask matches: optwd.tabulate(params, mask)."
        )
    if paths := those(lambda x: x.form == "unclear"):
        yield f"unclear: {_names(paths)}; {leaves[paths[0]].figures}."
    if paths := those(lambda x: min(_known(x), default=0) < 0 or (x.l2 or 0) < 0):
        yield (
            f"weights grow: the decay has the wrong sign on {_names(paths)}. Place it "
            "before the sign flip, or use optwd.with_weight_decay."
        )
    if paths := those(lambda x: max(_known(x), default=0) > 1):
        yield (
            f"rates above 1 flip the sign of the weights on {_names(paths)}. Lower the "
            "weight decay; is it meant to be multiplied by the learning rate?"
        )
    if paths := those(lambda x: len(x.rates) > 1 and x.rates[0] and not any(x.rates[1:])):
        yield (
            f"decay in the first step only, on {_names(paths)}. Look at what counts the "
            "steps: a state that is not handed on, a schedule that ends."
        )
    places = {  # of which kind the decay of a leaf is
        "the gradient": those(lambda x: x.acts_on == "gradient"),
        "the old weights": those(lambda x: x.acts_on == "old"),
        "the new weights": those(lambda x: x.acts_on == "new"),
    }
    if len(met := {kind: paths for kind, paths in places.items() if paths}) > 1:
        kinds = "; ".join(f"on {kind} for {_names(paths)}" for kind, paths in met.items())
        yield (
            f"more than one kind of decay: {kinds}. One number then means different "
            "things: use one kind, or give each a number of its own."
        )
    decided = [
        (leaf.path, why)
        for leaf, factor, why in masks.explain(masks.standard(), params)
        if factor == 0 and leaves[leaf.path].form not in ("none", "unclear")
    ]
    if paths := [path for path, why in decided if why == "not floating point"]:
        yield f"integers are changed: {_names(paths)}. Leave them out with a mask."
    if paths := [
        path
        for path, why in decided
        if why != "not floating point"
        and not re.search("emb|wte|wpe|pos|token|cls", path.lower())
    ]:
        yield (
            f"norms and biases decay: {_names(paths)}. Give the optimizer a mask, such as "
            "optwd.masks.standard()."
        )
    if paths := those(lambda x: x.survives.own is not None and x.survives.own < 0.9):
        yield (
            f"lost in the rounding of the parameters: {_names(paths)}. Wrap the optimizer "
            "in optwd.compensate_rounding, or keep the parameters in float32."
        )
    if stuck:
        yield (
            f"left alone because they start at 0: {_names(stuck)}. A norm that is taken at "
            "`init` is 0 there: give decay.to_norm a radius, or a mask without them."
        )
    if others:
        yield (
            f"depends on other leaves: the decay of {_names(others)} changes when only "
            "they do. Unless one step size for all is meant (Prodigy), look for a norm "
            "or a state that leaves share."
        )


def _zeros(params: Any) -> list[int]:
    """The leaves of which the values are given, and are all 0."""
    return [
        i
        for i, x in enumerate(_paths.by_path(params).values())
        if _dtypes.is_inexact(x) and _measure.is_zero(x)
    ]


def _known(leaf: LeafAudit) -> list[float]:
    return [rate for rate in leaf.rates if rate == rate]


def _names(paths: list[str]) -> str:
    shown = ", ".join(paths[:4])
    return f"{shown} and {len(paths) - 4} more" if len(paths) > 4 else shown


# --- text ----------------------------------------------------------------------------


def _row(path: str, leaf: LeafAudit) -> tuple[str, ...]:
    if leaf.form == "none":
        return (path, "none", *("–",) * 7)
    powers = ["?" if p is None else f"{p:g}" for p in leaf.powers]
    shares = ["–" if s is None else f"{s:.0%}" for s in leaf.survives]
    acts = {"old": "old θ", "new": "new θ", None: "–"}.get(leaf.acts_on, "gradient")
    return (path, leaf.form, _verdict.text(leaf.rates), *powers, acts, *shares)
