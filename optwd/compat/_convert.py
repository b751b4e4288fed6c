"""The number that means in one framework what another number means in another."""

import difflib
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

    The optimizers must otherwise be the same: `CONVENTIONS` says which of them has another
    ε or other defaults, and the optimizers of `optwd.compat` bring theirs along.

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
      ValueError: an unknown name; or no number is equivalent: a coupled decay against a
        decoupled one (but for SGD without momentum), old weights against new ones, a decay
        that follows a schedule against one that does not. The message says what to use.

    >>> convert_weight_decay(
    ...     0.1, source="torch.AdamW", target="tf_addons", learning_rate=1e-3)
    0.0001

    Source: the equations of `CONVENTIONS`.
    """
    weight_decay = _check.number("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)
    a, b = _convention("source", source), _convention("target", target)
    weight_decay *= a.factor / b.factor
    if a.acts_on == b.acts_on == "gradient":
        return weight_decay
    if _place(a) != _place(b):
        raise ValueError(
            f"no weight_decay of {target} ({b.decay}, on the {b.acts_on}) is equivalent to "
            f"{weight_decay:g} of {source} ({a.decay}, on the {a.acts_on}). To keep what "
            f"the source does use {a.here}; otherwise tune the weight decay anew."
        )
    (a_eta, a_peak), (b_eta, b_peak) = _POWERS[a.scaled_by], _POWERS[b.scaled_by]
    eta = peak = 1.0
    if a_eta != b_eta:
        if callable(learning_rate):
            raise ValueError(
                f"under a learning rate schedule no one number does in {target} "
                f"({b.decay}) what {weight_decay:g} does in {source} ({a.decay}). Use "
                f"{a.here}, or give the target a schedule for its weight decay."
            )
        eta = _positive("learning_rate", learning_rate)
    if a_peak != b_peak:
        if peak_learning_rate is None and callable(learning_rate):
            raise ValueError(
                f"from {source} to {target} under a schedule needs peak_learning_rate, "
                "the largest value the learning rate takes."
            )
        given = learning_rate if peak_learning_rate is None else peak_learning_rate
        peak = _positive("peak_learning_rate", given)
    return weight_decay * eta ** (a_eta - b_eta) * peak ** (a_peak - b_peak)


def table() -> str:
    """`CONVENTIONS` as a table in Markdown, one row a convention.

    Returns:
      The text, without a newline at its end.

    >>> print(table().splitlines()[3])
    | `torch.AdamW` | θ ×= 1 − ηₜλ | old θ | outside | lr 1e-3, β .9/.999, ε 1e-8, λ 1e-2 | `compat.torch.adamw` |
    """  # noqa: E501
    rows = [
        (
            f"`{c.name}`",
            c.decay,
            c.acts_on,
            c.epsilon or "–",
            c.defaults or "–",
            f"`{c.here}`",
        )
        for c in CONVENTIONS.values()
        if not c.name.startswith("optwd.")
    ]
    head = ("`weight_decay` of", "does", "to", "ε", "defaults", "here")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def _positive(name: str, value: Any) -> float:
    value = _check.number(name, value)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0 to convert a weight decay, got 0.")
    return value
