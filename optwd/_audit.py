"""What anyone's optimizer does with its weight decay, found by running it."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optwd import _probe, _verdict, masks
from optwd._probe import Feed, Loop, Runner, Seen, Tree, largest
from optwd._verdict import ActsOn, Form, Verdict
from optwd.compat import CONVENTIONS, Convention

_LONG = 128  # steps in 16 bits: a rate of 1e-3 then takes off 30 times what rounding does
_LOUD = -1000.0  # of the other sign, so that what is cautious chooses the other weights


class Powers(NamedTuple):
    """With which power each enters the rate of a step; None where it cannot be told.

    Attributes:
      learning_rate: when all of the learning rate is doubled, a schedule with its peak.
      schedule: when a schedule has fallen to half of its peak.
      weight_decay: when the weight decay is doubled.
    """

    learning_rate: float | None = None
    schedule: float | None = None
    weight_decay: float | None = None


class Survives(NamedTuple):
    """The share of the decay that is left after rounding; None where it was not seen.

    Attributes:
      bfloat16: with parameters in bfloat16.
      own: with parameters in the dtype that the leaf has in ``params``.
    """

    bfloat16: float | None = None
    own: float | None = None


@dataclasses.dataclass(frozen=True)
class LeafAudit:
    """What the decay does to one leaf; see `audit` for the forms.

    Attributes:
      form: what it is.
      rates: ρ of each step, where the form has one.
      powers: see `Powers`.
      acts_on: the weights before or after the step, or the gradient.
      l2: c where the decay equals adding ``c·λθ`` to the gradient, None where no c does.
      remembers: whether the decay of earlier weights is in it too, through a momentum or
        an average.
      survives: see `Survives`.
      figures: what was seen, where the form does not say it all.
    """

    form: Form
    rates: tuple[float, ...] = ()
    powers: Powers = Powers()
    acts_on: ActsOn | None = None
    l2: float | None = None
    remembers: bool = False
    survives: Survives = Survives()
    figures: str = ""


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
        head = ("leaf", "form", "rate per step", "η", "schedule", "λ", "acts on", "bf16", "own")
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
    - ``"unclear"``: none of all that; ``figures`` says what was seen.

    The runs are in float64 on the CPU. SGD without momentum is decoupled, since L2 in the
    gradient does the same there; its ``l2`` is 1.

    Args:
      make: ``make(learning_rate, weight_decay)`` returns an optimizer, any transformation
        of Optax or a `Loop`. It is called with numbers, and with a schedule for the
        learning rate, largest at step 0; if it refuses that, a note says so.
      params: leaves to run on: arrays or shapes. Long axes are cut. By default a kernel, a
        bias, the scale of a norm, an embedding, and a stack of two layers.
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
    >>> found = audit(lambda lr, wd: optax.adamw(lr, weight_decay=wd, mask={"w": 1, "b": 0}),
    ...               {"w": np.ones((2, 3)), "b": np.ones(3)})
    >>> found.leaves["w"].form, found.leaves["w"].powers, found.leaves["b"].form
    ('decoupled', Powers(learning_rate=1.0, schedule=1.0, weight_decay=1.0), 'none')
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
        return _Run(make, tree, learning_rate, weight_decay, steps).report(params)


def _default() -> Any:
    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return {
        "dense": {"kernel": leaf(3, 4), "bias": leaf(4)},
        "norm": {"scale": leaf(4)},
        "embed": {"embedding": leaf(3, 4)},
        "blocks": {"kernel": leaf(3, 3, 4), "scale": leaf(3, 4)},
    }


class _Run:
    """One audit under way."""

    def __init__(self, make: Any, tree: Tree, eta: float, lam: float, steps: int):
        self.make, self.tree, self.eta, self.lam, self.steps = make, tree, eta, lam, steps
        self.one, self.zero = self.runner(eta, lam, True), self.runner(eta, 0.0, True)
        plain, every = _probe.feed(tree, steps), range(len(tree.paths))
        self.feeds = {
            "plain": plain,
            "louder": _probe.scaled(plain, tree, every, weights=1.0, gradients=_LOUD),
            "larger": _probe.scaled(plain, tree, every, weights=2.0, gradients=1.0),
            "moved": _probe.moved(plain, tree),
        }
        self.seen = {k: _probe.compare(self.one, self.zero, f) for k, f in self.feeds.items()}
        self.repeats = _repeats(self.zero, plain)
        self.l2 = self.penalties(self.one, self.zero, lam, self.seen["moved"])
        self.verdicts = [
            _verdict.judge({k: seen[i] for k, seen in self.seen.items()}, self.l2[i])
            for i in every
        ]
        for i, drift in enumerate(_drift(self.one, self.zero, plain)):
            if self.verdicts[i].form == "none" and drift:
                figures = (
                    "no decay while the weights are held still, but after "
                    f"{steps} steps of its own they differ by {drift:.3g}"
                )
                self.verdicts[i] = Verdict("unclear", figures=figures)
        self.notes: list[str] = []

    def runner(self, eta: Any, lam: float, compiled: bool = False) -> Runner:
        """What `make` returns for this learning rate and weight decay."""
        name = f"make({'a schedule' if callable(eta) else f'{eta:g}'}, {lam:g})"
        try:
            made = self.make(eta, lam)
        except Exception as error:
            raise ValueError(
                f"audit: {name} raised {type(error).__name__}: {error}\n`make` must take any "
                "learning rate > 0, and any weight decay ≥ 0, also 0."
            ) from error
        return Runner(self.tree, made, name, compiled=compiled)

    def penalties(
        self, one: Runner, zero: Runner, lam: float, seen: list[Seen], factors=(1, 2, -1, -2)
    ) -> list[float | None]:
        """C of each leaf whose updates are those with ``c·λθ`` in the gradient."""
        decays = [not _verdict.is_none(s) and self.tree.is_floating(i) for i, s in enumerate(seen)]
        found: list[float | None] = [None] * len(decays)
        if not any(decays):
            return found
        updates = one(self.feeds["moved"])
        for c in factors:
            f = _probe.penalised(self.feeds["moved"], [c * lam * d for d in decays])
            penalised = zero(f)
            for i, s in enumerate(seen):
                a, b = ([u[i] for u in x] for x in (updates, penalised))
                if decays[i] and found[i] is None and _verdict.is_penalty(a, b, s):
                    found[i] = float(c)
            if all(c is not None for c, d in zip(found, decays, strict=True) if d):
                break
        return found

    # --- powers ----------------------------------------------------------------------

    def powers(self) -> list[Powers]:
        """How each leaf's decay follows the hyperparameters."""
        if all(v.form in ("none", "unclear") for v in self.verdicts):
            return [Powers()] * len(self.verdicts)
        by_rate = self.vary(2 * self.eta, self.lam, _verdict.power)
        by_decay = self.vary(self.eta, 2 * self.lam, _verdict.power, self.zero)
        try:
            by_schedule = self.vary(self.schedule, self.lam, _verdict.schedule_power)
        except (ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            self.notes.append(f"no power of the schedule, for make refused one: {reason}")
            by_schedule = [None] * len(self.verdicts)
        for i, (whole, part) in enumerate(zip(by_rate, by_schedule, strict=True)):
            if self.verdicts[i].form == "coupled" and whole == 0 and part:
                by_schedule[i] = None  # the penalty follows a gradient that does not
        return list(map(Powers, by_rate, by_schedule, by_decay))

    def schedule(self, step: Any) -> Any:
        """η at step 0, and half of it with every step."""
        return self.eta * 0.5**step

    def vary(self, eta: Any, lam: float, power: Any, zero: Runner | None = None) -> list:
        one, zero = self.runner(eta, lam), zero or self.runner(eta, 0.0)
        plain = self.seen["plain"]
        seen = _probe.compare(one, zero, self.feeds["plain"].first(self.enough()))
        found = [
            power(_verdict.ratios(seen[i], plain[i], v.shape))
            if v.form not in ("none", "unclear")
            else None
            for i, v in enumerate(self.verdicts)
        ]
        if any(
            p is None and v.form == "coupled" and c
            for p, v, c in zip(found, self.verdicts, self.l2, strict=True)
        ):  # as the gradient is scaled, so is the penalty
            moved = _probe.compare(one, zero, self.feeds["moved"])
            again = self.penalties(one, zero, lam, moved, sorted({c for c in self.l2 if c}))
            for i, (c, before) in enumerate(zip(again, self.l2, strict=True)):
                if found[i] is None and c is not None and c == before:
                    found[i] = 1.0
        return found

    def enough(self) -> int:
        """Three steps if everything that decays does so in each, else all."""
        seen = zip(self.verdicts, self.seen["plain"], strict=True)
        return min(
            self.steps,
            3
            if all(
                largest(d) > noise
                for v, s in seen
                if v.form != "none"
                for d, noise in zip(s.decay[:3], s.noise[:3], strict=True)
            )
            else self.steps,
        )

    # --- rounding --------------------------------------------------------------------

    def survives(self) -> list[Survives]:
        """What is left of the decay after rounding."""
        count = len(self.verdicts)
        tells = [v.form in ("decoupled", "cautious") and any(v.rates) for v in self.verdicts]
        if not any(tells) or isinstance(self.one.made, Loop):
            return [Survives()] * count
        half = [jnp.bfloat16 if d.kind == "f" or d == jnp.bfloat16 else d for d in self.tree.dtypes]
        shares = self.shares(half)
        own = shares
        if half != self.tree.dtypes:
            own = self.shares(self.tree.dtypes)
        return [
            Survives(a, b) if told else Survives()
            for a, b, told in zip(shares, own, tells, strict=True)
        ]

    def shares(self, dtypes: list[Any]) -> list[float | None]:
        """The decay in these dtypes divided by that in float64, with zero gradients."""
        eps = [float(jnp.finfo(d).eps) if _is_floating(d) else 0.0 for d in dtypes]
        rates = [max((abs(r) for r in v.rates if r == r), default=0) for v in self.verdicts]
        if all(e < 0.01 * r for e, r in zip(eps, rates, strict=True) if r):
            return [1.0] * len(dtypes)  # no rounding can take as much as a hundredth
        start = [
            w.astype(d) for w, d in zip(self.feeds["plain"].weights[0], dtypes, strict=True)
        ]
        wide = [w.astype(w0.dtype) for w, w0 in zip(start, self.feeds["plain"].start)]
        quiet = [[np.zeros_like(g) for g in gs] for gs in self.feeds["plain"].gradients]
        if any(largest(u) for us in self.zero(self.feeds["plain"]._replace(gradients=quiet)) for u in us):
            return [None] * len(dtypes)  # it moves without gradients: noise
        if all(len(set(v.rates)) < 2 for v in self.verdicts):
            factors = [(1 - (v.rates[0] if v.rates else 0)) ** _LONG for v in self.verdicts]
            exact = [w * k for w, k in zip(wide, factors, strict=True)]
        else:
            exact = self.one.decay_only(wide, _LONG)
        found: list[float | None] = []
        rounded = self.one.decay_only(start, _LONG)
        for w, x, y, e in zip(wide, exact, rounded, eps, strict=True):
            gone, left = (_along(w, w - z) for z in (x, y))
            # Of less than two roundings in all that steps no share can be told.
            found.append(left / gone if abs(gone) > 2 * e and math.isfinite(left) else None)
        return found

    # --- report ----------------------------------------------------------------------

    def dependent(self) -> list[int]:
        """The leaves whose decay changes when other leaves change."""
        count, plain = len(self.verdicts), self.feeds["plain"].first(self.enough())
        found: set[int] = set()
        for bit in range((count - 1).bit_length()):
            for side in (0, 1):  # any two leaves are apart in some bit
                others = [i for i in range(count) if i >> bit & 1 == side]
                f = _probe.scaled(plain, self.tree, others, weights=2.0, gradients=_LOUD)
                seen = _probe.compare(self.one, self.zero, f)
                found |= {
                    i
                    for i in set(range(count)) - set(others)
                    if _verdict.depends_on_others(
                        self.seen["plain"][i], seen[i], self.verdicts[i].form
                    )
                }
        return sorted(found)

    def report(self, params: Any) -> Audit:
        """All of it."""
        if not self.repeats:
            self.notes.append(
                "two runs of the same steps differ, so that nothing can be told: fix the seed"
            )
            self.verdicts = [Verdict("unclear", figures="no two runs are the same")] * len(
                self.verdicts
            )
        powers, survives, dependent = self.powers(), self.survives(), self.dependent()
        leaves = {
            path: LeafAudit(
                v.form,
                v.rates,
                powers[i],
                "gradient" if v.form == "coupled" else v.shape and v.shape.acts_on,
                self.l2[i],
                v.remembers,
                survives[i],
                v.figures or "the decay of earlier steps is in it too" * _averages(v),
            )
            for i, (path, v) in enumerate(zip(self.tree.paths, self.verdicts, strict=True))
        }
        still = [
            path
            for i, path in enumerate(self.tree.paths)
            if not any(largest(u) for u in self.seen["plain"][i].step)
        ]
        others = [self.tree.paths[i] for i in dependent]
        return Audit(
            MappingProxyType(leaves),
            _like(leaves.values(), self.eta, self.lam),
            tuple(_problems(leaves, params, others, still, self.lam)),
            tuple(self.notes),
        )


def _drift(one: Runner, zero: Runner, f: Feed) -> list[float]:
    """How far the decay takes weights that make their own steps; 0 if it is rounding."""
    ends = [runner(f, free=True)[-1] for runner in (one, zero)]
    apart = [(largest(x - y), largest(x)) for x, y in zip(*ends, strict=True)]
    noise = [one.eps(i) * size for i, (_, size) in enumerate(apart)]
    return [d if d > n else 0.0 for (d, _), n in zip(apart, noise, strict=True)]


def _repeats(runner: Runner, f: Feed) -> bool:
    first, second = runner(f), runner(f)
    return all(
        np.array_equal(x, y, equal_nan=True)
        for a, b in zip(first, second, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def _averages(v: Verdict) -> bool:
    return v.remembers and v.form != "coupled"


def _along(w: np.ndarray, d: np.ndarray) -> float:
    return float(np.vdot(w, d).real / np.vdot(w, w).real) if w.size else 0.0


def _is_floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact)


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
    powers = (*_POWERS[row.scaled_by], 1.0)
    rate = row.factor * lam * eta ** powers[0]
    return (
        leaf.form == "decoupled"
        and f"{leaf.acts_on} θ" == row.acts_on
        and not leaf.remembers
        and all(seen in (None, p) for seen, p in zip(leaf.powers, powers, strict=True))
        and all(math.isclose(r, rate, rel_tol=1e-5) for r in leaf.rates)
    )


# --- problems ------------------------------------------------------------------------


def _problems(
    leaves: Mapping[str, LeafAudit], params: Any, others: list[str], still: list[str], lam: float
) -> Iterable[str]:
    def those(true: Callable[[LeafAudit], Any]) -> list[str]:
        return [path for path, leaf in leaves.items() if true(leaf)]

    forms = {leaf.form for leaf in leaves.values()}
    if len(still) == len(leaves):
        yield (
            "nothing moves: the updates are 0 in every step. Give more `steps` if the "
            "optimizer waits for them."
        )
    elif forms == {"none"}:
        yield (
            f"nothing decays with weight_decay={lam:g}. Hand the number on to the optimizer, "
            "and see which leaves its mask matches: optwd.tabulate(params, mask)."
        )
    if paths := those(lambda x: min(_known(x), default=0) < 0 or (x.l2 or 0) < 0):
        yield (
            f"weights grow: the decay has the wrong sign on {_names(paths)}. Place it before "
            "the sign flip, or use optwd.with_weight_decay."
        )
    if paths := those(lambda x: max(_known(x), default=0) > 1):
        yield (
            f"rates above 1 flip the sign of the weights on {_names(paths)}. Lower the weight "
            "decay; is it meant to be multiplied by the learning rate?"
        )
    if paths := those(lambda x: len(x.rates) > 1 and x.rates[0] and not any(x.rates[1:])):
        paths = [path for path in paths if path not in still]
        if paths:
            yield (
                f"decay in the first step only, on {_names(paths)}. Look at what counts the "
                "steps: a state that is not handed on, a schedule that ends."
            )
    decided = [
        (leaf.path, why)
        for leaf, factor, why in masks.explain(masks.standard(), params)
        if factor == 0 and leaves[leaf.path].form != "none"
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
            f"lost in the rounding of the parameters: {_names(paths)}. Wrap the optimizer in "
            "optwd.compensate_rounding, or keep the parameters in float32."
        )
    if others:
        yield (
            f"depends on other leaves: the decay of {_names(others)} changes when only they "
            "do. Unless one step size for all is meant (Prodigy), look for a norm or a "
            "state that leaves share."
        )
    if paths := those(lambda x: x.form == "unclear"):
        yield f"unclear: {_names(paths)}; {leaves[paths[0]].figures}."


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
    acts = {"old": "old θ", "new": "new θ", None: "–"}.get(leaf.acts_on, leaf.acts_on)
    return (path, leaf.form, _verdict.text(leaf.rates), *powers, acts, *shares)
