"""Optax's own state: a run that began with an optimizer of Optax continues in ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import optax

from optwd import _paths
from optwd._paths import PyTree
from optwd.compat import _carry

__all__ = ["state_from"]

_TREES = ("mu", "nu", "nu_max", "trace")
_NOT_STATES = (*_TREES, "acc_grads", "skip_state", "hyperparams", "hyperparams_states")


def __dir__() -> list[str]:
    return __all__


def state_from(
    state: Any,
    params: PyTree,
    optimizer: optax.GradientTransformation | optax.MultiSteps,
    *,
    step: int | None = None,
) -> Any:
    """The state with which a run of `optax.adamw` (or a relative) continues in ours.

        count, mu, nu, nu_max, trace: each into its place

    Optax keeps nothing for its weight decay, so it makes no difference whether that was
    masked or scheduled: ``optimizer`` says how the run goes on.

    Both may be inside of ``optax.MultiSteps``, ``inject_hyperparams``,
    ``apply_if_finite``, ``named_chain`` and ``partition``, in any order. What a wrapper
    keeps is taken over where both have it: the gradients accumulated so far, and the
    numbers in ``inject_hyperparams``, which the run may have changed there.

    A checkpoint that Orbax wrote of an Optax state cannot be restored into ours, whose
    structure is another. Restore it as what it is, then convert it::

        theirs = checkpointer.restore(path, jax.eval_shape(optax.adamw(η).init, params))
        state = optwd.compat.optax.state_from(theirs, params, optwd.adamw(η))

    Args:
      state: the state of the Optax optimizer, or a checkpoint of it that came back as
        dicts and lists of arrays. No file is opened.
      params: the parameters.
      optimizer: what continues, such as `optwd.adamw` of the same arguments.
      step: updates so far, where the state keeps none (``optax.sgd`` at a constant rate).

    Returns:
      The state of ``optimizer``, as ``update`` takes it.

    Raises:
      ValueError: shapes or paths that do not fit; two states with moments; moments, or
        accumulated gradients, for which ``optimizer`` has no place.
      TypeError: a dtype here that does not hold Optax's.

    >>> import jax.numpy as jnp, optax, optwd
    >>> params = {"w": jnp.ones(2)}
    >>> begun = optax.adamw(0.1)
    >>> _, state = begun.update(params, begun.init(params), params)
    >>> print(state_from(state, params, optwd.adamw(0.1))[0].mu["w"])
    [0.1 0.1]
    """
    start = optimizer.init(params)
    nodes = list(_nodes(state))
    moments = _only("moments", [n for n in nodes if n.keys() & {*_TREES}])
    wrappers = {
        key: found
        for key in _carry.WRAPPERS
        if (found := _only(f"a state with {key}", [n for n in nodes if key in n]))
    }
    clocks = [n for n in nodes if "count" in n and "hyperparams" not in n]
    injected = wrappers.get("hyperparams", {})
    if injected.get("hyperparams_states") and not optax.tree.get_all_with_path(
        start, "hyperparams"
    ):
        clocks.append(injected)  # its schedules become the optimizer's own
    counts = {int(n["count"]) for n in clocks} | (set() if step is None else {step})
    if len(counts) > 1:
        raise ValueError(f"the counts of the Optax state differ: {sorted(counts)}.")
    kept = _carry.Kept(
        "Optax state",
        counts.pop() if counts else None,
        {name: _paths.by_path(moments[name]) for name in _TREES if name in moments},
        {},
        wrappers,
    )
    return _carry.fill(start, kept)


def _nodes(state: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of the state that names what it holds."""
    named = state._asdict() if hasattr(state, "_asdict") else state
    if isinstance(named, Mapping):
        certain = named is not state or {"mu", "nu"} <= named.keys()
        inner = {
            k: x
            for k, x in named.items()
            if k not in _NOT_STATES or (not certain and _is_state(x))
        }
        yield {k: x for k, x in named.items() if k not in inner or k not in _TREES}
        children = list(inner.values())
    else:
        children = state if isinstance(state, (list, tuple)) else []
    for child in children:
        yield from _nodes(child)


def _is_state(x: Any) -> bool:
    """Whether `optax.named_chain` calls a whole state by the name of a moment."""
    marks = ({"mu", "nu"}, {"trace"}, *({key} for key in _carry.WRAPPERS))
    return any(mark <= node.keys() for node in _nodes(x) for mark in marks)


def _only(what: str, found: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(found) > 1:
        raise ValueError(
            f"the Optax state holds {what} {len(found)} times; carry the state of one "
            "optimizer, such as one entry of optax.partition's inner_states."
        )
    return found[0] if found else {}
