"""Optax's own state: a run that began with an optimizer of Optax continues in ours."""

from collections.abc import Iterator, Mapping
from typing import Any

import optax

from optwd import _paths
from optwd.compat import _carry

_TREES = ("mu", "nu", "nu_max", "trace")


def state_from(
    state: Any,
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    step: int | None = None,
) -> Any:
    """The state with which a run of `optax.adamw` (or a relative) continues in ours.

        count, mu, nu, nu_max, trace: each into its place

    Optax keeps nothing for its weight decay, so masked or not, scheduled or not makes no
    difference to what is read; it is ``optimizer`` that says how the run goes on.

    Args:
      state: the state of the Optax optimizer, or a checkpoint of it that came back as
        dicts and lists of arrays. No file is opened.
      params: the parameters.
      optimizer: what continues, such as `optwd.adamw` of the same arguments.
      step: updates so far, where the state keeps none (``optax.sgd`` at a constant rate).

    Returns:
      The state of ``optimizer``, as ``update`` takes it.

    Raises:
      ValueError: shapes or paths that do not fit; two states with moments; moments for
        which ``optimizer`` has no place.
      TypeError: a dtype here that does not hold Optax's.

    >>> import jax.numpy as jnp, optax, optwd
    >>> params = {"w": jnp.ones(2)}
    >>> begun = optax.adamw(0.1)
    >>> _, state = begun.update(params, begun.init(params), params)
    >>> print(state_from(state, params, optwd.adamw(0.1))[0].mu["w"])
    [0.1 0.1]

    Source: Optax 0.2.8, ``optax/_src/transform.py``.
    """
    nodes = list(_nodes(state))
    with_moments = [n for n in nodes if any(name in n for name in _TREES)]
    if len(with_moments) > 1:
        raise ValueError(
            f"the Optax state holds moments {len(with_moments)} times; carry the state of "
            "one optimizer, such as one entry of optax.partition's inner_states."
        )
    moments = with_moments[0] if with_moments else {}
    counts = {int(n["count"]) for n in [moments, *nodes] if "count" in n}
    if step is not None:
        counts.add(step)
    if len(counts) > 1:
        raise ValueError(f"the counts of the Optax state differ: {sorted(counts)}.")
    trees = {name: _paths.by_path(moments[name]) for name in _TREES if name in moments}
    kept = _carry.Kept("Optax state", counts.pop() if counts else None, trees, {})
    return _carry.fill(optimizer.init(params), kept)


def _nodes(state: Any) -> Iterator[Mapping[str, Any]]:
    """Every node of the state that names what it holds."""
    if hasattr(state, "_asdict"):
        state = state._asdict()
    if isinstance(state, Mapping):
        yield state
        inner = [x for name, x in state.items() if name not in _TREES]
    else:
        inner = state if isinstance(state, (list, tuple)) else []
    for x in inner:
        yield from _nodes(x)
