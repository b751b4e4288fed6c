"""NAdamW as AlgoPerf and init2winit compute it."""

from __future__ import annotations

from jax.typing import ArrayLike

from optwd._check import ScalarOrSchedule
from optwd.compat import _parts
from optwd.compat._moments import scale_by_nadam_one_correction
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["nadamw"]


def __dir__() -> list[str]:
    return __all__


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: MaskLike = None,
) -> Optimizer:
    """AdamW whose first moment looks ahead, but whose bias correction does not.

        θ ← θ − ηₜ(û + λθ), with û of `optwd.compat.scale_by_nadam_one_correction`

    Args:
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      b1: See `optwd.scale_by_adam`, also for ``b2``, ``eps`` and ``eps_root``.
      weight_decay: λ ≥ 0: a number, or a schedule of the step.
      weight_decay_mask: which leaves decay; see `optwd.decay.linear`. AlgoPerf's own
        baseline gives none, so that norms, biases and embeddings decay.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = nadamw(1.0), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([3.0]), optimizer.init(theta), theta)[0])
    [-1.9]

    Source: google/init2winit, ``optimizer_lib/kitchen_sink/_src/transform.py``,
    ``scale_by_nadam``, after Choi et al., arXiv 1910.05446, Table 1.
    """
    direction = scale_by_nadam_one_correction(b1, b2, eps, eps_root)
    rate = _parts.learning_rate("learning_rate", learning_rate)
    return _parts.decoupled(direction, rate, weight_decay, weight_decay_mask)
