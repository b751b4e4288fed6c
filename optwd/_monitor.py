"""Measuring: what a part of a chain did in the last step."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optwd import _check, _measure, _paths


class MonitorState(NamedTuple):
    """What was measured in the last step, beside the state of what was measured.

    Attributes:
      inner: the state of the monitored transformation; empty for `monitor_rounding`.
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
    leaves. Around a decay, the ratio says how strong it is beside the rest of the step.

    Place in the chain: around any part of it. Where nothing is monitored, nothing is
    computed; a monitor costs three passes over the updates.

    Args:
      transformation: any transformation.
      name: under which `metrics` reports; each monitor needs its own.

    Returns:
      The transformation, with state `MonitorState` around its own.

    Raises:
      ValueError: a name that is not a string or is empty; ``update`` inside of
        ``jax.shard_map`` where a leaf may be a shard.

    >>> from optwd import decay
    >>> tx, theta = monitor(decay.linear(0.1), "decay"), jnp.array([10.0])
    >>> _, state = tx.update(jnp.array([2.0]), tx.init(theta), theta)
    >>> print({key: float(value) for key, value in metrics(state).items()})
    {'decay/norm_in': 2.0, 'decay/norm_added': 1.0, 'decay/ratio': 0.5}

    Source: none.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"monitor: name must be a string that says what, got {name!r}.")
    transformation = optax.with_extra_args_support(transformation)

    def measure(norm_in: Any, norm_added: Any) -> dict[str, jax.Array]:
        ratio = jnp.where(norm_added > 0, norm_added / norm_in, 0)
        values = {"norm_in": norm_in, "norm_added": norm_added, "ratio": ratio}
        return {f"{name}/{key}": value for key, value in values.items()}

    def init(params: Any) -> MonitorState:
        zero = jnp.zeros((), jnp.float32)
        return MonitorState(transformation.init(params), measure(zero, zero))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, inner = transformation.update(updates, state.inner, params, **extra)
        _measure.refuse_shards(f"monitor {name!r}", updates, new)
        measured = measure(_measure.norm(updates), _measure.distance(new, updates))
        return new, MonitorState(inner, measured)

    return optax.GradientTransformationExtraArgs(init, update)


def monitor_rounding() -> optax.GradientTransformationExtraArgs:
    """Measure the share of elements whose step is lost to rounding, and change nothing.

        rounding/lost = share of elements with u ≠ 0 and round(θ + u) = θ

    with the rounding of the parameter's dtype, as in ``optax.apply_updates``. Near 1, the
    parameters stand still: see `optwd.compensate_rounding`.

    Place in the chain: last, where the updates are about to be added; inside `in_float32`,
    so that it sees them before they are rounded themselves.

    Returns:
      A transformation with state `MonitorState` that returns the updates as they are.

    Raises:
      ValueError: ``update`` without parameters, or inside of ``jax.shard_map`` where a leaf
        may be a shard.

    >>> tx, theta = monitor_rounding(), jnp.ones(4, jnp.bfloat16)
    >>> u = jnp.array([1e-4, 1e-3, 1e-2, 1e-1])
    >>> _, state = tx.update(u, tx.init(theta), theta)
    >>> print(metrics(state)["rounding/lost"])
    0.5

    Source: none.
    """

    def init(params: Any) -> MonitorState:
        del params
        return MonitorState((), {"rounding/lost": jnp.zeros((), jnp.float32)})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del state, extra
        _check.need_params("monitor_rounding", params)
        _measure.refuse_shards("monitor_rounding", updates, params)
        lost = _measure.share_lost(updates, params)
        return updates, MonitorState((), {"rounding/lost": lost})

    return optax.GradientTransformationExtraArgs(init, update)


def metrics(state: Any) -> dict[str, jax.Array]:
    """Everything that monitors recorded, for any logger.

    Args:
      state: the state of an optimizer, of any depth (``optax.chain``, ``partition``,
        ``masked``, ``MultiSteps``, ``inject_hyperparams``, …), an ``nnx.Optimizer``, or
        whatever else holds one.

    Returns:
      A new dict from names to arrays of shape (), empty where nothing is monitored. No
      device is waited for.

    Raises:
      ValueError: two monitors of one name.

    >>> metrics(optax.chain(optax.scale(1), monitor_rounding()).init(jnp.ones(2)))
    {'rounding/lost': Array(0., dtype=float32)}

    Source: none.
    """
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
