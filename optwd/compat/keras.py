"""Keras 3's optimizers, by Keras's names, defaults and arithmetic.

ε is added to the raw root. Every optimizer takes a ``weight_decay``, which is scaled by the
learning rate and acts on the weights before the step.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from jax.typing import ArrayLike

from optwd import masks, rates
from optwd._check import ScalarOrSchedule
from optwd._decide import Decision
from optwd._paths import Leaf
from optwd.compat import _parts
from optwd.compat._moments import scale_by_adam_eps_hat, scale_by_amsgrad_raw_eps_hat
from optwd.compat._parts import Optimizer
from optwd.masks import Mask, MaskError, MaskLike

__all__ = ["adam", "adamw", "exclude_from_weight_decay", "sgd"]


def __dir__() -> list[str]:
    return __all__


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

    Args:
      learning_rate: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      beta_1: b1 of `optwd.compat.scale_by_adam_eps_hat`; ``beta_2`` is its b2, and
        ``epsilon`` its eps.
      amsgrad: divide by the largest v so far; see
        `optwd.compat.scale_by_amsgrad_raw_eps_hat`.
      weight_decay: λ ≥ 0: a number, a schedule of the step, or None for 0.
      mask: which leaves decay; see `optwd.decay.linear` and `exclude_from_weight_decay`.

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

    When the learning rate drops, the momentum goes on at the old rate until it has faded;
    in torch and Optax the step shrinks at once.

    See `adam` for the other arguments.

    Args:
      momentum: the decay of `optwd.trace`, which also explains ``nesterov``. With 0, no
        momentum is kept, and ``nesterov`` does nothing.

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
    """All leaves but those whose name contains one of these patterns.

    The name is the last segment of the path (``bias``), as in Keras 3. A layer's name in a
    pattern excludes nothing there, silently; here that is an error. For layers say
    ``~masks.path("**/layer_norm/**")``.

    Args:
      var_names: regular expressions, as for ``re.search`` in the name.

    Returns:
      A `Mask`, to combine with others by ``&``.

    Raises:
      MaskError: a pattern that is in no name, once the parameters are known.
      ValueError: no pattern, or one that does not compile.

    >>> mask = exclude_from_weight_decay(["bias", "^gamma$"])
    >>> mask.tree({"dense": {"kernel": 1.0, "bias": 1.0}, "norm": {"gamma": 1.0}})
    {'dense': {'bias': False, 'kernel': True}, 'norm': {'gamma': False}}

    Source: Keras 3.15, ``keras/src/optimizers/base_optimizer.py``.
    """
    masks.regex(*var_names)  # checks them
    patterns = tuple(var_names)
    said = f"exclude_from_weight_decay({list(patterns)!r})"
    return ~Mask(said, functools.partial(_found_in_name, patterns))


def _found_in_name(patterns: tuple[str, ...], leaves: list[Leaf]) -> list[Decision]:
    names = [leaf.path.split("/")[-1] for leaf in leaves]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise MaskError(
                f"the pattern {pattern!r} matches no leaf: it is in none of the names "
                f"{', '.join(sorted(set(names))[:5])}. Correct it, or remove it."
            )
    first = (next((p for p in patterns if re.search(p, name)), None) for name in names)
    return [(0.0, "no pattern") if p is None else (1.0, p) for p in first]
