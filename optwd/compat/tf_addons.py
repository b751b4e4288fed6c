"""TensorFlow Addons' optimizers, and a TensorFlow 1 recipe that decays after the step.

The weight decay is the whole rate: no learning rate scales it. Under a learning rate
schedule give it a schedule of the same shape, as their documentation asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optax
from jax.typing import ArrayLike

from optwd import decay, masks
from optwd._check import ScalarOrSchedule
from optwd._precision import in_float32
from optwd._with_weight_decay import with_weight_decay
from optwd.compat import _parts
from optwd.compat._moments import scale_by_adam_eps_hat, scale_by_amsgrad_raw_eps_hat
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = [
    "adamw",
    "decay_after_update",
    "extend_with_decoupled_weight_decay",
    "sgdw",
]


def __dir__() -> list[str]:
    return __all__


def adamw(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule = 1e-3,
    beta_1: ArrayLike = 0.9,
    beta_2: ArrayLike = 0.999,
    epsilon: ArrayLike = 1e-7,
    amsgrad: bool = False,
    *,
    decay_var_list: Iterable[str] | MaskLike = None,
) -> Optimizer:
    """``tfa.optimizers.AdamW``: decay that no learning rate scales, and ε on the raw root.

        θ ← (1 − λ)θ − ηₜ√(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√v + ε)

    Args:
      weight_decay: λ ≥ 0: a number, or a schedule of the step (0 at the first).
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step.
      beta_1: b1 of `optwd.compat.scale_by_adam_eps_hat`; ``beta_2`` is its b2, and
        ``epsilon`` its eps.
      amsgrad: divide by the largest v so far; see
        `optwd.compat.scale_by_amsgrad_raw_eps_hat`.
      decay_var_list: See `extend_with_decoupled_weight_decay`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.5, 0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.5]

    Source: TensorFlow Addons 0.23, ``optimizers/weight_decay_optimizers.py``.
    """
    scale_by = scale_by_amsgrad_raw_eps_hat if amsgrad else scale_by_adam_eps_hat
    return _parts.independent(
        scale_by(beta_1, beta_2, epsilon),
        _parts.learning_rate("learning_rate", learning_rate, flip_sign=False),
        weight_decay=weight_decay,
        mask=_mask(decay_var_list),
    )


def sgdw(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule = 1e-3,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    *,
    decay_var_list: Iterable[str] | MaskLike = None,
) -> Optimizer:
    """``tfa.optimizers.SGDW``: the learning rate enters the momentum, not the decay.

        m ← ηₜg + momentum·m,   θ ← (1 − λ)θ − m

    See `adamw` for the other arguments.

    Args:
      momentum: the decay of `optwd.trace`, which also explains ``nesterov``. With 0, no
        momentum is kept.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgdw(0.5, 0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([1.0]), optimizer.init(theta), theta)[0])
    [-0.6]

    Source: TensorFlow Addons 0.23, ``optimizers/weight_decay_optimizers.py``.
    """
    return _parts.independent(
        _parts.learning_rate("learning_rate", learning_rate, flip_sign=False),
        _parts.momentum(momentum, nesterov),
        weight_decay=weight_decay,
        mask=_mask(decay_var_list),
    )


def extend_with_decoupled_weight_decay(
    optimizer: optax.GradientTransformation,
    weight_decay: ScalarOrSchedule,
    decay_var_list: Iterable[str] | MaskLike = None,
) -> Optimizer:
    """Any finished optimizer, with decay that no learning rate scales.

        θ ← (1 − λ)θ + Δ, with Δ the optimizer's own update

    Args:
      optimizer: any optimizer whose updates are to be added to the parameters.
      weight_decay: See `adamw`.
      decay_var_list: which leaves decay: None for all, globs of their paths (see
        `optwd.masks.path`), or any mask. With an **empty list nothing decays**; in
        TensorFlow Addons everything does.

    Returns:
      An optimizer that accepts the extra arguments of both.

    Raises:
      ValueError: as `optwd.decay.linear`; a glob that matches no leaf.

    >>> import jax.numpy as jnp, optax
    >>> sgd = extend_with_decoupled_weight_decay(optax.sgd(0.1), 0.5, decay_var_list=[])
    >>> print(sgd.update(jnp.array([1.0]), sgd.init(jnp.ones(1)), jnp.ones(1))[0])
    [-0.1]

    Source: TensorFlow Addons 0.23, ``optimizers/weight_decay_optimizers.py``.
    """
    return in_float32(
        with_weight_decay(optimizer, decay.linear(weight_decay, _mask(decay_var_list)))
    )


def decay_after_update(
    optimizer: optax.GradientTransformation,
    weight_decay: ScalarOrSchedule,
    decay_var_list: Iterable[str] | MaskLike = None,
) -> Optimizer:
    """Any finished optimizer, with decay of the weights that it has already moved.

        θ ← (1 − λ)(θ + Δ), with Δ the optimizer's own update

    In TensorFlow 1 this is a second, plain gradient descent of rate 1 on ``½λ‖θ‖²``, run
    after the first. It differs from decay of the old weights by ``λΔ`` per step. The CUDA
    kernels of bitsandbytes decay like this with ``rates.by_learning_rate(λ, η)``.

    See `extend_with_decoupled_weight_decay` for the arguments.

    >>> import jax.numpy as jnp, optax
    >>> sgd = decay_after_update(optax.sgd(0.1), 0.5)
    >>> print(sgd.update(jnp.array([1.0]), sgd.init(jnp.ones(1)), jnp.ones(1))[0])
    [-0.55]
    """
    after = decay.from_rule(_after, weight_decay, _mask(decay_var_list))
    return in_float32(with_weight_decay(optimizer, after))


def _after(u, p, rho):
    return u + rho * (p - u)


def _mask(decay_var_list: Any) -> MaskLike:
    if isinstance(decay_var_list, str):
        return masks.path(decay_var_list)
    if not isinstance(decay_var_list, (list, tuple, set, frozenset)):
        return decay_var_list
    if not decay_var_list:
        return False
    globs = all(isinstance(name, str) for name in decay_var_list)
    return masks.path(*decay_var_list) if globs else list(decay_var_list)
