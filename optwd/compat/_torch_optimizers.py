"""PyTorch's optimizers, under torch's argument names, defaults and arithmetic."""

from __future__ import annotations

from jax.typing import ArrayLike

from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _parts
from optwd.compat._moments import (
    scale_by_amsgrad_raw,
    scale_by_nadam,
    scale_by_radam_eps_hat,
)
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

Betas = tuple[ArrayLike, ArrayLike]


def adam(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.Adam``, whose weight decay is coupled by default.

        g ← g + λθ, then θ ← θ − ηₜ m̂/(√v̂ + ε)
        θ ← θ − ηₜ(m̂/(√v̂ + ε) + λθ)        decoupled_weight_decay

    As in torch, a complex parameter is two real ones: its real and imaginary parts have
    moments of their own.

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      betas: b1 and b2 of `optwd.scale_by_adam`, which also explains ``eps``.
      weight_decay: λ ≥ 0: a number, or a schedule of the step.
      amsgrad: divide by the largest second moment so far; see
        `optwd.compat.scale_by_amsgrad_raw`.
      maximize: ascend. The gradient is negated first, so that the decay still shrinks.
      decoupled_weight_decay: the second equation, which is that of `adamw`.
      mask: which leaves decay; see `optwd.decay.linear`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.1]

    Source: torch 2.13, ``torch/optim/adam.py``.
    """
    scale_by = scale_by_amsgrad_raw if amsgrad else scale_by_adam
    direction = _parts.of_two_reals(scale_by(*betas, eps))
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def adamw(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.AdamW``: decay scaled by the learning rate, of the old weights.

        θ ← θ − ηₜ(m̂/(√v̂ + ε) + λθ)

    The default weight decay is a hundred times that of Optax. See `adam` for the arguments.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: torch 2.13, ``torch/optim/adamw.py``.
    """
    return adam(
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        mask=mask,
    )


def sgd(
    lr: ScalarOrSchedule = 1e-3,
    momentum: ArrayLike = 0.0,
    dampening: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.SGD``, whose weight decay is coupled and enters the momentum.

        g ← g + λθ,   m ← (1 − dampening)·g + momentum·m,   θ ← θ − ηₜm

    See `adam` for the other arguments.

    Args:
      momentum: the decay of `optwd.trace`, which also explains ``nesterov``. With 0, no
        momentum is kept.
      dampening: See `optwd.compat.trace_dampened`. With ``nesterov`` it must be 0.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd(0.1, 0.9, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: torch 2.13, ``torch/optim/sgd.py``.
    """
    _parts.check_nesterov(momentum, dampening, nesterov)
    direction = _parts.momentum(momentum, nesterov, dampening)
    return _parts.coupled(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def nadam(
    lr: ScalarOrSchedule = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum_decay: ArrayLike = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.NAdam``: Nesterov momentum that grows along a schedule.

    The equations are those of `adam` with m̂ of `optwd.compat.scale_by_nadam`, which also
    explains ``momentum_decay``. See `adam` for the other arguments.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = nadam(0.1, momentum_decay=0.0), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.1056]

    Source: torch 2.13, ``torch/optim/nadam.py``.
    """
    direction = _parts.of_two_reals(scale_by_nadam(*betas, eps, momentum_decay))
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def radam(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.RAdam``: plain momentum until the second moment can be trusted.

    The equations are those of `adam` with û of `optwd.compat.scale_by_radam_eps_hat`. See
    `adam` for the arguments.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = radam(0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.5]

    Source: torch 2.13, ``torch/optim/radam.py``.
    """
    direction = _parts.of_two_reals(scale_by_radam_eps_hat(*betas, eps))
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )
