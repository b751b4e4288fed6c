"""Measuring rotation: is weight decay at its equilibrium?"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optwd import _check, _dtypes, _equilibrium, _leafwise, _measure, _paths, _shards, masks
from optwd._check import ScalarOrSchedule
from optwd._equilibrium import ScaledBy
from optwd._monitor import MonitorState
from optwd.masks import MaskLike


def monitor_rotation(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    *,
    scaled_by: ScaledBy = "learning_rate",
    peak_learning_rate: ArrayLike | None = None,
    groups: Mapping[str, MaskLike] | None = None,
    stacked: str | Iterable[str] = (),
) -> optax.GradientTransformationExtraArgs:
    """Measure how fast matrices rotate and how large they are, beside what theory predicts.

        rotation/group/angle = mean angle between θ and θ + Δ, in radians
        rotation/group/rms = mean root mean square of θ
        rotation/group/angle_ratio = angle / `rates.equilibrium_angle`
        rotation/group/rms_ratio = rms / `rates.equilibrium_rms`
        rotation/group/decay = the share of the weights that decay takes in this step

    averaged over the matrices of a group, with ``Δ`` the update that is about to be added.
    The predictions are those of AdamW at equilibrium, where what decay takes from a
    scale-invariant matrix is what steps add to it. They are of the learning rate at this
    step; while that is 0, so are the ratios. Ratios of 1 are equilibrium: decay then
    sets the effective learning rate. Far from 1 it is still on its way there; and matrices
    that are not scale-invariant, or whose gradients agree from step to step, stay off 1.

    It stands last: ``chain(adamw(…), monitor_rotation(η, λ))``. It costs one pass over
    parameters and updates and, if they are sharded, one all-reduce of numbers.

    Args:
      learning_rate: as given to the optimizer: a number, or a schedule of the step.
      weight_decay: as given to the optimizer; so are ``b1``, ``scaled_by`` and
        ``peak_learning_rate``.
      groups: from names to masks; None is ``{"all": masks.ndim(2)}``.
      stacked: globs; each takes one leading axis off the leaves that it matches, so that a
        stack of layers is as many matrices. See `masks.ndim`.

    Returns:
      A transformation with state `optwd.MonitorState` that returns the updates as they are.

    Raises:
      ValueError: a hyperparameter outside its domain; ``update`` without parameters; a mask
        or glob that does not fit; a group without leaves; ``update`` inside
        ``jax.shard_map`` where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> from optwd import metrics
    >>> tx, theta = monitor_rotation(0.01, 0.1), {"w": jnp.array([[3.0, 4.0]])}
    >>> _, state = tx.update({"w": jnp.array([[-4.0, 3.0]])}, tx.init(theta), theta)
    >>> print(metrics(state)["rotation/all/angle"].round(4))  # 45 degrees
    0.7854

    Source: Kosson, Messmer and Jaggi, arXiv 2305.17212, Table 1.
    """
    eta = _check.rate("learning_rate", learning_rate)
    lamda = _check.rate("weight_decay", weight_decay)
    b: Any = _check.number("b1", b1, below=1.0)
    scaling: Any = {"scaled_by": scaled_by, "peak_learning_rate": peak_learning_rate}
    named = {"all": masks.ndim(2, stacked=stacked)} if groups is None else dict(groups)

    def init(params: Any) -> MonitorState:
        _check.first("learning_rate", eta)
        _check.first("weight_decay", lamda)
        matrices = _matrices(named, stacked, params)
        nothing = {
            f"rotation/{group}/{key}": jnp.zeros((), jnp.float32)
            for group in matrices
            for key in ("angle", "rms", "angle_ratio", "rms_ratio", "decay")
        }
        return MonitorState(jnp.zeros([], jnp.int32), nothing)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del extra
        _check.need_params("monitor_rotation", params)
        _check.need_state("monitor_rotation", state, MonitorState)
        _shards.refuse("monitor_rotation", updates, params)
        now: tuple[Any, Any] = (
            _check.at_step("learning_rate", eta, state.inner),
            _check.at_step("weight_decay", lamda, state.inner),
        )
        predicted: dict[str, Any] = {
            "angle": _equilibrium.equilibrium_angle(*now, b, **scaling),
            "rms": _equilibrium.equilibrium_rms(*now, b, **scaling),
        }
        rho = _equilibrium.rate_per_step(*now, scaled_by, peak_learning_rate)
        weights, treedef = jax.tree.flatten(params)
        moves = _paths.align("updates", updates, params, treedef)
        recorded = {}
        for group, members in _matrices(named, stacked, params).items():
            measured = [
                _measured(weights[i], moves[i], depth)
                for i, depth in members
                if moves[i] is not None  # a leaf that is not trained
            ]
            count = max(sum(angles.size for angles, _ in measured), 1)
            values: dict[str, Any] = {
                name: sum((jnp.sum(of[i]) for of in measured), jnp.zeros(())) / count
                for i, name in enumerate(predicted)
            }
            ratios = {f"{k}_ratio": _ratio(values[k], x) for k, x in predicted.items()}
            values |= {**ratios, "decay": rho}
            recorded |= {
                f"rotation/{group}/{key}": jnp.asarray(value, jnp.float32)
                for key, value in values.items()
            }
        return updates, MonitorState(_leafwise.increment(state.inner), recorded)

    return optax.GradientTransformationExtraArgs(init, update)


def _matrices(
    groups: Mapping[str, MaskLike], stacked: str | Iterable[str], params: Any
) -> dict[str, list[tuple[int, int]]]:
    """The places of the leaves of each group, each with its number of stacked axes."""
    depths = jax.tree.leaves(_measure.depths("monitor_rotation", stacked, params))
    inexact = [_dtypes.is_inexact(p) for p in jax.tree.leaves(params)]
    members = {}
    for group, mask in groups.items():
        factors = jax.tree.leaves(masks.resolve(mask, params))
        members[group] = [(i, depths[i]) for i, k in enumerate(factors) if k and inexact[i]]
        if inexact and not members[group]:  # without leaves: Optax's placeholder at init
            raise ValueError(
                f"monitor_rotation: the group {group!r} has no leaves; give groups= masks "
                "that match some."
            )
    return members


def _ratio(measured: Any, predicted: Any) -> jax.Array:
    """0 where nothing is predicted."""
    predicted = jnp.asarray(predicted)
    known = jnp.isfinite(predicted) & (predicted > 0)
    return jnp.where(known, measured / jnp.where(known, predicted, 1), 0)


@functools.partial(jax.jit, static_argnums=2)
def _measured(p: Any, u: Any, depth: int) -> tuple[jax.Array, jax.Array]:
    """The angle between p and p + u, and the root mean square of p, of each matrix."""
    size, step = _measure.norms(p, depth), _measure.norms(u, depth)
    along = _measure.cosines(p, u, depth)
    # Off by √eps where the step is along the weights, as no step of training is; what is
    # left of it without its part along them would be exact, in two passes more.
    across = jnp.sqrt((1 - along) * (1 + along))
    angle = jnp.arctan2(step * across, size + step * along)
    return angle, size / max(_measure.size(p, depth), 1) ** 0.5
