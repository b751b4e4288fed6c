"""Keras 3's optimizers, by Keras's names, defaults and arithmetic.

ε stands beside the raw root, and every optimizer takes a ``weight_decay``, which is scaled
by the learning rate and acts on the weights before the step.
"""

from collections.abc import Sequence

from jax.typing import ArrayLike

from optwd import masks, rates
from optwd._check import ScalarOrSchedule
from optwd.compat import _parts
from optwd.compat._moments import scale_by_adam_eps_hat, scale_by_amsgrad_raw_eps_hat
from optwd.compat._parts import Optimizer
from optwd.masks import Mask, MaskLike


def adam(
    learning_rate: ScalarOrSchedule = 1e-3,
    beta_1: ArrayLike = 0.9,
    beta_2: ArrayLike = 0.999,
    epsilon: ArrayLike = 1e-7,
    amsgrad: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    mask: MaskLike = None,
) -> Optimizer:
    """``keras.optimizers.Adam``: its weight decay is decoupled, unlike torch's.

        θ ← θ(1 − ηₜλ) − ηₜ√(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√v + ε)

    Place in the chain: a finished optimizer; its updates are added to the parameters.

    Args:
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      beta_1: See `optwd.compat.scale_by_adam_eps_hat`, as ``beta_2`` and ``epsilon``.
      amsgrad: the largest v so far: `optwd.compat.scale_by_amsgrad_raw_eps_hat`.
      weight_decay: λ ≥ 0: a number, a schedule of the step, or None for 0.
      mask: who decays; see `optwd.decay.linear` and `exclude_from_weight_decay`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Keras 3.15, ``keras/src/optimizers/adam.py`` and ``base_optimizer.py``.
    """
    scale_by = scale_by_amsgrad_raw_eps_hat if amsgrad else scale_by_adam_eps_hat
    return _parts.decoupled(
        scale_by(beta_1, beta_2, epsilon),
        _parts.learning_rate("learning_rate", learning_rate),
        0.0 if weight_decay is None else weight_decay,
        mask,
    )


def adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    weight_decay: ScalarOrSchedule = 4e-3,
    beta_1: ArrayLike = 0.9,
    beta_2: ArrayLike = 0.999,
    epsilon: ArrayLike = 1e-7,
    amsgrad: bool = False,
    *,
    mask: MaskLike = None,
) -> Optimizer:
    """``keras.optimizers.AdamW``: `adam` with another default and order of arguments.

        the equation of `adam`

    Place in the chain, arguments, result and errors: see `adam`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.1, 0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Keras 3.15, ``keras/src/optimizers/adamw.py``.
    """
    return adam(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay, mask=mask)


def sgd(
    learning_rate: ScalarOrSchedule = 0.01,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
    *,
    mask: MaskLike = None,
) -> Optimizer:
    """``keras.optimizers.SGD``: the learning rate enters the momentum, the decay does not.

        m ← ηₜg + momentum·m,   θ ← θ(1 − ηₜλ) − m

    After a drop of the learning rate the steps go on at the old rate until the momentum
    has faded, where torch and Optax drop at once.

    Place in the chain, other arguments, result and errors: see `adam`.

    Args:
      momentum: See `optwd.trace`, as ``nesterov``; with 0 there is no such state, and
        ``nesterov`` does nothing.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd(0.1, 0.9, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: Keras 3.15, ``keras/src/optimizers/sgd.py``.
    """
    return _parts.independent(
        _parts.learning_rate("learning_rate", learning_rate, flip_sign=False),
        _parts.momentum(momentum, nesterov),
        weight_decay=rates.by_learning_rate(
            0.0 if weight_decay is None else weight_decay, learning_rate
        ),
        mask=mask,
    )


def exclude_from_weight_decay(var_names: Sequence[str]) -> Mask:
    """Everyone decays but the variables whose name contains one of these patterns.

    A variable's name is the last segment of its path (``bias``), as in Keras 3, where a
    layer's name in a pattern excludes nobody, silently; here that is an error. For layers
    say ``~masks.path("**/layer_norm/**")``.

    Args:
      var_names: regular expressions, searched for in the name.

    Returns:
      A `Mask`, to combine with others by ``&``.

    Raises:
      MaskError: a pattern that excludes nobody, once the parameters are known.

    >>> mask = exclude_from_weight_decay(["bias", "^gamma$"])
    >>> mask.tree({"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"gamma": 1.0}})
    {'dense': {'bias': False, 'kernel': True}, 'norm': {'gamma': False}}

    Source: Keras 3.15, ``keras/src/optimizers/base_optimizer.py``.
    """
    return ~masks.regex(*map(_in_the_name, var_names))


def _in_the_name(pattern: str) -> str:
    begin = "" if pattern.startswith("^") else "[^/]*"
    end = "" if pattern.endswith("$") else "[^/]*"
    return f"(?:.*/)?{begin}(?:{pattern.removeprefix('^').removesuffix('$')}){end}"
