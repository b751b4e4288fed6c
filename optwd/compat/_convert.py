"""The number that means in one framework what another number means in another."""

from __future__ import annotations

import difflib
import math
import textwrap
from fractions import Fraction
from typing import Any

from optwd import _check
from optwd._check import ScalarOrSchedule
from optwd.compat._convention import Convention, Scaling
from optwd.compat._conventions import CONVENTIONS

# The rate of a step is λ·ηₜᵃ·η_maxᵇ.
_POWERS: dict[Scaling, tuple[int, int]] = {
    "learning rate": (1, 0),
    "schedule": (1, -1),
    "learning rate × schedule": (2, -1),
    "learning rate²": (2, 0),
    "nothing": (0, 0),
}


def convert_weight_decay(
    weight_decay: float,
    *,
    source: str,
    target: str,
    learning_rate: ScalarOrSchedule,
    peak_learning_rate: float | None = None,
) -> float:
    """The number that means in `target` what ``weight_decay`` means in `source`.

        λ' = λ·ηᵃ·η_maxᵇ, so that both decay by the same rate in every step

    The optimizers must otherwise be the same. `CONVENTIONS` says where ε and the defaults
    differ, and the optimizers of `optwd.compat` have those of their framework.

    Args:
      weight_decay: λ ≥ 0, as given to `source`.
      source: a name in `CONVENTIONS`, such as ``"torch.AdamW"``.
      target: another, such as ``"optwd.adamw(scaled_by='nothing')"``.
      learning_rate: η as both optimizers have it: a number if it is constant, or its
        schedule.
      peak_learning_rate: η_max > 0; needed with a schedule where either side scales by
        ηₜ/η_max. Composer and timm take the learning rate at construction for it.

    Returns:
      λ' ≥ 0.

    Raises:
      ValueError: an unknown name; a number too large or too small for a float; or no
        number is equivalent: coupled against decoupled decay (except for SGD without
        momentum), old weights against new ones, a decay that follows a schedule against
        one that does not. The message says what to use.

    >>> convert_weight_decay(
    ...     0.1, source="torch.AdamW", target="tf_addons", learning_rate=1e-3)
    0.0001
    """
    given = _number("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)
    a, b = _convention("source", source), _convention("target", target)
    factor = Fraction(a.factor) / Fraction(b.factor)
    if a.acts_on == b.acts_on == "gradient":
        return _rounded(factor, given, source, target)
    if _place(a) != _place(b):
        raise ValueError(
            f"no weight_decay of {target} ({b.decay}, on the {b.acts_on}) is equivalent to "
            f"{given:g} of {source} ({a.decay}, on the {a.acts_on}). To keep what "
            f"the source does use {a.here}; otherwise tune the weight decay anew."
        )
    (a_eta, a_peak), (b_eta, b_peak) = _POWERS[a.scaled_by], _POWERS[b.scaled_by]
    if a_eta != b_eta:
        if callable(learning_rate):
            raise ValueError(
                f"under a learning rate schedule no one number does in {target} "
                f"({b.decay}) what {given:g} does in {source} ({a.decay}). Use "
                f"{a.here}, or give the target a schedule for its weight decay."
            )
        factor *= _positive("learning_rate", learning_rate) ** (a_eta - b_eta)
    if a_peak != b_peak:
        if peak_learning_rate is None and callable(learning_rate):
            raise ValueError(
                f"from {source} to {target} under a schedule needs peak_learning_rate, "
                "the largest value that the learning rate takes."
            )
        peak = learning_rate if peak_learning_rate is None else peak_learning_rate
        factor *= _positive("peak_learning_rate", peak) ** (a_peak - b_peak)
    return _rounded(factor, given, source, target)


def table() -> str:
    """`CONVENTIONS` to read, in lines of at most 100 characters.

    >>> print(table().partition("torch.AdamW")[2].splitlines()[0].strip())
    θ ×= 1 − ηₜλ [old θ]
    """
    rows = [c for c in CONVENTIONS.values() if not c.name.startswith("optwd.")]
    head = _row("weight_decay of", "what it does [to what]; ε and defaults; the same here")
    return "\n".join([*head, "", *(line for c in rows for line in _row(c.name, *_says(c)))])


def _says(c: Convention) -> list[str]:
    epsilon = f"ε {c.epsilon}" if c.epsilon else ""
    defaults = "; ".join(filter(None, [epsilon, c.defaults]))
    how = f"checked: {c.evidence}"
    return [f"{c.decay} [{c.acts_on}]", defaults, f"here: {c.here}", how]


def _row(name: str, *texts: str, column: int = 36, width: int = 64) -> list[str]:
    """A name and, in the second column, the texts; below the name if that is too long."""
    lines = [line for text in texts for line in textwrap.wrap(text, width)]
    if len(name) >= column:
        return [name, *(" " * column + line for line in lines)]
    return [f"{name:<{column}}{lines[0]}", *(" " * column + line for line in lines[1:])]


def _number(name: str, value: Any) -> float:
    value = _check.number(name, value)
    if not isinstance(value, float):
        raise TypeError(f"{name} must be a number that is known, not traced: {value!r}.")
    return value


def _rounded(factor: Fraction, given: float, source: str, target: str) -> float:
    """`factor` times the number given, rounded once."""
    exact = factor * Fraction(given)
    try:
        converted = float(exact)
    except OverflowError:
        converted = math.inf
    if math.isinf(converted) or (given > 0.0 and converted == 0.0):
        raise ValueError(
            f"{given:g} of {source} is too {'small' if converted == 0.0 else 'large'} a "
            f"number in {target} for a float."
        )
    return converted


def _convention(argument: str, name: str) -> Convention:
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    near = difflib.get_close_matches(str(name), CONVENTIONS, n=3, cutoff=0.3)
    raise ValueError(
        f"{argument} {name!r} is not a convention; nearest: {', '.join(near) or 'none'}. "
        "All of them are in optwd.compat.CONVENTIONS."
    )


def _place(c: Convention) -> str:
    return "old θ" if c.plain else c.acts_on


def _positive(name: str, value: Any) -> Fraction:
    value = _number(name, value)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0 to convert a weight decay, got 0.")
    return Fraction(value)
