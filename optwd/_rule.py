"""A rule, a rate and a mask, made into a transformation."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from optwd import _check, _leafwise, _paths, masks
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation, Field
from optwd.masks import MaskLike

Rule = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class DecayState(NamedTuple):
    """The step at which the rate is read, whether it is a number or a schedule.

    It is not called ``count``, so that ``optax.tree.get(state, "count")`` finds only
    Adam's, as it does in the state of ``optax.adamw``.

    Attributes:
      step: updates so far; int32 of shape ().
    """

    step: jax.Array


def transformation(
    name: str,
    equation: Equation,
    rate_name: str,
    rate: ScalarOrSchedule,
    mask: MaskLike,
    state_type: type[Any] = DecayState,
    fields: Mapping[str, Field] | None = None,
    most: float = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """`u ← equation(u, θ, *state, ρ)` on every leaf, ρ the rate times its multiplier.

    `most` is the largest rate that may act on a leaf.
    """
    domain: dict[str, Any] = {} if most == math.inf else {"below": most, "closed": True}
    checked = _check.rate(rate_name, rate, **domain)
    masks.check(mask)
    highest = most / (checked or 1.0) if isinstance(checked, float) else most

    def rho(state: Any) -> Any:
        return _check.at_step(rate_name, checked, state.step, **domain)

    def factors(params: Any) -> Any:
        resolved = masks.resolve(mask, params)
        for path, factor in _paths.by_path(resolved).items() if domain else ():
            if factor > highest:
                raise ValueError(
                    f"{path}: the mask multiplies {rate_name} by {factor}, and the product "
                    f"must be in [0, {most:g}]; the multiplier can be {highest:g} at most."
                )
        return resolved

    inner = _leafwise.transformation(name, equation, state_type, fields or {}, rho, factors)

    def init(params: Any) -> Any:
        _check.first(rate_name, checked, **domain)
        masks.warn_if_idle(name, mask, params, factors(params))
        return inner.init(params)

    return optax.GradientTransformationExtraArgs(init, inner.update)
