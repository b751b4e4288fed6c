"""Decoupled: decay acts on the direction, not on the gradient.

Every transformation here acts on the **descent direction** ``u``, which will be
subtracted from the parameters: ``θ ← θ − u``. Decay is scaled by everything that stands
behind it in the chain, and by nothing that stands before it:

    chain(scale_by_adam(), decay.linear(λ), scale_by_learning_rate(η))   # ηλ a step
    chain(scale_by_adam(), scale_by_learning_rate(η, flip_sign=False),
          decay.linear(λ), scale(-1))                                    # λ a step

**After the sign flip it is growth.** ``chain(adam(η), decay.linear(λ))`` adds ``λθ`` to an
update that is itself added to the parameters, so the weights grow by ``1 + λ`` a step.
For an optimizer that is already finished use `optwd.with_weight_decay`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _check, _dtypes, _leafwise, _measure, _paths, _rule, _zeros, masks
from optwd._check import ScalarOrSchedule
from optwd._leafwise import Equation, Field
from optwd._rule import Rule
from optwd.masks import MaskLike


class AnchorState(NamedTuple):
    """What the weights are pulled towards.

    Attributes:
      step: updates so far; int32 of shape ().
      anchor: a tree like the parameters, of its own buffers; it never changes.
    """

    step: jax.Array
    anchor: Any


class ConstrainedState(NamedTuple):
    """The bound on every tensor, and how hard it is held to it at present.

    One number a leaf: who shards a state by the specs of its parameters replicates these.

    Attributes:
      step: updates so far; int32 of shape ().
      multiplier: Λ ≥ 0 of each leaf; a tree like the parameters, of shape ().
      bound: κ of each leaf, inf while a warm start has not taken it; of shape () too.
    """

    step: jax.Array
    multiplier: Any
    bound: Any


def linear(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Pull every weight towards zero in proportion to itself.

        u ← u + ρθ        ρ = weight_decay × the mask's multiplier

    Place in the chain: behind the moments. Before the learning rate it is AdamW as torch
    and Optax mean it, ``θ ← θ − η(û + λθ)``; behind it, with the sign flipped last, the
    decay does not scale with the learning rate.

    Args:
      weight_decay: the rate, ≥ 0, dimensionless: a number, or a schedule of the step
        (0 at the first).
      mask: who decays: None for every leaf, a `masks.Mask`, a tree of bools or floats (or
        a prefix of one; a float multiplies the rate), or a callable from the parameters
        to such a tree. A leaf with ``False`` or 0 is returned bit for bit.

    Returns:
      A transformation with state `decay.DecayState`; leaves of any shape. It computes in
      at least float32 and returns the dtype that came in.

    Raises:
      ValueError: a negative or non-finite rate, a mask that does not fit the parameters,
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

    Decay never works against the loss: a weight that the step grows is left to grow. Zeros
    count as agreeing. A complex weight decays where ``Re(u·θ̄) ≥ 0``, which is where the
    step shrinks its modulus.

    Place in the chain: as for `linear`. Only the sign of ``u`` matters to the choice, so
    before or behind the learning rate the same weights decay; before the moments ``u``
    would still be the gradient, and the choice another one.

    Args:
      weight_decay: See `linear`. About half of the weights decay in a step, so a rate that
        was tuned for `linear` is a lower end here.
      mask: See `linear`.

    Returns:
      A transformation with state `decay.DecayState`; leaves of any shape.

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

    The step that minimises ``½‖θ' − (θ − u)‖² + ½ρ‖θ'‖²``: to first order in ρ it is
    `linear`, and however large ρ is, decay alone never carries a weight across zero.

    Place in the chain: behind the learning rate, before the last ``scale(-1)``, where
    ``u`` is the whole step; ``weight_decay=rates.coupled(λ, η)`` lets it follow the
    learning rate. Before the learning rate the division would shrink the direction too,
    not only the weights: ``θ ← θ − η(u + ρθ)/(1 + ρ)``.

    Args:
      weight_decay: See `linear`; a step multiplies the weights by ``1/(1 + ρ)``.
      mask: See `linear`.

    Returns:
      A transformation with state `decay.DecayState`; leaves of any shape.

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

    Place in the chain: as for `linear`.

    Args:
      anchor: a tree like the parameters, such as the weights that fine-tuning starts from.
        `init` copies it into the state, in its own dtype, where it is saved and sharded
        like any other state.
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `decay.AnchorState`; leaves of any shape.

    Raises:
      ValueError: as `linear`, or an anchor that does not fit the parameters.

    >>> import jax.numpy as jnp
    >>> decay, theta = toward(jnp.array([1.0]), 0.5), jnp.array([2.0])
    >>> print(decay.update(jnp.array([0.0]), decay.init(theta), theta)[0])
    [0.5]

    Source: L2-SP: Li, Grandvalet and Davoine, arXiv 1802.01483, Equation 2.
    """

    def start(params: Any) -> Any:
        return _kept_where(mask, _anchor_like(anchor, params), params)

    return _rule.transformation(
        "decay.toward",
        _TOWARD,
        "weight_decay",
        weight_decay,
        mask,
        AnchorState,
        {"anchor": Field(start)},
    )


def toward_init(
    weight_decay: ScalarOrSchedule, mask: MaskLike = None
) -> optax.GradientTransformationExtraArgs:
    """Pull every weight towards the value it had at ``init``.

        u ← u + ρ(θ − θ₀)

    Place in the chain: as for `linear`.

    The state holds a copy of the parameters, which stays when they are donated. A new
    ``init`` is a new anchor: after a restart restore the state.

    Args:
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `decay.AnchorState`; leaves of any shape.

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
        return _kept_where(mask, params, params)

    return _rule.transformation(
        "decay.toward_init",
        _TOWARD,
        "weight_decay",
        weight_decay,
        mask,
        AnchorState,
        {"anchor": Field(start)},
    )


def constrained(
    bound: ArrayLike | None = None,
    mask: MaskLike = None,
    *,
    warm_start: int | None = None,
    update_rate: ScalarOrSchedule = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Hold every tensor's mean square to a bound, with as much decay as that takes.

        Λ ← max(0, Λ + μ(R(θ)/n − κ))     R(θ) = ‖θ‖², over the n elements of the leaf
        u ← u + Λ∇R(θ) = u + 2Λθ

    A tensor below its bound is not decayed; above it Λ grows until it is held. The
    statistic is the mean of squares, so that one κ and one μ serve tensors of every size:
    the paper's algorithm with the bound ``nκ`` and the rate ``μ/n``, as in its authors'
    code. A stacked leaf of several layers is one tensor, and so is a sharded one.

    Place in the chain: behind the learning rate, last before ``scale(-1)``, where Λ is the
    whole rate. What stands behind scales the pull, and Λ then has to grow by as much more,
    in as many more steps: before a learning rate of 1e-3 the bound is held far too late.

    Args:
      bound: κ ≥ 0, in units of the weights squared, for every leaf; or leave it out and
        give ``warm_start``. With ``inf`` nothing decays.
      mask: who is bounded; see `linear`. A float multiplies μ of its leaves.
      warm_start: the number of steps, ≥ 0, after which every tensor's own mean square
        becomes its bound.
      update_rate: μ ≥ 0, in units of the weights to the power −2: a number or a schedule.
        The paper keeps 1. A Λ above ½ carries the weights across zero, so ``μ(R/n − κ)``
        should be well below.

    Returns:
      A transformation with state `decay.ConstrainedState`; leaves of any shape.

    Raises:
      ValueError: as `linear`; both or neither of ``bound`` and ``warm_start``; ``update``
        inside of ``jax.shard_map`` where a leaf may be a shard.

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
    if warm_start is None:
        kappa = _check.number("bound", bound, closed=True)
        equation, rate = _CONSTRAINED, update_rate
    else:
        kappa, equation = math.inf, _TAKE_BOUND
        rate = _from_step(warm_start, _check.rate("update_rate", update_rate))
    fields = {"multiplier": _leafwise.number(0.0), "bound": _leafwise.number(kappa)}
    return _rule.transformation(
        "decay.constrained", equation, "update_rate", rate, mask, ConstrainedState, fields
    )


def from_rule(
    rule: Rule,
    weight_decay: ScalarOrSchedule,
    mask: MaskLike = None,
) -> optax.GradientTransformationExtraArgs:
    """Write your own decay: one function of a leaf's direction, weights and rate.

        u ← rule(u, θ, ρ)        ρ = weight_decay × the mask's multiplier

    Place in the chain: as for `linear`, unless your rule says otherwise.

    Args:
      rule: gets ``u`` and ``θ`` of one leaf, in float32 at least, and ``ρ`` of shape ();
        returns the new ``u``, of the same shape. It is jitted, once per shape and dtype.
        It is not called for a leaf whose rate is known to be 0.
      weight_decay: See `linear`.
      mask: See `linear`.

    Returns:
      A transformation with state `decay.DecayState`; leaves of any shape.

    Raises:
      ValueError: as `linear`, or a rule that changes a leaf's shape.

    >>> import jax.numpy as jnp
    >>> lasso, theta = from_rule(lambda u, p, rho: u + rho * jnp.sign(p), 0.5), jnp.ones(1)
    >>> print(lasso.update(jnp.ones(1), lasso.init(theta), theta)[0])
    [1.5]

    Source: none; the shape of every other rule in this module.
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
    sign = jnp.where(p < 0, -1.0, 1.0)
    w = u * sign  # with u used once, XLA:CPU need not store the direction to compare it
    return sign * jnp.where(w >= 0, w + rho * jnp.abs(p), w)


def _proximal(u, p, rho):
    return (u + rho * p) / (1 + rho)


def _toward(u, p, anchor, rho):
    return u + rho * (p - anchor)


def _next_multiplier(u, p, multiplier, bound, mu):
    held = jnp.maximum(0, multiplier + mu * (_mean_square(p) - bound))
    return jnp.where(jnp.isinf(bound), 0, held), bound  # where μ = 0 that is 0·inf


def _take_bound(u, p, multiplier, bound, mu):
    take = jnp.isinf(bound) & (mu > 0)
    return multiplier, jnp.where(take, _mean_square(p), bound)


def _constrained(u, p, multiplier, bound, mu):
    return u + 2 * multiplier * p


def _mean_square(x):
    _measure.refuse_shards("decay.constrained", x)
    return jnp.sum(jnp.square(jnp.abs(x))) / max(x.size, 1)


_LINEAR = Equation(_linear)
_CAUTIOUS = Equation(_cautious)
_PROXIMAL = Equation(_proximal)
_TOWARD = Equation(_toward)
_CONSTRAINED = Equation(_constrained, _next_multiplier)
_TAKE_BOUND = Equation(_constrained, _take_bound, _next_multiplier)


def _anchor_like(anchor: Any, params: Any) -> Any:
    """The anchor, with nothing where Optax has masked the parameter or there is none."""
    if not jax.tree.leaves(params):  # nothing at all; also Optax's placeholder at init
        return params

    def absent(p: Any) -> bool:
        return p is None or isinstance(p, optax.MaskedNode)

    with_paths, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=absent)
    try:
        leaves = treedef.flatten_up_to(anchor)
    except (ValueError, TypeError, KeyError):
        here, there = _paths.paths(params), _paths.paths(anchor)
        raise ValueError(
            "the anchor must be a tree like the parameters: "
            f"{_paths.difference('parameters', here, 'anchor', there)}"
        ) from None
    for (keys, p), x in zip(with_paths, leaves, strict=True):
        shape = jax.tree.map(jnp.shape, x)
        if not absent(p) and shape != jnp.shape(p):
            raise ValueError(
                f"{_paths.path_of(keys)}: the parameter has shape {jnp.shape(p)}, the "
                f"anchor {shape}; they must be equal, nothing is broadcast."
            )
    kept = [p if absent(p) else x for (_, p), x in zip(with_paths, leaves, strict=True)]
    return treedef.unflatten(kept)


def _kept_where(mask: MaskLike, anchor: Any, params: Any) -> Any:
    """Copies of the anchor where the mask is above 0, which stay if it is donated.

    Elsewhere one 0, in no box of Flax, which may say how its array is sharded.
    """

    def kept(p: Any, k: Any, x: Any) -> Any:
        if jax.tree.leaves(k)[0] == 0.0:
            return jnp.zeros((), _dtypes.dtype_of(jax.tree.leaves(p)[0]))
        return jax.tree.map(lambda p, x: _zeros.beside(p, jnp.array(x, copy=True)), p, x)

    factors = masks.resolve(mask, params)
    return jax.tree.map(kept, params, factors, anchor, is_leaf=_paths.is_box)


def _from_step(first: Any, rate: Any) -> optax.Schedule:
    """The rate from that step on, and 0 before."""
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise ValueError(f"warm_start must be a number of steps ≥ 0, got {first!r}.")

    def schedule(step: Any) -> Any:
        return jnp.where(step < first, 0.0, _check.at_step("update_rate", rate, step))

    return schedule
