"""fastai's Adam and SGD: decoupled decay unless ``decouple_wd=False``."""

from __future__ import annotations

from jax.typing import ArrayLike

from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

__all__ = ["adam", "sgd"]


def __dir__() -> list[str]:
    return __all__


def adam(
    lr: ScalarOrSchedule,
    mom: ArrayLike = 0.9,
    sqr_mom: ArrayLike = 0.99,
    eps: ArrayLike = 1e-5,
    wd: ScalarOrSchedule = 0.01,
    decouple_wd: bool = True,
    *,
    mask: MaskLike = None,
) -> Optimizer:
    """``fastai.optimizer.Adam``, which is AdamW by default.

        θ ← θ(1 − ηₜλ) − ηₜ m̂/(√v̂ + ε)
        g ← g + λθ, then Adam             decouple_wd=False

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      mom: b1 of `optwd.scale_by_adam`; ``sqr_mom`` is its b2.
      eps: See `optwd.scale_by_adam`.
      wd: λ ≥ 0: a number, or a schedule of the step.
      decouple_wd: whether decay is decoupled, the first equation.
      mask: which leaves decay; see `optwd.decay.linear`. fastai's ``Learner`` leaves out
        norms and biases: ``masks.standard()``.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam(0.1, wd=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: fastai 2.8, ``fastai/optimizer.py``.
    """
    chain = _parts.decoupled if decouple_wd else _parts.coupled
    direction = scale_by_adam(mom, sqr_mom, eps)
    return chain(direction, _parts.learning_rate("lr", lr), wd, mask)


def sgd(
    lr: ScalarOrSchedule,
    mom: ArrayLike = 0.0,
    wd: ScalarOrSchedule = 0.0,
    decouple_wd: bool = True,
    *,
    mask: MaskLike = None,
) -> Optimizer:
    """``fastai.optimizer.SGD``, which is SGDW by default.

        m ← g + mom·m,   θ ← θ(1 − ηₜλ) − ηₜm
        g ← g + λθ, then SGD              decouple_wd=False

    See `adam` for the other arguments.

    Args:
      mom: the decay of `optwd.trace`. With 0, no momentum is kept.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd(0.1, 0.9, wd=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: fastai 2.8, ``fastai/optimizer.py``.
    """
    chain = _parts.decoupled if decouple_wd else _parts.coupled
    return chain(_parts.momentum(mom), _parts.learning_rate("lr", lr), wd, mask)
