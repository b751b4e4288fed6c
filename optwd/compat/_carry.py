"""A half-finished run: what another library kept, put into the state of our optimizer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optwd import _dtypes, _paths


class Kept(NamedTuple):
    """What the source kept, by the names of our states.

    Attributes:
      who: the source, for messages.
      step: updates so far, or None where the source does not keep it.
      trees: from the name of a field (``mu``) to its arrays by path.
      numbers: from the name of a field (``mu_product``) to its one number.
    """

    who: str
    step: int | None
    trees: dict[str, dict[str, Any]]
    numbers: dict[str, Any]


def fill(state: Any, kept: Kept) -> Any:
    """`state` as `init` made it, with everything that was kept put in its place."""
    placed: set[str] = set()
    new = _node(state, kept, placed)
    left = (kept.trees.keys() | kept.numbers.keys()) - placed
    if left:
        raise ValueError(
            f"the {kept.who} has {', '.join(sorted(left))}, for which this optimizer has "
            "no place: give the optimizer that continues the run."
        )
    return new


def _node(state: Any, kept: Kept, placed: set[str], where: str = "") -> Any:
    if hasattr(state, "_fields"):
        name = type(state).__name__
        return type(state)(
            **{
                field: _field(field, old, kept, placed, f"{name}.{field}")
                for field, old in state._asdict().items()
            }
        )
    if isinstance(state, tuple):
        return tuple(_node(s, kept, placed, where) for s in state)
    if isinstance(state, dict) and where.endswith(".inner_states"):  # optax.partition
        return {k: _node(s, kept, placed, where) for k, s in state.items()}
    raise ValueError(
        f"{where or 'the state'}: the {kept.who} has nothing for it. Carry the state of "
        "the optimizer alone, and init what is wrapped around it or added to it."
    )


def _field(name: str, old: Any, kept: Kept, placed: set[str], where: str) -> Any:
    if name in ("count", "step"):
        if kept.step is None:
            raise ValueError(f"the {kept.who} has no step: give step=, the updates so far.")
        return jnp.asarray(kept.step, old.dtype)
    if name in kept.trees or name in kept.numbers:
        placed.add(name)
        if name in kept.trees:
            return like(name, old, kept.trees[name], kept.who)
        return array(name, kept.numbers[name], old, kept.who)
    return _node(old, kept, placed, where)


def like(name: str, old: Any, given: Mapping[str, Any], who: str) -> Any:
    """The tree `old` with the arrays that were given by path."""
    wanted = _paths.by_path(old)
    for here, there, text in (
        (wanted, given, f"no {name} in the {who}"),
        (given, wanted, f"a {name} in the {who}, but no such parameter"),
    ):
        only = [path for path in here if path not in there]
        if only:
            raise ValueError(
                f"{', '.join(only[:5])}{', …' * (len(only) > 5)}: {text}; names and "
                "parameters must be those of the run that is carried over."
            )
    leaves = [array(f"{path}: {name}", given[path], x, who) for path, x in wanted.items()]
    return _paths.unflatten(leaves, old)


def array(name: str, value: Any, like: Any, who: str) -> Any:
    """`value` in an array of its own, after checks against what stands in its place."""
    value = numpy(value)
    if value.shape != jnp.shape(like):
        raise ValueError(
            f"{name} has shape {value.shape} in the {who} and {jnp.shape(like)} here; "
            "they must be equal, after the transposition of kernels."
        )
    dtype = _dtypes.dtype_of(like)
    if not _dtypes.holds(dtype, value.dtype):
        raise TypeError(
            f"{name} has dtype {value.dtype} in the {who} and {dtype} here, which does not "
            "hold it. Enable jax_enable_x64 for a float64 run, or convert it yourself."
        )
    return jnp.array(value, dtype)


def numpy(value: Any) -> np.ndarray:
    """A copy of a torch tensor, without torch, or of anything that NumPy takes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy lacks
            value = value.float()
        value = value.numpy()
    return np.array(value)
