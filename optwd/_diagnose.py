"""From metrics to sentences that a person can act on."""

from __future__ import annotations

import math
from typing import Any

from optwd._monitor import metrics

_CLOSE = 0.2  # of the mean square, to its equilibrium


def diagnose(state: Any, *, steps_left: int | None = None) -> tuple[str, ...]:
    """What the monitors in a state say about weight decay, each with what to do about it.

    It reads what `monitor`, `monitor_decay`, `monitor_rounding` and `monitor_rotation`
    recorded in the last step, and names:

    - metrics that are not finite;
    - decay that is larger than the rest of the step;
    - steps lost to rounding;
    - groups whose size is not at equilibrium, with the steps that are still to go,
      ``ln(|r² − 1|/0.2)/(2ρ)`` for a ratio r: the mean square approaches its equilibrium by
      the factor 1 − 2ρ per step;
    - groups that rotate ten times slower than the fastest.

    It waits for the device; call it now and then, outside jit.

    Args:
      state: See `optwd.metrics`.
      steps_left: of the run, to compare with.

    Returns:
      Sentences; empty if there is nothing to say.

    Raises:
      ValueError: a state in which nothing is monitored.

    >>> import jax.numpy as jnp
    >>> from optwd import monitor_rounding
    >>> tx, theta = monitor_rounding(), jnp.ones(4, jnp.bfloat16)
    >>> _, state = tx.update(jnp.full(4, 1e-4), tx.init(theta), theta)
    >>> print(diagnose(state)[0].partition(";")[0])
    rounding/lost is 100%: these elements do not move
    """
    values = {name: float(value) for name, value in metrics(state).items()}
    if not values:
        raise ValueError(
            "diagnose: nothing is monitored in this state; put monitor_decay, "
            "monitor_rounding or monitor_rotation into the optimizer."
        )
    said = [
        f"{name} is {value}: gradients or weights are not finite; see "
        "optax.apply_if_finite."
        for name, value in values.items()
        if not math.isfinite(value)
    ]
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    for name, value in finite.items():
        group, _, key = name.rpartition("/")
        if key == "ratio" and value > 1.0:
            said.append(
                f"{name} is {value:.2g}: what it measures is larger than the rest of the "
                "step. If that is decay, is it scaled as you meant? See optwd.audit."
            )
        if key == "lost" and value > 0.5:
            said.append(
                f"{name} is {value:.0%}: these elements do not move; wrap the optimizer in "
                "compensate_rounding or round_stochastically."
            )
        if key == "rms_ratio" and finite.get(f"{group}/decay", 0.0) > 0.0:
            said += _on_its_way(group, value, finite[f"{group}/decay"], steps_left)
    return (*said, *_slow(finite))


def _on_its_way(
    group: str, ratio: float, decay: float, steps_left: int | None
) -> list[str]:
    off = abs(ratio**2 - 1)
    if off <= _CLOSE:
        return []
    steps = math.ceil(math.log(off / _CLOSE) / (2 * decay))
    text = (
        f"{group}: the weights are {ratio:.2g} times as large as at equilibrium, about "
        f"{steps:,} steps away"
    )
    if steps_left is not None and steps > steps_left:
        text += (
            f", more than the {steps_left:,} that are left: weight decay acts mostly on "
            "the size of the weights, hardly on how fast they rotate"
        )
    return [f"{text}."]


def _slow(values: dict[str, float]) -> list[str]:
    angles = {name: x for name, x in values.items() if name.endswith("/angle")}
    fastest = max(angles, key=lambda name: angles[name], default="")
    return [
        f"{name} is {angle:.2g}, {angles[fastest] / angle:.0f} times slower than "
        f"{fastest}: its weights are too large for its steps, or its mask is not what you "
        "meant."
        for name, angle in angles.items()
        if 0 < angle * 10 <= angles[fastest]
    ]
