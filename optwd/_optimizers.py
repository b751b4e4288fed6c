"""Recipes: every optimizer is one chain.

Read a chain from top to bottom: what comes first touches the gradient first, and a decay is
scaled by what comes after it.
"""

from __future__ import annotations

from typing import Any

import optax
from jax.typing import ArrayLike, DTypeLike

from optwd import _check, decay, rates
from optwd._check import ScalarOrSchedule
from optwd._equilibrium import ScaledBy
from optwd._l2 import add_l2
from optwd._learning_rate import scale_by_learning_rate
from optwd._moments import scale_by_adam, scale_by_amsgrad, trace
from optwd._precision import in_float32
from optwd.masks import MaskLike

Optimizer = optax.GradientTransformationExtraArgs


def adam(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam without any decay.

        θ ← θ − ηₜ m̂/(√v̂ + ε)

    Args:
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      b1: See `scale_by_adam`, also for ``b2``, ``eps``, ``eps_root``, ``mu_dtype``,
        ``nu_dtype`` and ``nesterov``.

    Returns:
      An optimizer with the state of `optax.adam`, whose updates are added to the
      parameters. Everything is computed in float32 at least; an update has the wider of
      the dtypes of its gradient and its parameter.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam(0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.1]

    Source: Kingma and Ba, arXiv 1412.6980, Algorithm 1.
    """
    return in_float32(
        optax.chain(
            scale_by_adam(
                b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, nesterov=nesterov
            ),
            scale_by_learning_rate(learning_rate),
        )
    )


def adam_l2(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    l2: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam with a coupled L2 penalty: what ``weight_decay`` means in torch's ``Adam``.

        g ← g + λθ, then Adam

    Args:
      learning_rate: See `adam`, also for ``b1`` to ``mu_dtype`` and the keywords.
      l2: λ; see `add_l2`.
      mask: which leaves are penalized; see `add_l2`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam_l2(0.1, l2=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.1]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, the L2 lines.
    """
    return in_float32(
        optax.chain(
            add_l2(l2, mask),
            scale_by_adam(
                b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, nesterov=nesterov
            ),
            scale_by_learning_rate(learning_rate),
        )
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
    *,
    nesterov: bool = False,
    nu_dtype: DTypeLike | None = None,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: ArrayLike | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay.

        θ ← θ − ηₜ (û + λθ)            scaled_by="learning_rate": torch and Optax
        θ ← θ − ηₜ û − (ηₜ/η_max) λθ    scaled_by="schedule": the AdamW paper
        θ ← θ − ηₜ û − λθ               scaled_by="nothing": TF-Addons

    with û = m̂/(√v̂ + ε) from `scale_by_adam`, and θ on the right the old parameters.

    Args:
      learning_rate: See `adam`, also for ``b1`` to ``mu_dtype`` and the keywords.
      weight_decay: λ; see `decay.linear`.
      mask: which leaves decay; see `decay.linear`.
      scaled_by: what the decay is multiplied by, as above.
      peak_learning_rate: η_max, for ``scaled_by="schedule"``; needed unless
        ``learning_rate`` is a Python number.

    Returns:
      An optimizer; see `adam`. Its state has one part more than Adam's, the same for a
      number and a schedule, masked or not.

    Raises:
      ValueError: as `adam` and `decay.linear`; an unknown ``scaled_by``; a peak that is
        missing, or given where nothing uses it.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2.
    """
    return in_float32(
        optax.chain(
            scale_by_adam(
                b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, nesterov=nesterov
            ),
            *_decay_and_learning_rate(
                learning_rate, weight_decay, mask, scaled_by, peak_learning_rate
            ),
        )
    )


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam over the largest second moment so far, without any decay.

        θ ← θ − ηₜ m̂/(√w + ε),   w ← max(w, v̂)

    Args:
      learning_rate: See `adam`.
      b1: See `scale_by_amsgrad`, also for the other arguments.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = amsgrad(0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.1]

    Source: Reddi, Kale and Kumar, arXiv 1904.09237, Algorithm 2.
    """
    return in_float32(
        optax.chain(
            scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype),
            scale_by_learning_rate(learning_rate),
        )
    )


def amsgradw(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
    *,
    nu_dtype: DTypeLike | None = None,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: ArrayLike | None = None,
) -> Optimizer:
    """AMSGrad with decoupled weight decay.

        the equations of `adamw` with û = m̂/(√w + ε) from `scale_by_amsgrad`

    Args:
      learning_rate: See `adam`.
      b1: See `scale_by_amsgrad`, also for the arguments up to ``mu_dtype``.
      weight_decay: See `adamw`, also for ``mask``, ``scaled_by`` and
        ``peak_learning_rate``.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = amsgradw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: arXiv 1904.09237, Algorithm 2, with the decay of arXiv 1711.05101.
    """
    return in_float32(
        optax.chain(
            scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype),
            *_decay_and_learning_rate(
                learning_rate, weight_decay, mask, scaled_by, peak_learning_rate
            ),
        )
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> Optimizer:
    """Adam with Nesterov momentum, without any decay.

        θ ← θ − ηₜ m̂/(√v̂ + ε),   m̂ = b1·m/(1 − b1ᵗ⁺¹) + (1 − b1)·g/(1 − b1ᵗ)

    ``b1`` is constant, as in Optax; torch's ``NAdam`` lets it grow along a schedule.

    Args:
      learning_rate: See `adam`, also for the other arguments.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = nadam(0.1, b1=0.5), jnp.array([1.0])
    >>> u, _ = optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)
    >>> print(u.round(4))  # 0.5·0.5/0.75 + 0.5/0.5 = 4/3
    [-0.1333]

    Source: Dozat, Incorporating Nesterov momentum into Adam, 2016, as Optax reads it.
    """
    return adam(
        learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov=True, nu_dtype=nu_dtype
    )


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
    *,
    nu_dtype: DTypeLike | None = None,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: ArrayLike | None = None,
) -> Optimizer:
    """NAdam with decoupled weight decay.

        the equations of `adamw` with û = m̂/(√v̂ + ε) from `nadam`

    Args:
      learning_rate: See `adam`, also for the arguments up to ``mu_dtype``.
      weight_decay: See `adamw`, also for ``mask``, ``scaled_by`` and
        ``peak_learning_rate``.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = nadamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Dozat 2016 with the decay of arXiv 1711.05101.
    """
    return adamw(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        weight_decay,
        mask,
        nesterov=True,
        nu_dtype=nu_dtype,
        scaled_by=scaled_by,
        peak_learning_rate=peak_learning_rate,
    )


def sgd_l2(
    learning_rate: ScalarOrSchedule,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    l2: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
) -> Optimizer:
    """SGD with a coupled L2 penalty: what ``weight_decay`` means in torch's ``SGD``.

        g ← g + λθ,   m ← g + momentum·m,   θ ← θ − ηₜ m

    Args:
      learning_rate: See `adam`.
      momentum: See `trace`, also for ``nesterov`` and ``accumulator_dtype``. None is plain
        SGD, without that state.
      l2: λ; see `add_l2`.
      mask: which leaves are penalized; see `add_l2`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd_l2(0.1, l2=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 1, the L2 lines.
    """
    return in_float32(
        optax.chain(
            add_l2(l2, mask),
            _momentum(momentum, nesterov, accumulator_dtype),
            scale_by_learning_rate(learning_rate),
        )
    )


def sgdw(
    learning_rate: ScalarOrSchedule,
    momentum: ArrayLike | None = None,
    nesterov: bool = False,
    accumulator_dtype: DTypeLike | None = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: MaskLike = None,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: ArrayLike | None = None,
) -> Optimizer:
    """SGD with decoupled weight decay.

        m ← g + momentum·m, then the equations of `adamw` with û = m

    Without momentum, and scaled by the learning rate, it equals `sgd_l2`; with momentum it
    does not, since the penalty's gradient does not enter ``m``.

    Args:
      learning_rate: See `adam`.
      momentum: See `sgd_l2`, also for ``nesterov`` and ``accumulator_dtype``.
      weight_decay: See `adamw`, also for ``mask``, ``scaled_by`` and
        ``peak_learning_rate``.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgdw(0.1, 0.9, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 1.
    """
    return in_float32(
        optax.chain(
            _momentum(momentum, nesterov, accumulator_dtype),
            *_decay_and_learning_rate(
                learning_rate, weight_decay, mask, scaled_by, peak_learning_rate
            ),
        )
    )


def _decay_and_learning_rate(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: MaskLike,
    scaled_by: ScaledBy,
    peak: ArrayLike | None,
) -> tuple[optax.GradientTransformation, ...]:
    """The decay before the learning rate, which then scales it, or after it."""
    if peak is not None and scaled_by != "schedule":
        raise ValueError(
            f"peak_learning_rate={peak!r} is only used by scaled_by='schedule', not by "
            f"{scaled_by!r}; leave it out, or change scaled_by."
        )
    match scaled_by:
        case "learning_rate":
            return decay.linear(weight_decay, mask), scale_by_learning_rate(learning_rate)
        case "schedule":
            peak = _peak(learning_rate) if peak is None else peak
            weight_decay = rates.by_schedule(weight_decay, learning_rate, peak)
        case "nothing":
            pass
        case _:
            raise ValueError(
                "scaled_by must be 'learning_rate', 'schedule' or 'nothing', got "
                f"{scaled_by!r}."
            )
    return (
        scale_by_learning_rate(learning_rate, flip_sign=False),
        decay.linear(weight_decay, mask),
        optax.scale(-1),
    )


def _peak(learning_rate: ScalarOrSchedule) -> float:
    if isinstance(learning_rate, (int, float)):
        if learning_rate == 0:
            raise ValueError(
                "learning_rate=0 leaves nothing to divide the schedule by: with it "
                "peak_learning_rate must be > 0. Give the largest value of the schedule."
            )
        return learning_rate
    raise ValueError(
        "scaled_by='schedule' needs peak_learning_rate: the peak of learning_rate="
        f"{learning_rate!r} cannot be known. Give the largest value it takes."
    )


def _momentum(momentum: Any, nesterov: bool, accumulator_dtype: Any) -> Any:
    if momentum is None:
        return optax.identity()
    momentum = _check.number("momentum", momentum, below=1.0)
    return trace(momentum, nesterov, accumulator_dtype)
