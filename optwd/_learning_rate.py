"""Times the learning rate: the one part that every finished optimizer has."""

from typing import Any

import optax

from optwd import _check, _leafwise
from optwd._check import ScalarOrSchedule


def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule,
    *,
    flip_sign: bool = True,
    name: str = "learning_rate",
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate` with its state, run as all of our equations are.

    `name` is the argument that errors name.
    """
    checked = _check.rate(name, learning_rate)
    sign = -1.0 if flip_sign else 1.0

    def rate(state: optax.ScaleByScheduleState | optax.EmptyState) -> Any:
        step = state.count if isinstance(state, optax.ScaleByScheduleState) else 0
        return sign * _check.at_step(name, checked, step)

    state_type = optax.ScaleByScheduleState if callable(checked) else optax.EmptyState
    inner = _leafwise.transformation(f"the {name}", _TIMES, state_type, {}, rate)

    def init(params: Any) -> Any:
        _check.first(name, checked)
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)


def _times(u, rate):
    return rate * u


_TIMES = _leafwise.Equation(_times)
