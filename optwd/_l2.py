"""Coupled: the penalty joins the gradient, and goes through everything after it."""

from __future__ import annotations

import optax

from optwd import _rule
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation
from optwd.masks import MaskLike


def add_l2(
    l2: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Add the gradient of the penalty ``½·l2·‖θ‖²``.

        g ← g + l2·θ

    It stands first in a chain, before the moments, so that the penalty's gradient is
    rescaled together with the loss's. That is Adam + L2, not AdamW: under Adam a weight
    with large gradients is then shrunk less. For decay that is not rescaled see
    `decay.linear`.

    A loss that says ``c·‖θ‖²``, without the half, is ``l2 = 2c``.

    Args:
      l2: strength, ≥ 0, per parameter squared in units of the loss: a number, or a
        schedule of the step (0 at the first).
      mask: which leaves are penalized; see `decay.linear`.

    Returns:
      A transformation with state `optwd.DecayState`; leaves of any shape. It computes in
      at least float32 and returns the dtype that came in.

    Raises:
      ValueError: a negative or non-finite ``l2``, a mask that does not fit the parameters,
        ``update`` without parameters.

    >>> import jax.numpy as jnp
    >>> penalty, theta = add_l2(0.1), jnp.array([2.0])
    >>> print(penalty.update(jnp.array([1.0]), penalty.init(theta), theta)[0])
    [1.2]

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2, the L2 line.
    """
    return _rule.transformation("add_l2", _ADD, "l2", l2, mask)


def _add(g, p, l2):
    return g + l2 * p


_ADD = Equation(_add)
