"""Decoupled weight decay: it acts on the direction, not on the gradient.

Every transformation here acts on the **descent direction** ``u``, which will be
subtracted from the parameters: ``θ ← θ − u``. A decay is scaled by everything that stands
after it in the chain, and by nothing that stands before it:

    chain(scale_by_adam(), decay.linear(λ), scale_by_learning_rate(η))   # ηλ per step
    chain(scale_by_adam(), scale_by_learning_rate(η, flip_sign=False),
          decay.linear(λ), scale(-1))                                    # λ per step

**After the sign flip the weights grow.** ``chain(adam(η), decay.linear(λ))`` adds ``λθ`` to
an update that is itself added to the parameters, which multiplies them by ``1 + λ`` per
step. For an optimizer that is already finished use `optwd.with_weight_decay`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwd import _anchors, _rule
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation, Field
from optwd._norms import constrained as constrained
from optwd._norms import to_norm as to_norm
from optwd._rule import Rule
from optwd.masks import MaskLike

__all__ = [
    "cautious",
    "constrained",
    "from_rule",
    "linear",
    "proximal",
    "to_norm",
    "toward",
    "toward_init",
]


def __dir__() -> list[str]:
    return __all__


class AnchorState(NamedTuple):
    """What the weights are pulled towards.

    Attributes:
      step: updates so far; int32 of shape ().
      anchor: a tree like the parameters, in buffers of its own, which never changes. A leaf
        that is not pulled, or pulled towards one number, holds an array of shape ().
    """

    step: jax.Array
    anchor: Any


def linear(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Pull every weight towards zero in proportion to itself.

        u ← u + ρθ        ρ = weight_decay × the mask's multiplier

    After the moments and before the learning rate it is AdamW as torch and Optax mean it,
    ``θ ← θ − η(û + λθ)``; after the learning rate, with the sign flipped last, the decay
    does not scale with it.

    Args:
      weight_decay: the rate, ≥ 0, dimensionless: a number, or a schedule of the step
        (0 at the first).
      mask: which leaves decay: None for all, a `masks.Mask`, a tree of bools or floats (or
        a prefix of one; a float multiplies the rate), or a callable from the parameters
        to such a tree. A leaf with ``False`` or 0 is returned bit for bit.

    Returns:
      A transformation with state `optwd.DecayState`; leaves of any shape. It computes in
      at least float32 and returns the dtype that came in.

    Raises:
      ValueError: a negative or non-finite rate, also from a schedule where its value is
        concrete, as it is for step 0 at ``init``; a mask that does not fit the parameters;
        ``update`` without parameters.

    >>> import jax.numpy as jnp
    >>> decay, theta = linear(0.1, {"w": True, "b": False}), {"w": 2.0, "b": 2.0}
    >>> u, _ = decay.update({"w": 1.0, "b": 1.0}, decay.init(theta), theta)
    >>> print(u["w"], u["b"])
    1.2 1.0

    Source: Loshchilov and Hutter, arXiv 1711.05101, Algorithm 2.
    """
    return _rule.transformation("decay.linear", _LINEAR, "weight_decay", weight_decay, mask)


def cautious(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Decay a weight only in steps that shrink it anyway.

        u ← u + ρθ·[uθ ≥ 0]

    Decay then never works against the loss: a weight that the step grows is left to grow.
    Zeros count as agreeing. A complex weight decays where ``Re(u·θ̄) ≥ 0``, which is where
    the step shrinks its modulus.

    It stands anywhere after the moments. Only the sign of ``u`` matters to the choice, so
    before or after the learning rate the same weights decay.

    Args:
      weight_decay: See `linear`. About half of the weights decay in a step, so a rate that
        was tuned for `linear` may be too low here.
      mask: See `linear`.

    Returns:
      A transformation with state `optwd.DecayState`; leaves of any shape.

    Raises:
      ValueError: as `linear`.

    >>> import jax.numpy as jnp
    >>> decay, theta = cautious(0.1), jnp.array([2.0, 2.0, 2.0])
    >>> print(decay.update(jnp.array([1.0, 0.0, -1.0]), decay.init(theta), theta)[0])
    [ 1.2  0.2 -1. ]

    Source: Chen et al., Cautious Weight Decay, arXiv 2510.12402.
    """
    return _rule.transformation(
        "decay.cautious", _CAUTIOUS, "weight_decay", weight_decay, mask
    )


def proximal(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Decay the new weights instead of the old ones, and stay stable for every rate.

        u ← (u + ρθ)/(1 + ρ), which is θ ← (θ − u)/(1 + ρ)

    This is the step that minimizes ``½‖θ' − (θ − u)‖² + ½ρ‖θ'‖²``. To first order in ρ it
    is `linear`, but however large ρ is, decay alone never carries a weight across zero.

    It stands after the learning rate, before the last ``scale(-1)``, where ``u`` is the
    whole step; ``weight_decay=rates.by_learning_rate(λ, η)`` lets it follow the learning
    rate. Before the learning rate the division would shrink the direction too, and not
    only the weights: ``θ ← θ − η(u + ρθ)/(1 + ρ)``.

    Args:
      weight_decay: See `linear`; a step multiplies the weights by ``1/(1 + ρ)``.
      mask: See `linear`.

    Returns:
      A transformation with state `optwd.DecayState`; leaves of any shape.

    Raises:
      ValueError: as `linear`.

    >>> import jax.numpy as jnp
    >>> decay, theta = proximal(4.0), jnp.array([2.0])
    >>> step, _ = decay.update(jnp.array([0.0]), decay.init(theta), theta)
    >>> print(theta - step)  # linear would end at 2 − 8 = −6
    [0.4]

    Source: Zhuang et al., Understanding AdamW through Proximal Methods and
    Scale-Freeness, arXiv 2202.00089.
    """
    return _rule.transformation(
        "decay.proximal", _PROXIMAL, "weight_decay", weight_decay, mask
    )


def toward(
    anchor: Any, weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Pull every weight towards a given one instead of towards zero.

        u ← u + ρ(θ − anchor)

    It stands where `linear` does.

    Args:
      anchor: a tree like the parameters, such as the weights that fine-tuning starts from,
        or one number for every weight: 1 for the scales of norms. ``init`` copies it into
        the state, where it is saved and sharded like any other state; leaves that the mask
        leaves out take no memory. Floating leaves keep their own dtype, integers take the
        parameter's.
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `optwd.AnchorState`; leaves of any shape.

    Raises:
      ValueError: as `linear`, or an anchor that does not fit the parameters.
      TypeError: a complex anchor for a real parameter.

    >>> import jax.numpy as jnp
    >>> decay, theta = toward(1, 0.5), jnp.array([2.0, 0.0])
    >>> print(decay.update(jnp.zeros(2), decay.init(theta), theta)[0])
    [ 0.5 -0.5]

    Source: L2-SP: Li, Grandvalet and Davoine, arXiv 1802.01483, Equation 2.
    """

    def start(params: Any) -> Any:
        return _anchors.kept(anchor, mask, params)

    return _rule.transformation(
        "decay.toward",
        _TOWARD,
        "weight_decay",
        weight_decay,
        mask,
        AnchorState,
        {"anchor": Field(start, is_number=True)},
    )


def toward_init(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Pull every weight towards the value it had at ``init``.

        u ← u + ρ(θ − θ₀)

    It stands where `linear` does. The state holds a copy of the parameters that decay,
    which stays when they are donated. A new ``init`` is a new anchor: after a restart
    restore the state.

    Args:
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `optwd.AnchorState`; leaves of any shape.

    Raises:
      ValueError: as `linear`.

    >>> import jax.numpy as jnp
    >>> decay = toward_init(0.5)
    >>> state, theta = decay.init(jnp.array([1.0])), jnp.array([2.0])
    >>> print(decay.update(jnp.array([0.0]), state, theta)[0])
    [0.5]

    Source: L2-SP: Li, Grandvalet and Davoine, arXiv 1802.01483, Equation 2.
    """

    def start(params: Any) -> Any:
        return _anchors.kept(params, mask, params)

    return _rule.transformation(
        "decay.toward_init",
        _TOWARD,
        "weight_decay",
        weight_decay,
        mask,
        AnchorState,
        {"anchor": Field(start)},
    )


def from_rule(
    rule: Rule,
    weight_decay: ScalarOrSchedule,
    mask: MaskLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Write your own decay: one function of a leaf's direction, weights and rate.

        u ← rule(u, θ, ρ)        ρ = weight_decay × the mask's multiplier

    Args:
      rule: gets ``u`` and ``θ`` of one leaf, in float32 at least, and ``ρ`` of shape ();
        returns the new ``u``, of the same shape. It is jitted, once per shape and dtype.
        It is not called for a leaf whose rate is known to be 0.
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `optwd.DecayState`; leaves of any shape.

    Raises:
      ValueError: as `linear`, or a rule that changes a leaf's shape.

    >>> import jax.numpy as jnp
    >>> lasso, theta = from_rule(lambda u, p, rho: u + rho * jnp.sign(p), 0.5), jnp.ones(1)
    >>> print(lasso.update(jnp.ones(1), lasso.init(theta), theta)[0])
    [1.5]
    """
    if not callable(rule):
        raise TypeError(f"rule must be a function of (u, p, rho), got {rule!r}.")
    return _rule.transformation(
        "decay.from_rule", Equation(rule), "weight_decay", weight_decay, mask
    )


def _linear(u, p, rho):
    return u + rho * p


def _cautious(u, p, rho):
    if jnp.iscomplexobj(p):
        return jnp.where((u * p.conj()).real >= 0, u + rho * p, u)
    # [uθ ≥ 0] is [w ≥ 0]. Here u is used once: used twice, XLA:CPU stores it first, which
    # takes 4 more bytes per weight and made a step of AdamW twice as long.
    sign = jnp.where(p < 0, -1.0, 1.0)
    w = u * sign
    return sign * jnp.where(w >= 0, w + rho * jnp.abs(p), w)


def _proximal(u, p, rho):
    return (u + rho * p) / (1 + rho)


def _toward(u, p, anchor, rho):
    return u + rho * (p - anchor)


_LINEAR = Equation(_linear)
_CAUTIOUS = Equation(_cautious)
_PROXIMAL = Equation(_proximal)
_TOWARD = Equation(_toward)
