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

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from optwd import _anchors, _check, _dtypes, _norms, _paths, _rule, masks
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation, Field
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


class ConstrainedState(NamedTuple):
    """The bound on every matrix, and how hard it is held to it at present.

    Attributes:
      step: updates so far; int32 of shape ().
      multiplier: Λ ≥ 0 of each leaf, of shape () or of that of its stack; a tree like the
        parameters.
      bound: κ, likewise; inf while a warm start has not taken it.
    """

    step: jax.Array
    multiplier: Any
    bound: Any


class NormState(NamedTuple):
    """The norm that every matrix is pulled to.

    Attributes:
      step: updates so far; int32 of shape ().
      radius: the norm for each leaf, of shape () or of that of its stack; a tree like the
        parameters, which never changes.
    """

    step: jax.Array
    radius: Any


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

    This is the step that minimises ``½‖θ' − (θ − u)‖² + ½ρ‖θ'‖²``. To first order in ρ it
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
        {"anchor": Field(start, is_number=True)},
    )


def constrained(
    bound: ArrayLike | None = None,
    mask: MaskLike = None,
    *,
    stacked: str | Iterable[str] = (),
    warm_start: int | None = None,
    update_rate: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Hold every matrix's mean square to a bound, with as much decay as that takes.

        Λ ← Λ + μ(R(θ)/n − κ), then to [0, ¼]     R(θ) = ‖θ‖², over the n elements
        u ← u + Λ∇R(θ) = u + 2Λθ

    A matrix below its bound is not decayed; above it Λ grows until it is held. The
    statistic is the mean of squares, so that one κ and one μ serve matrices of every size:
    the paper's algorithm with the bound ``nκ`` and the rate ``μ/n``, as in its authors'
    code. A leaf is one matrix unless `stacked` says otherwise, also where it is sharded.

    The limit of ¼ is not the paper's. There weights at most halve in a step, so that from
    any start they come down to the bound in a few steps: with Λ above ½ they would cross
    zero, and above 1 grow without end.

    It stands after the learning rate, last before ``scale(-1)``, where Λ is the whole rate.
    What stands after it scales the pull, and Λ then has to grow by as much more, which
    before a learning rate of 1e-3 takes too long or meets the limit.

    Args:
      bound: κ ≥ 0, in units of the weights squared, for every matrix; or leave it out and
        give ``warm_start``. With ``inf`` nothing decays.
      mask: which leaves are bounded; see `linear`. A float multiplies μ of its leaves.
      stacked: See `to_norm`.
      warm_start: the number of steps, ≥ 0, after which every matrix's own mean square
        becomes its bound.
      update_rate: μ ≥ 0, in units of the weights to the power −2: a number or a schedule.
        The paper keeps 1, which is made for initial weights of common size, whose mean
        square of 1e-3 or so makes Λ move in small steps. For weights near 1 take less:
        ``μ(R/n − κ)`` well below ¼ holds them without overshooting.

    Returns:
      A transformation with state `optwd.ConstrainedState`; leaves of any shape.

    Raises:
      ValueError: as `linear`; both or neither of ``bound`` and ``warm_start``; a glob that
        matches no leaf; ``update`` inside ``jax.shard_map`` where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> decay, theta = constrained(3.9), jnp.array([2.0])
    >>> step, state = decay.update(jnp.array([0.0]), decay.init(theta), theta)
    >>> print(step.round(2), state.multiplier.round(2))  # 4 is above 3.9 by 0.1
    [0.4] 0.1

    Source: CPR: Franke et al., arXiv 2311.09058, Algorithm 1 with Kappa-K (the bound
    given), Algorithm 2 for Kappa-WS (the warm start).
    """
    if (bound is None) == (warm_start is None):
        raise ValueError(
            "decay.constrained needs either bound or warm_start, got "
            f"bound={bound!r}, warm_start={warm_start!r}; leave one of them out."
        )
    name = "decay.constrained"
    if warm_start is None:
        kappa = _check.number("bound", bound, closed=True)
        equation, rate = _norms.CONSTRAINED, update_rate
    else:
        kappa, equation = math.inf, _norms.TAKE_BOUND
        rate = _from_step(warm_start, _check.rate("update_rate", update_rate))
    fields = {
        "multiplier": _norms.per_matrix(name, stacked, 0.0),
        "bound": _norms.per_matrix(name, stacked, kappa),
    }
    return _rule.transformation(
        name, equation, "update_rate", rate, mask, ConstrainedState, fields
    )


def to_norm(
    pull: ScalarOrSchedule = 1.0,
    radius: ArrayLike | None = None,
    mask: MaskLike = None,
    *,
    stacked: str | Iterable[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Pull the norm of every matrix to its norm at ``init``, or to a given one.

        θ' = θ − u
        θ' ← θ'·(1 − k(1 − R/‖θ'‖))        k = pull × the mask's multiplier
        u  ← θ − θ'

    With ``k = 1`` every matrix stays on the sphere of radius R, and no other decay is
    needed: that is AdamH, MuonH, Hyperball. With ``k < 1`` the norm goes there gradually,
    as in AdamWN; with ``k = 0`` nothing happens.

    It stands after the learning rate, last before ``scale(-1)``, where ``θ − u`` are the
    next weights:

        chain(scale_by_adam(), scale_by_weight_norm(),
              scale_by_learning_rate(η, flip_sign=False), decay.to_norm(), scale(-1))

    A matrix that starts at 0 has ``R = 0`` and is left alone, as is one whose next weights
    are all 0: they have no direction.

    Args:
      pull: in [0, 1], dimensionless: a number or a schedule of the step.
      radius: the root mean square > 0 that gives each matrix of n elements
        ``R = radius·√n``. None for the norm at ``init``, which the state keeps.
      mask: See `linear`.
      stacked: globs; each takes one leading axis off the leaves that it matches, as in
        `masks.ndim`, so that a stack of layers or experts is as many matrices.

    Returns:
      A transformation with state `optwd.NormState`; leaves of any shape.

    Raises:
      ValueError: as `linear`; a pull above 1; a radius of 0; a glob that matches no leaf;
        ``update`` inside ``jax.shard_map`` where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> sphere, theta = to_norm(), jnp.array([3.0, 4.0])
    >>> step, _ = sphere.update(jnp.array([-3.0, -4.0]), sphere.init(theta), theta)
    >>> print(theta - step)  # from (6, 8) back to a norm of 5
    [3. 4.]

    Source: Hyperball, arXiv 2606.16899; AdamWN: Loshchilov, arXiv 2311.11446.
    """
    name, domain = "decay.to_norm", {"below": 1.0, "closed": True}
    checked = _check.rate("pull", pull, **domain)
    if radius is not None:
        radius = _check.number("radius", radius)
        if isinstance(radius, float) and radius == 0.0:
            raise ValueError("radius must be > 0, got 0; for zero see decay.linear.")

    def start(params: Any) -> Any:
        for path, factor in _paths.by_path(masks.resolve(mask, params)).items():
            if factor * (checked if isinstance(checked, float) else 1.0) > 1.0:
                raise ValueError(
                    f"{path}: the mask multiplies a pull of {pull!r} by {factor}, but it "
                    "must stay in [0, 1]; use a smaller multiplier."
                )
        return _norms.radii(name, stacked, radius, params)

    fields = {"radius": Field(start, is_number=True)}
    return _rule.transformation(
        name, _norms.TO_NORM, "pull", checked, mask, NormState, fields, **domain
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
    # by the sign: the product might underflow
    disagrees = jnp.real(u * jnp.conj(jnp.sign(p))) < 0
    return jnp.where(disagrees, u, u + rho * p)


def _proximal(u, p, rho):
    return (u + rho * p) / (1 + rho)


def _toward(u, p, anchor, rho):
    return u + rho * (p - anchor)


_LINEAR = Equation(_linear)
_CAUTIOUS = Equation(_cautious)
_PROXIMAL = Equation(_proximal)
_TOWARD = Equation(_toward)


def _from_step(first: Any, rate: Any) -> optax.Schedule:
    """The rate from that step on, and 0 before."""
    integer = _check.is_real(first) and jnp.issubdtype(_dtypes.dtype_of(first), np.integer)
    if not integer or jnp.shape(first) or (not isinstance(first, Tracer) and first < 0):
        raise ValueError(f"warm_start must be a number of steps ≥ 0, got {first!r}.")

    def schedule(step: Any) -> Any:
        now = _check.at_step("update_rate", rate, step)
        return jnp.where(step < jnp.asarray(first, jnp.int32), 0.0, now)

    return schedule
