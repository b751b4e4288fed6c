"""What the modules of the frameworks share: the ends of their chains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optwd import _dtypes, decay
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
    """The penalty joins the gradient: ``g ← g + λθ``, then direction and learning rate."""
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
    """Decay before the learning rate: ``θ ← θ − ηₜ(û + λθ)``; `scale` is of û alone."""
    return in_float32(
        optax.chain(first, direction, scale, decay.linear(weight_decay, mask), rate)
    )


def independent(*step: Part, weight_decay: Any, mask: MaskLike) -> Optimizer:
    """Decay after the learning rate: ``θ ← θ − step − ρθ``, with ρ the whole rate."""
    return in_float32(optax.chain(*step, decay.linear(weight_decay, mask), optax.scale(-1)))


def peak(name: str, value: Any, learning_rate: ScalarOrSchedule) -> Any:
    """What a schedule is divided by: as given, or a constant learning rate itself."""
    if value is None and callable(learning_rate):
        raise ValueError(
            f"a learning rate schedule needs {name}: the decay is scaled by "
            f"ηₜ/{name}, and no optimizer can know it from {learning_rate!r}."
        )
    if value is None and _is_zero(learning_rate):
        raise ValueError(f"a learning rate of 0 cannot divide the decay; give {name}.")
    return learning_rate if value is None else value


def negated(maximize: bool) -> Part:
    """Gradient ascent, for anything after it."""
    return optax.scale(-1) if maximize else NOTHING


def momentum(value: Any, nesterov: bool = False, dampening: Any = 0.0) -> Part:
    """SGD's direction; without momentum it keeps no state, as in torch and Keras."""
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


def of_two_reals(direction: Optimizer) -> Optimizer:
    """A direction that treats a complex leaf as torch does: as a real one, of two parts.

    Its state has one more axis there, for the real and the imaginary part.
    """

    def split(x: Any) -> Any:
        return jnp.stack([x.real, x.imag], -1) if _dtypes.is_complex(x) else x

    def joined(u: Any, like: Any) -> Any:
        return jax.lax.complex(u[..., 0], u[..., 1]) if _dtypes.is_complex(like) else u

    def init(params: Any) -> Any:
        return direction.init(jax.tree.map(split, params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = direction.update(jax.tree.map(split, updates), state, params, **extra)
        return jax.tree.map(joined, u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)
