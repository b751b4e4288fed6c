"""One audit under way: which runs are made, and what follows from them."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optwd import _probe, _verdict
from optwd._probe import Feed, Loop, Program, Runner, Seen, Tree, largest
from optwd._verdict import ActsOn, Form, Verdict

_LONG = 128  # steps in 16 bits: a rate of 1e-3 then takes off 30 times what rounding does
_LOUD = -1000.0  # of the other sign, so that what is cautious chooses the other weights


class Powers(NamedTuple):
    """With which power each enters the decay of a step; None where it cannot be told.

    ``(1, 1, 1)`` is torch's and Optax's AdamW, ``(0, 1, 1)`` the paper's, ``(0, 0, 1)``
    TensorFlow Addons', ``(1, 2, 1)`` AdamC.

    Attributes:
      learning_rate: when all of the learning rate is doubled, a schedule with its peak.
      schedule: when a schedule has fallen to half of its peak.
      weight_decay: when the weight decay is doubled.
    """

    learning_rate: float | None = None
    schedule: float | None = None
    weight_decay: float | None = None


class Survival(NamedTuple):
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
      form: ``"none"``, ``"decoupled"``, ``"cautious"``, ``"anchored"``, ``"coupled"``,
        ``"entangled"`` or ``"unclear"``.
      rates: ρ of each step; empty where the form has none.
      powers: how they follow the hyperparameters, see `Powers`.
      acts_on: ``"old"`` or ``"new"``, the weights before or after the step;
        ``"gradient"``; None where it is none of these.
      l2: c where the decay equals adding ``c·λθ`` to the gradient, None where no c does.
      remembers: whether the decay of earlier weights is in it too, through a momentum or
        an average.
      survives: what is left after rounding, see `Survival`.
      figures: what was seen, where the form does not say it all.
      errors: how far rounding may have moved each rate, as of a loop in float32.
    """

    form: Form
    rates: tuple[float, ...] = ()
    powers: Powers = Powers()  # noqa: RUF009 (a tuple)
    acts_on: ActsOn | None = None
    l2: float | None = None
    remembers: bool = False
    survives: Survival = Survival()  # noqa: RUF009
    figures: str = ""
    errors: tuple[float, ...] = ()


class Trial:
    """An optimizer on the tree, and what was seen of it with several feeds."""

    def __init__(self, make: Any, tree: Tree, eta: float, lam: float, steps: int):
        self.make, self.tree, self.eta, self.lam, self.steps = make, tree, eta, lam, steps
        plain, every = _probe.feed(tree, steps), range(len(tree.paths))
        # A sign hides a penalty that is smaller than its gradient.
        quieter = _probe.scaled(plain, tree, every, weights=1.0, gradients=lam)
        self.feeds = {
            "plain": plain,
            "quieter": quieter,
            "louder": _probe.scaled(plain, tree, every, weights=1.0, gradients=_LOUD),
            "larger": _probe.scaled(plain, tree, every, weights=2.0, gradients=1.0),
            "moved": _probe.moved(quieter, tree),
        }
        self.programs: dict[bool, Program | None] = {}  # for a schedule, for a number
        self.one, self.zero = self.runner(eta, lam), self.runner(eta, 0.0)
        self.seen = {
            k: _probe.compare(self.one, self.zero, f) for k, f in self.feeds.items()
        }
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

    def runner(self, eta: Any, lam: float) -> Runner:
        """What `make` returns for this learning rate and weight decay."""
        scheduled = callable(eta)
        name = f"make({'a schedule' if scheduled else f'{eta:g}'}, {lam:g})"
        try:
            made = self.make(eta, lam)
        except Exception as error:
            raise ValueError(
                f"audit: {name} raised {type(error).__name__}: {error}\n`make` must take "
                "any learning rate > 0, and any weight decay ≥ 0, also 0."
            ) from error
        known = Runner(self.tree, made, name)
        if isinstance(made, Loop):
            return known
        numbers = (lam,) if scheduled else (eta, lam)
        if scheduled not in self.programs:
            self.programs[scheduled] = self.program(known, numbers)
        program = self.programs[scheduled]
        return Runner(self.tree, made, name, program, numbers) if program else known

    def program(self, known: Runner, numbers: tuple[Any, ...]) -> Program | None:
        """One for all numbers, if it does what `make` returns where they are known."""
        if len(numbers) == 2:
            self.begin, build = known.first(self.feeds["plain"]), self.make
        else:  # at step 0 the schedule is at its peak
            build = functools.partial(self.make, self.schedule)
        program = Program(build)
        traced = Runner(self.tree, known.made, known.name, program, numbers)
        try:
            (seen,) = traced(self.feeds["plain"].first(1))
        except ValueError:  # `make` asks for their values
            return None
        triples = zip(seen, self.begin, self.feeds["plain"].start, strict=True)
        same = all(
            largest(a - b) <= traced.eps(i) * max(largest(b), largest(w))
            for i, (a, b, w) in enumerate(triples)
        )
        return program if same and any(map(largest, self.begin)) else None

    def penalties(
        self,
        one: Runner,
        zero: Runner,
        lam: float,
        seen: list[Seen],
        factors=(1, 2, -1, -2),
    ) -> list[float | None]:
        """The c of each leaf whose updates are those with ``c·λθ`` in the gradient."""
        decays = [
            not _verdict.is_none(s) and self.tree.is_floating(i) for i, s in enumerate(seen)
        ]
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
        one = self.runner(eta, lam)
        zero = zero or self.runner(eta, 0.0)
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
        shown = all(
            largest(d) > noise
            for v, s in seen
            if v.form != "none"
            for d, noise in zip(s.decay[:3], s.noise[:3], strict=True)
        )
        return min(3, self.steps) if shown else self.steps

    # --- rounding --------------------------------------------------------------------

    def survives(self) -> list[Survival]:
        """What is left of the decay after rounding."""
        count = len(self.verdicts)
        tells = [
            v.form in ("decoupled", "cautious") and any(v.rates) for v in self.verdicts
        ]
        if not any(tells) or isinstance(self.one.made, Loop):
            return [Survival()] * count
        half = [
            jnp.bfloat16 if d.kind == "f" or d == jnp.bfloat16 else d
            for d in self.tree.dtypes
        ]
        shares = self.shares(half)
        own = shares
        if half != self.tree.dtypes:
            own = self.shares(self.tree.dtypes)
        return [
            Survival(a, b) if told else Survival()
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
        plain = self.feeds["plain"]
        wide = [w.astype(d.dtype) for w, d in zip(start, plain.start, strict=True)]
        silent = [[np.zeros_like(g) for g in gs] for gs in plain.gradients]
        alone = self.zero(plain._replace(gradients=silent))
        if any(largest(u) for updates in alone for u in updates):
            return [None] * len(dtypes)  # it moves without gradients: noise
        if all(np.allclose(v.rates, v.rates[:1], 1e-9, 0) for v in self.verdicts):
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
        if not self.repeats:
            return []
        count, plain = len(self.verdicts), self.feeds["quieter"].first(self.enough())
        found: set[int] = set()
        for bit in range((count - 1).bit_length()):
            for side in (0, 1):  # any two leaves are apart in some bit
                others = [i for i in range(count) if i >> bit & 1 == side]
                f = _probe.scaled(plain, self.tree, others, weights=2.0, gradients=_LOUD)
                seen = _probe.compare(self.one, self.zero, f)
                found |= {
                    i
                    for i in set(range(count)) - set(others)
                    if self.verdicts[i].form != "unclear"
                    and _verdict.depends_on_others(
                        self.seen["quieter"][i], seen[i], self.verdicts[i].form
                    )
                }
        return sorted(found)

    def leaves(self) -> list[LeafAudit]:
        """What the decay does to each leaf."""
        if not self.repeats:
            self.notes.append(
                "two runs of the same steps differ, so nothing can be told; fix the seed"
            )
            unclear = Verdict("unclear", figures="no two runs are the same")
            self.verdicts = [unclear for _ in self.verdicts]
        rows = zip(self.verdicts, self.powers(), self.l2, self.survives(), strict=True)
        return [
            LeafAudit(
                v.form,
                v.rates,
                powers,
                "gradient" if v.form == "coupled" else v.shape and v.shape.acts_on,
                c,
                v.remembers,
                survives,
                v.figures or "the decay of earlier steps is in it too" * _averages(v),
                v.errors,
            )
            for v, powers, c, survives in rows
        ]

    def stuck(self, zeros: list[int]) -> list[int]:
        """Which of these leaves are left alone because they start at 0."""
        zeros = [i for i in zeros if self.verdicts[i].form not in ("none", "unclear")]
        if not zeros:
            return []
        plain = self.feeds["plain"]
        start = [0 * w if i in zeros else w for i, w in enumerate(plain.start)]
        seen = _probe.compare(self.one, self.zero, plain._replace(start=start))
        return [i for i in zeros if _verdict.is_none(seen[i])]

    def still(self) -> bool:
        """Whether no leaf is updated in any step."""
        return not any(largest(u) for seen in self.seen["plain"] for u in seen.step)


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
