"""Decay for an optimizer that is already finished."""

from __future__ import annotations

import optax

from optwd._precision import in_float32


def with_weight_decay(
    optimizer: optax.GradientTransformation, decay: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Add a decay to any finished optimizer.

        θ ← θ + Δ − ρθ   for `decay.linear(ρ)`, with Δ the optimizer's own update

    The decay's number or schedule is the whole rate: the optimizer's learning rate does
    not scale it. For a rate that follows it, give
    ``decay.linear(rates.by_learning_rate(λ, η))``.

    ``chain(optimizer, decay)`` would have the wrong sign and grow the weights; this is the
    right way.

    Args:
      optimizer: any optimizer whose updates are to be added to the parameters.
      decay: a transformation of the descent direction, such as those in `decay`.

    Returns:
      An optimizer that accepts the extra arguments of both. Its updates have the wider
      dtype of the optimizer's own and the parameter, so that a decay is not lost beside a
      step in low precision.

    Raises:
      ValueError: as the decay does.

    >>> import jax.numpy as jnp, optax
    >>> from optwd import decay
    >>> optimizer, theta = with_weight_decay(optax.sgd(0.1), decay.linear(0.5)), jnp.ones(1)
    >>> print(optimizer.update(jnp.ones(1), optimizer.init(theta), theta)[0])
    [-0.6]

    Source: Loshchilov and Hutter, arXiv 1711.05101, applied to other optimizers.
    """
    for name, part in {"optimizer": optimizer, "decay": decay}.items():
        if not (hasattr(part, "init") and hasattr(part, "update")):
            raise TypeError(
                f"with_weight_decay: {name} must be a transformation, got {part!r}; write "
                "with_weight_decay(optax.lion(1e-4), decay.linear(1e-5))."
            )
    # The sign flip is where the update takes the wider dtype of the step and the weights.
    flip = in_float32(optax.scale(-1))
    return optax.chain(optimizer, flip, decay, optax.scale(-1))
