"""fastai's Adam and SGD: decoupled decay unless ``decouple_wd=False``."""

from jax.typing import ArrayLike

from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _parts
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike


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
    """Fastai's ``Adam``: AdamW by default.

        θ ← θ(1 − ηₜλ) − ηₜ m̂/(√v̂ + ε)
        g ← g + λθ, then Adam             decouple_wd=False

    Place in the chain: a finished optimizer; its updates are added to the parameters.

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      mom: b1 of `optwd.scale_by_adam`; ``sqr_mom`` is its b2, and ``eps`` is the same.
      wd: λ ≥ 0: a number, or a schedule of the step.
      decouple_wd: as above.
      mask: who decays; see `optwd.decay.linear`. fastai's ``Learner`` leaves out norms and
        biases: ``masks.standard()``.

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
    """Fastai's ``SGD``: SGDW by default.

        m ← g + mom·m,   θ ← θ(1 − ηₜλ) − ηₜm
        g ← g + λθ, then SGD              decouple_wd=False

    Place in the chain, other arguments, result and errors: see `adam`.

    Args:
      mom: the momentum; see `optwd.trace`. With 0 there is no such state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd(0.1, 0.9, wd=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: fastai 2.8, ``fastai/optimizer.py``.
    """
    chain = _parts.decoupled if decouple_wd else _parts.coupled
    return chain(_parts.momentum(mom), _parts.learning_rate("lr", lr), wd, mask)
