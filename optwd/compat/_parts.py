"""What the dialects share: the ends of their chains."""

from typing import Any

import optax

from optwd import decay
from optwd._check import ScalarOrSchedule
from optwd._l2 import add_l2
from optwd._learning_rate import scale_by_learning_rate
from optwd._moments import trace
from optwd._precision import in_float32
from optwd.compat._moments import trace_dampened
from optwd.masks import MaskLike

Optimizer = optax.GradientTransformationExtraArgs
Part = optax.GradientTransformation
NOTHING = optax.identity()


def learning_rate(name: str, value: ScalarOrSchedule, *, flip_sign: bool = True) -> Part:
    """The learning rate, under the name that the framework has for it."""
    return scale_by_learning_rate(value, flip_sign=flip_sign, name=name)


def coupled(
    direction: Part, rate: Part, weight_decay: Any, mask: MaskLike, first: Part = NOTHING
) -> Optimizer:
    """G ← g + λθ, then the direction and the learning rate."""
    return in_float32(optax.chain(first, add_l2(weight_decay, mask), direction, rate))


def decoupled(
    direction: Part,
    rate: Part,
    weight_decay: Any,
    mask: MaskLike,
    first: Part = NOTHING,
    *,
    scale: Part = NOTHING,
) -> Optimizer:
    """θ ← θ − ηₜ(û + λθ), which is θ ← θ(1 − ηₜλ) − ηₜû; `scale` is of û alone."""
    return in_float32(
        optax.chain(first, direction, scale, decay.linear(weight_decay, mask), rate)
    )


def independent(*step: Part, weight_decay: Any, mask: MaskLike) -> Optimizer:
    """θ ← θ − step − ρθ: the learning rate is in the step, and ρ is the whole rate."""
    return in_float32(optax.chain(*step, decay.linear(weight_decay, mask), optax.scale(-1)))


def peak(name: str, value: Any, learning_rate: ScalarOrSchedule) -> Any:
    """The reference that a schedule is divided by: given, or the constant itself."""
    if value is None and callable(learning_rate):
        raise ValueError(
            f"a learning rate schedule needs {name}: the decay is scaled by "
            f"ηₜ/{name}, and no optimizer can know it from {learning_rate!r}."
        )
    return learning_rate if value is None else value


def negated(maximize: bool) -> Part:
    """Gradient ascent, before anything else sees the gradient."""
    return optax.scale(-1) if maximize else NOTHING


def momentum(value: Any, nesterov: bool = False, dampening: Any = 0.0) -> Part:
    """SGD's direction; 0 is without state, as torch and Keras have it."""
    if _is_zero(value):
        return NOTHING
    if _is_zero(dampening):
        return trace(value, nesterov)
    return trace_dampened(value, dampening)


def check_nesterov(momentum: Any, dampening: Any, nesterov: bool) -> None:
    if nesterov and (_is_zero(momentum) or not _is_zero(dampening)):
        raise ValueError(
            "nesterov needs a momentum above 0 and dampening=0, as in torch; got "
            f"momentum={momentum!r}, dampening={dampening!r}."
        )


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0
