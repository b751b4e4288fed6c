"""NAdamW as AlgoPerf and init2winit compute it."""

from typing import Any

import optax
from jax.typing import ArrayLike

from optwd import _moments
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["nadamw"]


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

        m, v, v̂ as in `optwd.scale_by_adam`
        m̂ = (b1·m + (1 − b1)·g)/(1 − b1ᵗ)
        θ ← θ − ηₜ(m̂/(√(v̂ + eps_root) + eps) + λθ)

    `optwd.nadamw`, as Optax, divides m by ``1 − b1ᵗ⁺¹``: its first step is 1 where this
    one's is ``1 + b1``, and it goes elsewhere from there.

    Place in the chain: a finished optimizer; its updates are added to the parameters.

    Args:
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      b1: See `optwd.scale_by_adam`, also for ``b2``, ``eps`` and ``eps_root``.
      weight_decay: λ ≥ 0, scaled by the learning rate.
      weight_decay_mask: to which leaves; see `optwd.decay.linear`. AlgoPerf's own baseline
        gives none, so norms, biases and embeddings decay.

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
    direction = _moments.scale_by(
        "nadamw",
        _NADAM,
        optax.ScaleByAdamState,
        *(b1, b2, eps, eps_root, None, None),
        more=lambda b1, b2, state: b1,
    )
    rate = _parts.learning_rate("learning_rate", learning_rate)
    return _parts.decoupled(direction, rate, weight_decay, weight_decay_mask)


def _nadam(g: Any, m: Any, v: Any, s: _moments.Scalars) -> Any:
    ahead = s.more * m + s.first.gain * g
    v_hat = v / s.second.correction
    return ahead / (s.first.correction * _moments.root(v_hat, s))


_NADAM = Equation(_nadam, _moments.next_moments)


def __dir__() -> list[str]:
    return __all__
