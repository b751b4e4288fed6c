"""A half-finished run: what another library kept, put into the state of our optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from optwd import _dtypes, _paths
from optwd._paths import PyTree

# Each of Optax's wrappers, by a field that only its state has, and the numbers that it
# counts for itself.
WRAPPERS = {
    "acc_grads": ("mini_step", "gradient_step"),  # MultiSteps
    "hyperparams": ("count",),  # inject_hyperparams
    "notfinite_count": ("notfinite_count", "last_finite", "total_notfinite"),
}
_MAXIMA = {"nu_max", "nu_max_raw"}


class Kept(NamedTuple):
    """What the source kept, by the names of our states.

    Attributes:
      source: for messages.
      step: updates so far, or None where the source does not keep it.
      trees: from the name of a field (``mu``) to its arrays by path.
      numbers: from the name of a field (``mu_product``) to its one number.
      wrappers: the states of Optax's wrappers, by their keys in `WRAPPERS`.
    """

    source: str
    step: int | None
    trees: dict[str, dict[str, Any]]
    numbers: dict[str, Any]
    wrappers: Mapping[str, Mapping[str, Any]] = {}


def fill(state: Any, kept: Kept) -> Any:
    """`state` as `init` made it, with everything that was kept put in its place."""
    placed: set[str] = set()
    new = _node(state, kept, placed, "")
    left = (kept.trees.keys() | kept.numbers.keys()) - placed
    if left:
        raise ValueError(
            f"the {kept.source} has {', '.join(sorted(left))}, for which this optimizer "
            "has no place: give the optimizer that continues the run."
        )
    accumulated = kept.wrappers.get("acc_grads", {}).get("mini_step", 0)
    if int(accumulated) and "acc_grads" not in placed:
        raise ValueError(
            f"MultiSteps has accumulated the gradients of {int(accumulated)} steps, for "
            "which this optimizer has no place: wrap it in optax.MultiSteps as well, or "
            "carry the state over when mini_step is 0."
        )
    return new


def _node(state: Any, kept: Kept, placed: set[str], where: str) -> Any:
    if hasattr(state, "_fields"):
        name = type(state).__name__
        wrapper = next((key for key in WRAPPERS if key in state._fields), None)
        new = {} if wrapper is None else _wrapper(wrapper, state, kept, placed)
        for field, old in state._asdict().items():
            if field not in new:
                new[field] = _field(field, old, kept, placed, f"{name}.{field}")
        return type(state)(**new)
    if isinstance(state, tuple):
        return tuple(_node(s, kept, placed, where) for s in state)
    if isinstance(state, dict):  # optax.partition, optax.named_chain
        return type(state)((k, _node(s, kept, placed, where)) for k, s in state.items())
    raise ValueError(
        f"{where or 'the state'}: the {kept.source} has nothing for it. Carry the state of "
        "the optimizer alone, and init what is wrapped around it or added to it."
    )


def _wrapper(key: str, state: Any, kept: Kept, placed: set[str]) -> dict[str, Any]:
    """What a wrapper of Optax keeps for itself: as it was, else as at the step of the run.

    An argument that `inject_hyperparams` keeps as a number is taken over, for the run may
    have changed it there; one that follows a schedule is not.
    """
    placed.add(key)
    theirs = kept.wrappers.get(key, {})
    new = {}
    for field in WRAPPERS[key]:
        if field in theirs:
            new[field] = array(field, theirs[field], getattr(state, field), kept.source)
        elif field not in ("count", "gradient_step"):
            new[field] = getattr(state, field)
        else:
            new[field] = jnp.asarray(_step(kept), getattr(state, field).dtype)
    if key == "acc_grads":
        gradients = theirs.get("acc_grads")
        new["skip_state"] = state.skip_state
        new["acc_grads"] = (
            state.acc_grads
            if gradients is None
            else like("acc_grads", state.acc_grads, _paths.by_path(gradients), kept.source)
        )
    if key == "hyperparams":
        clock = kept._replace(step=int(new["count"]))
        schedules = getattr(state, "hyperparams_states", {})
        scheduled = {*schedules, *theirs.get("hyperparams_states", {})}
        values = theirs.get("hyperparams", {})
        if hasattr(state, "hyperparams_states"):
            new["hyperparams_states"] = _node(schedules, clock, placed, "a schedule")
        new["hyperparams"] = {
            name: array(f"hyperparams {name}", values[name], old, kept.source)
            if name in values and name not in scheduled
            else old
            for name, old in state.hyperparams.items()
        }
    return new


def _field(name: str, old: Any, kept: Kept, placed: set[str], where: str) -> Any:
    if name in ("count", "step"):
        return jnp.asarray(_step(kept), old.dtype)
    if name in _MAXIMA and kept.trees.keys() & (_MAXIMA - {name}):
        raise ValueError(
            f"{where}: the {kept.source} has AMSGrad's maximum of the "
            f"{'corrected' if name == 'nu_max_raw' else 'raw'} second moment, which does "
            "not give that of the other. optwd.amsgrad continues a run of Optax, "
            "compat.torch.adam(amsgrad=True) one of torch."
        )
    if name in kept.trees or name in kept.numbers:
        placed.add(name)
        if name in kept.trees:
            return like(name, old, kept.trees[name], kept.source)
        return array(name, kept.numbers[name], old, kept.source)
    return _node(old, kept, placed, where)


def _step(kept: Kept) -> int:
    if kept.step is None:
        raise ValueError(f"the {kept.source} has no step: give step=, the updates so far.")
    return kept.step


def like(name: str, old: PyTree, given: Mapping[str, Any], source: str) -> PyTree:
    """The tree `old` with the arrays that were given by path."""
    wanted = _paths.by_path(old)
    for here, there, text in (
        (wanted, given, f"no {name} in the {source}"),
        (given, wanted, f"a {name} in the {source}, but no such parameter"),
    ):
        only = [path for path in here if path not in there]
        if only:
            raise ValueError(
                f"{', '.join(only[:5])}{', …' * (len(only) > 5)}: {text}; names and "
                "parameters must be those of the run that is carried over."
            )
    leaves = [
        array(f"{path}: {name}", given[path], x, source) for path, x in wanted.items()
    ]
    return _paths.unflatten(leaves, old)


def array(name: str, value: Any, like: Any, source: str) -> Any:
    """`value` in an array of its own, after checks against what stands in its place."""
    dtype, shape = _dtypes.dtype_of(like), jnp.shape(like)
    if isinstance(value, (bool, int, float)):
        value = np.asarray(value, dtype)
    value = numpy(value)
    if np.iscomplexobj(value) and not _dtypes.is_complex(like):
        if shape == (*value.shape, 2):
            value = np.stack([value.real, value.imag], -1)  # see `_parts.of_two_reals`
        elif not value.imag.any():
            value = value.real  # Optax keeps |g|² as complex
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape} in the {source} and {shape} here; "
            "they must be equal, after the transposition of kernels."
        )
    if value.dtype != dtype and not _dtypes.holds(dtype, value.dtype):
        raise TypeError(
            f"{name} has dtype {value.dtype} in the {source} and {dtype} here, which does "
            "not hold it. Enable jax_enable_x64 for a float64 run, or convert it yourself."
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
