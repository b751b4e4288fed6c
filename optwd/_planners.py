"""Which number: planners that take the numbers of a run and return a weight decay."""

from __future__ import annotations

import math
from typing import Literal

from optwd import _check
from optwd._equilibrium import (
    ScaledBy,
    equilibrium_angle,
    equilibrium_rms,
    one_of,
    positive,
)

Keeping = Literal["weight_decay", "timescale", "gain"]


def normalized(norm: float, batch_size: float, dataset_size: float, epochs: float) -> float:
    """A weight decay that carries over from short runs to long ones.

        λ = λ_norm·√(b/(B·T))

    The longer the run, the smaller the decay that suits it; λ_norm takes the length out.

    Args:
      norm: λ_norm ≥ 0, tuned once; the paper's are about 0.025 to 0.05.
      batch_size: b > 0, examples per step.
      dataset_size: B > 0, examples per epoch.
      epochs: T > 0, of the run; with warm restarts, of the cycle.

    Returns:
      λ for a decay that the schedule multiplies, as in `by_schedule`.

    Raises:
      ValueError: a number outside its domain.

    >>> print(normalized(0.05, batch_size=128, dataset_size=50_000, epochs=100))
    0.000253

    Source: Loshchilov and Hutter, arXiv 1711.05101, Appendix B.1.
    """
    steps = (
        positive("dataset_size", dataset_size)
        * positive("epochs", epochs)
        / positive("batch_size", batch_size)
    )
    return _check.number("norm", norm) / math.sqrt(steps)


def timescale(learning_rate: float, weight_decay: float) -> float:
    """Over how many steps the weights average their updates.

        τ = 1/(ηλ)

    Decoupled decay makes the weights an exponential moving average of updates; τ is its
    length. It, not λ, is what carries over between learning rates.

    Args:
      learning_rate: η ≥ 0; 1 for a decay that no learning rate scales.
      weight_decay: λ ≥ 0.

    Returns:
      τ in steps; inf without decay.

    Raises:
      ValueError: a negative or non-finite number.

    >>> print(timescale(learning_rate=1e-3, weight_decay=0.1))
    10000.0

    Source: Wang and Aitchison, arXiv 2405.13698.
    """
    rate = _per_step(learning_rate, weight_decay)
    return 1 / rate if rate else math.inf


def for_timescale(steps: float, learning_rate: float) -> float:
    """The weight decay that averages updates over so many steps.

        λ = 1/(η·steps)

    Args:
      steps: τ > 0; the length of the run, or a fixed fraction of it, is a common choice.
      learning_rate: η > 0; 1 for a decay that no learning rate scales.

    Returns:
      λ, the inverse of `timescale`.

    Raises:
      ValueError: a number outside its domain.

    >>> print(for_timescale(steps=10_000, learning_rate=1e-3))
    0.1

    Source: Wang and Aitchison, arXiv 2405.13698.
    """
    return 1 / (positive("learning_rate", learning_rate) * positive("steps", steps))


def timescale_share(
    learning_rate: float, weight_decay: float, batch_tokens: float, tokens: float
) -> float:
    """Over which share of its data the weights of a run average their updates.

        τ/steps = B/(ηλD)

    Where data repeat, give the tokens or examples of one epoch to get τ in epochs, which
    suits runs best between 1 and their number of epochs.

    Args:
      learning_rate: η ≥ 0, at the peak; 1 for a decay that no learning rate scales.
      weight_decay: λ ≥ 0.
      batch_tokens: B > 0, tokens per step.
      tokens: D > 0, of the run; B and D may be examples as well.

    Returns:
      The share; inf without decay.

    Raises:
      ValueError: a number outside its domain.

    >>> print(timescale_share(6e-4, 0.1, batch_tokens=2**19, tokens=300e9))
    0.029127

    Source: Wang and Aitchison, arXiv 2405.13698; Bergsma et al., arXiv 2505.13738.
    """
    steps = positive("tokens", tokens) / positive("batch_tokens", batch_tokens)
    return timescale(learning_rate, weight_decay) / steps


def power_lines_share(tokens: float, parameters: float) -> float:
    """The share of the data over which language models average best: a power law.

        τ/steps = 1.084·(D/N)^−0.527

    The more tokens per parameter, the shorter the memory. Fitted to AdamW under μP with a
    learning rate that decays linearly to 0, to models of 111 million to 3.3 billion
    parameters that see each token once (R² = .975, the exponent within −.507 and −.529),
    at batches below the critical one.

    Args:
      tokens: D > 0, of the run.
      parameters: N > 0, of the model.

    Returns:
      The share, as of `timescale_share`.

    Raises:
      ValueError: a number outside its domain.

    >>> print(power_lines_share(20e9, 1e9), power_lines_share(1000e9, 1e9))
    0.2236 0.0284

    Source: Bergsma et al., arXiv 2505.13738.
    """
    ratio = positive("tokens", tokens) / positive("parameters", parameters)
    return 1.084 * ratio**-0.527


def power_lines(
    learning_rate: float, batch_tokens: float, tokens: float, parameters: float
) -> float:
    """The weight decay at which a run has the timescale of `power_lines_share`.

        λ = B/(ηD·1.084·(D/N)^−0.527)

    λ belongs to one learning rate, the peak at which the run is trained; for another it is
    off by the ratio of the two. Here 0.337 is right at 4e-4, while 1.4e-3 wants 0.096:

    >>> run = {"batch_tokens": 98_304, "tokens": 3.26e9, "parameters": 163e6}
    >>> print(power_lines(4e-4, **run), power_lines(1.4e-3, **run))
    0.3372 0.09635

    Args:
      learning_rate: η > 0, at its peak.
      batch_tokens: B > 0, tokens per step.
      tokens: See `power_lines_share`.
      parameters: See `power_lines_share`.

    Returns:
      λ for a decay that the learning rate scales, as in torch and Optax.

    Raises:
      ValueError: a number outside its domain.

    Source: Bergsma et al., arXiv 2505.13738.
    """
    steps = positive("tokens", tokens) / positive("batch_tokens", batch_tokens)
    return for_timescale(power_lines_share(tokens, parameters) * steps, learning_rate)


def transferred(weight_decay: float, batch_ratio: float, tokens_ratio: float) -> float:
    """The weight decay of a run with other batches and more tokens than the tuned one.

        λ' = λ·√(B'/B)·D/D'      together with      η' = η·√(B'/B)

    It keeps ``B/(ηλD)``, the share of the data that weights average over, where
    `power_lines` shortens it.

    Args:
      weight_decay: λ ≥ 0, of the tuned run; the learning rate scales it.
      batch_ratio: B'/B > 0, tokens per step, new over tuned.
      tokens_ratio: D'/D > 0, tokens of the whole run, new over tuned.

    Returns:
      λ'.

    Raises:
      ValueError: a number outside its domain.

    >>> print(transferred(0.28, batch_ratio=2, tokens_ratio=8))
    0.0495

    Source: nanochat, ``scripts/base_train.py``, after arXiv 2405.13698.
    """
    ratio = positive("batch_ratio", batch_ratio)
    lam = _check.number("weight_decay", weight_decay)
    return lam * math.sqrt(ratio) / positive("tokens_ratio", tokens_ratio)


def for_width(weight_decay: float, width_ratio: float, keeping: Keeping) -> float:
    """The weight decay of a wider model, by three published rules that disagree.

        λ' = λ             keeping="weight_decay": μP's standard form
        λ' = λ·w'/w        keeping="timescale": ηλ as it was; "independent" decay
        λ' = λ·√(w'/w)     keeping="gain": how strongly each layer transforms its input

    each for matrices, whose learning rate goes down under μP, ``η' = η·w/w'``, while the
    decay is scaled by the learning rate. Experiments favor the second or the third; under
    the first the learning rate does not transfer.

    Args:
      weight_decay: λ ≥ 0, tuned at width w.
      width_ratio: w'/w > 0.
      keeping: what stays the same.

    Returns:
      λ' for matrices; the third rule leaves vectors without decay.

    Raises:
      ValueError: a number outside its domain; an unknown ``keeping``.

    >>> print([for_width(0.1, 4, k) for k in ("weight_decay", "timescale", "gain")])
    [0.1, 0.4, 0.2]

    Source: the first two, compared: Wang and Aitchison, arXiv 2405.13698, and Kosson
    et al., arXiv 2510.19093; the third: Fan et al., arXiv 2510.15262.
    """
    powers = {"weight_decay": 0.0, "timescale": 1.0, "gain": 0.5}
    one_of("keeping", keeping, Keeping)
    ratio = positive("width_ratio", width_ratio)
    return _check.number("weight_decay", weight_decay) * ratio ** powers[keeping]


def half_life(learning_rate: float, weight_decay: float) -> float:
    """After how many steps decay alone has halved a weight.

        t½ = ln 2 / −ln(1 − ηλ)

    Args:
      learning_rate: η ≥ 0; 1 for a decay that no learning rate scales.
      weight_decay: λ ≥ 0.

    Returns:
      t½ in steps under `decay.linear`; inf without decay, 0 where one step takes all.

    Raises:
      ValueError: a negative or non-finite number; ``ηλ > 1``, where weights change sign.

    >>> print(half_life(learning_rate=1e-3, weight_decay=0.1))
    6931.1
    """
    rate = _per_step(learning_rate, weight_decay)
    if rate > 1.0:
        raise ValueError(
            "learning_rate × weight_decay must be ≤ 1, or every step carries the weights "
            f"across zero; got {learning_rate!r} × {weight_decay!r} = {rate:g}."
        )
    if rate in (0.0, 1.0):
        return 0.0 if rate else math.inf
    return math.log(2) / -math.log1p(-rate)


class Comparison(dict[str, float]):
    """The weight decay of each rule by the rule's name; printed, the table of `compare`."""

    def __init__(self, values: dict[str, float], table: str) -> None:
        super().__init__(values)
        self._table = table

    def __str__(self) -> str:
        return self._table


def compare(
    learning_rate: float,
    batch_tokens: float,
    tokens: float,
    parameters: float,
    *,
    scaled_by: ScaledBy = "learning_rate",
    b1: float = 0.9,
) -> Comparison:
    """What the published rules say for one run, side by side.

    Each is given as the weight decay that the optimizer takes, and by what it means: the
    share of the run over which weights average, and the angle per step and the root mean
    square at which AdamW's weights settle at the peak of the learning rate.

    Args:
      learning_rate: η > 0, at its peak.
      batch_tokens: B > 0, tokens per step.
      tokens: D > 0, of the run.
      parameters: N > 0, of the model.
      scaled_by: what the decay is multiplied by, as in `adamw`. At the peak ``"schedule"``
        and ``"nothing"`` are the same.
      b1: decay of Adam's first moment, for the angle.

    Returns:
      A dict from the rules to λ, whose string is the table.

    Raises:
      ValueError: a number outside its domain; an unknown ``scaled_by``.

    >>> print(compare(6e-4, batch_tokens=2**19, tokens=300e9, parameters=124e6))
    rule                       λ  share of run  angle (°)     rms
    Optax's default       0.0001          29.1    0.00455    1.73
    torch's default         0.01         0.291     0.0455   0.173
    common in LLMs           0.1        0.0291      0.144  0.0548
    λ_norm = 0.025        0.0551        0.0529      0.107  0.0738
    λ_norm = 0.05           0.11        0.0264      0.151  0.0522
    one average per run  0.00291             1     0.0246   0.321
    Power Lines            0.163        0.0179      0.184   0.043
    """
    one_of("scaled_by", scaled_by, ScaledBy)
    eta = positive("learning_rate", learning_rate)
    steps = positive("tokens", tokens) / positive("batch_tokens", batch_tokens)
    per_step = {
        "Optax's default": 1e-4 * eta,
        "torch's default": 1e-2 * eta,
        "common in LLMs": 0.1 * eta,
        "λ_norm = 0.025": normalized(0.025, batch_tokens, tokens, 1),
        "λ_norm = 0.05": normalized(0.05, batch_tokens, tokens, 1),
        "one average per run": 1 / steps,
        "Power Lines": eta * power_lines(eta, batch_tokens, tokens, parameters),
    }
    values: dict[str, float] = {}
    rows: list[tuple[str, ...]] = [("rule", "λ", "share of run", "angle (°)", "rms")]
    for rule, rho in per_step.items():
        values[rule] = rho / eta if scaled_by == "learning_rate" else rho
        numbers = (
            values[rule],
            1 / (rho * steps),
            math.degrees(equilibrium_angle(1.0, rho, b1)),
            equilibrium_rms(eta, rho, b1, scaled_by="nothing"),
        )
        rows.append((rule, *(f"{x:.3g}" for x in numbers)))
    return Comparison(values, _table(rows))


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def _per_step(learning_rate: float, weight_decay: float) -> float:
    return _check.number("learning_rate", learning_rate) * _check.number(
        "weight_decay", weight_decay
    )
