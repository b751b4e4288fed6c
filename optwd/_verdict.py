"""From what was seen of a leaf to what its decay is."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from optwd._probe import Seen, largest

Form = Literal[
    "none", "decoupled", "cautious", "anchored", "coupled", "entangled", "unclear"
]
ActsOn = Literal["old", "new", "gradient"]

_RTOL = 1e-6  # float32 hyperparameters are 1e-7 off


class Shape(NamedTuple):
    """One way in which a decay can be in proportion to something."""

    form: Form
    acts_on: ActsOn | None
    base: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


SHAPES = (
    Shape("decoupled", "old", lambda w, u, start: w),
    Shape("decoupled", "new", lambda w, u, start: w + u),
    Shape("cautious", "old", lambda w, u, start: w * ((w * np.conj(u)).real <= 0)),
    Shape("anchored", "old", lambda w, u, start: w - start),
)


class Fit(NamedTuple):
    """The rate of each step, NaN where nothing tells it, and how far rounding moves it."""

    rates: list[float]
    errors: list[float]


class Verdict(NamedTuple):
    """What a leaf's decay is; the fields are those of `LeafAudit`."""

    form: Form
    shape: Shape | None = None
    rates: tuple[float, ...] = ()
    remembers: bool = False
    figures: str = ""
    errors: tuple[float, ...] = ()


def fit(seen: Seen, shape: Shape) -> Fit | None:
    """The rates with which ``decay = −ρ·base`` in every step; None if it is not."""
    rates, errors = [], []
    for d, u, w, noise in zip(seen.decay, seen.step, seen.weights, seen.noise, strict=True):
        base = shape.base(w, u, seen.start)
        size = largest(base)
        if size == 0:  # nothing to decay in this step
            rate = error = math.nan
            off = d
        else:
            rate = -float(np.vdot(base, d).real / np.vdot(base, base).real)
            error = noise / size
            off = d + rate * base
            rate = rate if abs(rate) > error else 0.0
        if largest(off) > _RTOL * largest(d) + noise:
            return None
        rates.append(rate)
        errors.append(error)
    return Fit(rates, errors)


def judge(feeds: Mapping[str, Seen], l2: float | None) -> Verdict:
    """The form of a leaf's decay.

    Args:
      feeds: what was seen with the ``"plain"`` feed, with ``"quieter"`` gradients, with
        ``"louder"`` ones of the other sign, with ``"larger"`` weights, and with weights
        ``"moved"`` in the last step.
      l2: see `LeafAudit`.
    """
    if not all(np.isfinite(x).all() for s in feeds.values() for x in (*s.decay, *s.step)):
        return Verdict("unclear", figures="updates that are not finite")
    if all(is_none(seen) for seen in feeds.values()):
        return Verdict("none", rates=(0.0,) * len(feeds["plain"].decay))
    apart = ""
    for shape in SHAPES:
        fits = {name: fit(seen, shape) for name, seen in feeds.items()}
        plain, louder, larger = fits["plain"], fits["louder"], fits["larger"]
        quieter, moved = fits["quieter"], fits["moved"]
        if plain is None or louder is None or larger is None or quieter is None:
            continue
        if not (_same(plain, louder) and _same(plain, larger) and _same(plain, quieter)):
            apart = apart or (
                f"−ρθ on the {shape.acts_on} weights with ρ = {text(plain.rates)}, but "
                f"{text(louder.rates)} with gradients × −1000 and {text(larger.rates)} "
                "with weights × 2"
            )
            continue
        rates, errors = (
            tuple(
                b if math.isnan(r) else a for r, a, b in zip(plain.rates, *x, strict=True)
            )
            for x in zip(plain, louder, strict=True)
        )
        remembers = moved is None or not _same(plain, moved)
        if remembers and l2 is not None:
            break
        return Verdict(shape.form, shape, rates, remembers, errors=errors)
    if l2 is not None:
        return Verdict("coupled", remembers=True)
    sizes = {name: max(map(largest, seen.decay)) for name, seen in feeds.items()}
    figures = apart or (
        f"the largest element of the decay is {sizes['plain']:.3g}, but "
        f"{sizes['louder']:.3g} with gradients × −1000 and {sizes['larger']:.3g} with "
        "weights × 2"
    )
    if sizes["louder"] < 0.05 * sizes["quieter"]:
        return Verdict("coupled", remembers=True, figures=figures)
    if apart or not _equal(feeds["plain"], feeds["larger"]):
        return Verdict("entangled", figures=figures)
    return Verdict("unclear", figures=figures)


def is_none(seen: Seen) -> bool:
    """Whether there is no decay in any step."""
    return all(largest(d) <= noise for d, noise in zip(seen.decay, seen.noise, strict=True))


def is_penalty(
    with_decay: list[np.ndarray], penalised: list[np.ndarray], seen: Seen
) -> bool:
    """Whether the decay does what a multiple of the weights in the gradient does."""
    decay = max(map(largest, seen.decay))
    return all(
        largest(a - b) <= min(_RTOL * largest(a), 0.01 * decay) + noise
        for a, b, noise in zip(with_decay, penalised, seen.noise, strict=True)
    )


def depends_on_others(alone: Seen, others_changed: Seen, form: Form) -> bool:
    """Whether a leaf's decay changed though only other leaves did."""
    if form == "coupled" and not all(
        largest(a - b) <= _RTOL * largest(a) + noise
        for a, b, noise in zip(
            alone.step, others_changed.step, others_changed.noise, strict=False
        )
    ):
        return False  # so did the step itself: a gradient that is clipped by a global norm
    return not _equal(alone, others_changed)


def ratios(seen: Seen, plain: Seen, shape: Shape | None) -> dict[int, float] | None:
    """By what the decay of each step is multiplied; None if by no number.

    Steps without a decay are not counted, and a step that does not tell is left out.
    """
    found = {}
    if shape is not None:
        a, b = fit(seen, shape), fit(plain, shape)
        if a is None or b is None:
            return None
        pairs = enumerate((x, y) for x, y in zip(a.rates, b.rates, strict=False) if y)
        told = {k: (x, y) for k, (x, y) in pairs if not math.isnan(y)}
        found = {k: x / y for k, (x, y) in told.items()}
        if shape.acts_on == "new" and not _is_half(_log2(found.values())):
            # θ/(1 + ρ) is (1 − ρ')θ with ρ' = ρ/(1 + ρ)
            return {k: x / (1 - x) * (1 - y) / y for k, (x, y) in told.items() if x != 1}
        return found
    for d, p, noise in zip(seen.decay, plain.decay, seen.noise, strict=False):
        if largest(p) <= noise:
            continue
        ratio = float(np.vdot(p, d).real / np.vdot(p, p).real)
        if largest(d - ratio * p) > _RTOL * largest(d) + noise:
            return None
        found[len(found)] = ratio
    return found


def power(of_two: Mapping[int, float] | None) -> float | None:
    """The p where every ratio is 2ᵖ."""
    return None if of_two is None else _log2(of_two.values())


def schedule_power(of_halving: Mapping[int, float] | None) -> float | None:
    """The p where the k-th ratio is 2⁻ᵖᵏ, from k = 0 or from k = 1."""
    if of_halving is None or len(of_halving) < 2 or min(of_halving.values()) <= 0:
        return None
    (first, start), *rest = of_halving.items()
    found = _log2([(start / value) ** (1 / (k - first)) for k, value in rest])
    if found is None or not any(
        math.isclose(start, 2.0 ** -(found * (first + offset)), rel_tol=1e-3)
        for offset in (0, 1)
    ):
        return None
    return found


def text(rates: Iterable[float]) -> str:
    """One rate if they are the same, else the first and the last."""
    known = [r for r in rates if r == r]
    if not known:
        return "–"
    low, high = min(known), max(known)
    if math.isclose(low, high, rel_tol=1e-5, abs_tol=1e-300):
        return f"{known[0]:.4g}"
    return f"{known[0]:.4g} … {known[-1]:.4g}"


def _log2(values: Iterable[float]) -> float | None:
    if min(values := list(values), default=0) <= 0:
        return None
    powers = [math.log2(v) for v in values]
    if max(powers) - min(powers) > 1e-3:
        return None
    half = round(2 * powers[0]) / 2
    return half if abs(half - powers[0]) < 1e-3 else round(powers[0], 3)


def _is_half(value: float | None) -> bool:
    return value is not None and (2 * value).is_integer()


def _same(a: Fit, b: Fit) -> bool:
    return all(
        not abs(x - y) > _RTOL * max(abs(x), abs(y)) + ex + ey  # NaN is no difference
        for x, y, ex, ey in zip(a.rates, b.rates, a.errors, b.errors, strict=True)
    )


def _equal(a: Seen, b: Seen) -> bool:
    return all(
        largest(x - y) <= _RTOL * max(largest(x), largest(y)) + nx + ny
        for x, y, nx, ny in zip(a.decay, b.decay, a.noise, b.noise, strict=False)
    )
