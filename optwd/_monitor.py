"""Measuring: what a part of an optimizer did in the last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwd import _check, _measure, _paths, _shards


class MonitorState(NamedTuple):
    """What was measured in the last step, and the state of what was measured.

    Attributes:
      inner: the state of the monitored transformation, or what the monitor counts.
      metrics: from names to float32 arrays of shape (); 0 before the first step.
    """

    inner: Any
    metrics: Mapping[str, jax.Array]


def monitor(
    transformation: optax.GradientTransformation, name: str
) -> optax.GradientTransformationExtraArgs:
    """Measure what a transformation does to the updates, and change nothing.

        name/norm_in = ‖u‖    name/norm_added = ‖u' − u‖    name/ratio = added/in

    with ``u'`` what the transformation makes of ``u``, and the Euclidean norm over all
    leaves. Around a decay, the ratio says how strong it is beside the rest of the step;
    for the decay inside a finished optimizer see `monitor_decay`.

    A monitor costs three passes over the updates. NaN stays NaN.

    Args:
      transformation: any transformation.
      name: the name under which `metrics` reports; each monitor needs its own.

    Returns:
      The transformation, with state `optwd.MonitorState` around its own.

    Raises:
      ValueError: a name that is empty or not a string; ``update`` inside ``jax.shard_map``
        where a leaf may be a shard.

    >>> import jax.numpy as jnp
    >>> from optwd import decay
    >>> tx, theta = monitor(decay.linear(0.1), "decay"), jnp.array([10.0])
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(theta), theta)
    >>> print({key: float(value) for key, value in metrics(state).items()})
    {'decay/norm_in': 2.0, 'decay/norm_added': 1.0, 'decay/ratio': 0.5}
    """
    transformation = optax.with_extra_args_support(transformation)

    def both(updates: Any, state: Any, params: Any, extra: Any) -> tuple[Any, Any, Any]:
        new, inner = transformation.update(updates, state, params, **extra)
        return updates, new, inner

    return _monitored("monitor", name, transformation.init, both)


def monitor_decay(
    optimizer: optax.GradientTransformation, name: str = "decay"
) -> optax.GradientTransformationExtraArgs:
    """Measure the decay inside a finished optimizer, and change nothing.

        name/norm_in = ‖Δ(0)‖    name/norm_added = ‖Δ(θ) − Δ(0)‖    name/ratio = added/in

    with ``Δ(θ)`` the optimizer's update and ``Δ(0)`` what it would be for weights of 0,
    from the same gradients and state. For decay that is decoupled and proportional to the
    weights that is its exact share, whoever wrote the optimizer. Coupled decay counts as
    far as it enters through this step's gradient. Under jit the moments are computed once.

    Args:
      optimizer: a finished optimizer, such as `optwd.adamw` or ``optax.lion``.
      name: See `monitor`.

    Returns:
      The optimizer, with state `optwd.MonitorState` around its own.

    Raises:
      ValueError: as `monitor`; ``update`` without parameters.

    >>> import jax.numpy as jnp, optax
    >>> tx, theta = monitor_decay(optax.adamw(0.1, weight_decay=0.5)), jnp.array([1.0])
    >>> _, state = tx.update(jnp.array([3.0]), tx.init(theta), theta)
    >>> print(metrics(state)["decay/ratio"].round(3))
    0.5
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def both(updates: Any, state: Any, params: Any, extra: Any) -> tuple[Any, Any, Any]:
        _check.need_params("monitor_decay", params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        without, _ = optimizer.update(updates, state, zeros, **extra)
        new, inner = optimizer.update(updates, state, params, **extra)
        return without, new, inner

    return _monitored("monitor_decay", name, optimizer.init, both)


def _monitored(
    kind: str, name: str, init_inner: Any, both: Any
) -> optax.GradientTransformationExtraArgs:
    """`both` returns the updates before and after what is measured, and its state."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{kind}: name must be a string that says what, got {name!r}.")

    def measured(norm_in: Any, norm_added: Any) -> dict[str, jax.Array]:
        nothing = norm_added == 0  # and not 0/0
        ratio = jnp.where(nothing, 0, norm_added / jnp.where(nothing, 1, norm_in))
        values = {"norm_in": norm_in, "norm_added": norm_added, "ratio": ratio}
        return {f"{name}/{key}": value for key, value in values.items()}

    def init(params: Any) -> MonitorState:
        zero = jnp.zeros((), jnp.float32)
        return MonitorState(init_inner(params), measured(zero, zero))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        _check.need_state(kind, state, MonitorState)
        before, new, inner = both(updates, state.inner, params, extra)
        _shards.refuse(f"{kind} {name!r}", before, new)
        metrics = measured(_measure.norm(before), _measure.distance(new, before))
        return new, MonitorState(inner, metrics)

    return optax.GradientTransformationExtraArgs(init, update)


def monitor_rounding() -> optax.GradientTransformationExtraArgs:
    """Measure the share of elements whose step is lost to rounding, and change nothing.

        rounding/lost = share of elements with u ≠ 0 and round(θ + u) = θ

    with the rounding of the parameter's dtype, as in ``optax.apply_updates``. Near 1, the
    parameters stand still: see `optwd.compensate_rounding`.

    It stands last, where the updates are about to be added, and inside `in_float32`, so
    that it sees them before they are rounded themselves:
    ``in_float32(chain(adamw(…), monitor_rounding()))``.

    Returns:
      A transformation with state `optwd.MonitorState` that returns the updates as they are.

    Raises:
      ValueError: ``update`` without parameters, or inside ``jax.shard_map`` where a leaf
        may be a shard.

    >>> import jax.numpy as jnp
    >>> tx, theta = monitor_rounding(), jnp.ones(4, jnp.bfloat16)
    >>> u = jnp.array([1e-4, 1e-3, 1e-2, 1e-1])
    >>> _, state = tx.update(u, tx.init(theta), theta)
    >>> print(metrics(state)["rounding/lost"])
    0.5
    """

    def init(params: Any) -> MonitorState:
        del params
        return MonitorState((), {"rounding/lost": jnp.zeros((), jnp.float32)})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del state, extra
        _check.need_params("monitor_rounding", params)
        _shards.refuse("monitor_rounding", updates, params)
        lost = _measure.share_lost(updates, params)
        return updates, MonitorState((), {"rounding/lost": lost})

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(state: Any) -> dict[str, jax.Array]:
    """Everything that monitors recorded, for any logger.

    Args:
      state: the state of an optimizer, of any depth (``optax.chain``, ``partition``,
        ``masked``, ``MultiSteps``, ``inject_hyperparams``, …), an ``nnx.Optimizer``, or
        anything else that holds one.

    Returns:
      A new dict from names to arrays of shape (), empty if nothing is monitored. It does
      not wait for the device.

    Raises:
      TypeError: no state, but an optimizer or a number.
      ValueError: two monitors with one name.

    >>> import jax.numpy as jnp, optax
    >>> metrics(optax.chain(optax.scale(1), monitor_rounding()).init(jnp.ones(2)))
    {'rounding/lost': Array(0., dtype=float32)}
    """
    is_optimizer = isinstance(state, optax.GradientTransformation)
    if is_optimizer or jax.tree_util.all_leaves([state]):
        raise TypeError(
            "metrics takes the state of an optimizer, as optimizer.init(params) returns "
            f"it, got {type(state).__name__}."
        )
    found: dict[str, jax.Array] = {}
    for monitored in _paths.instances(state, MonitorState):
        for name, value in monitored.metrics.items():
            if name in found:
                raise ValueError(
                    f"two monitors record {name!r}; give each its own name, as in "
                    "monitor(…, 'decay of the head')."
                )
            (found[name],) = jax.tree.leaves(value)  # nnx.Optimizer boxes every leaf
    return found
