"""A run that began in torch: its weights, optimizer and state, as they are here.

No file is opened: arrays in, arrays out. Kernels are transposed on the way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from optwd import _paths
from optwd._check import ScalarOrSchedule
from optwd._paths import PyTree
from optwd.compat import _carry
from optwd.compat._parts import Optimizer
from optwd.compat._torch_optimizers import adam, nadam, radam, sgd

Names = Mapping[str, str | tuple[str, Sequence[int]]]
StateDict = Mapping[str, Any]
ParameterState = Mapping[str, Any]  # what torch keeps for one parameter

_TREES = {
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "max_exp_avg_sq": "nu_max_raw",
    "momentum_buffer": "trace",
}


def params_from(state_dict: StateDict, params: PyTree, names: Names) -> PyTree:
    """A torch model's weights, as parameters like ``params``.

        kernels: (out, in, *space) → (*space, in, out)

    A leaf named ``kernel`` or ``w`` (linen, nnx, Haiku) is the kernel of a linear layer or
    a convolution, whose axes torch has the other way round. All other leaves keep theirs.

    Args:
      state_dict: from torch's names to tensors or arrays, as ``model.state_dict()``.
      params: parameters of the right structure, shapes and dtypes. Their values are not
        used.
      names: from torch's names to the paths of leaves, ``{"fc.weight": "fc/kernel"}``, or
        to a path and the axes of its transposition, ``("up/kernel", (2, 3, 0, 1))``.

    Returns:
      A tree like ``params`` that shares no memory with torch's tensors.

    Raises:
      ValueError: names or shapes that do not fit.
      TypeError: a dtype here that does not hold torch's.

    >>> import jax.numpy as jnp
    >>> params, weights = {"fc": {"kernel": jnp.zeros((2, 1))}}, jnp.array([[1.0, 2.0]])
    >>> params_from({"fc.weight": weights}, params, {"fc.weight": "fc/kernel"})
    {'fc': {'kernel': Array([[1.],
           [2.]], dtype=float32)}}
    """
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(
            f"{', '.join(missing)}: in names, but not in the state_dict, which has "
            f"{', '.join(state_dict)}."
        )
    values = _placed({name: state_dict[name] for name in names}, names)
    return _carry.like("weight", params, values, "torch state_dict")


def optimizer_from(
    state_dict: StateDict, names: Names, *, lr: ScalarOrSchedule | None = None
) -> Optimizer:
    """The optimizer of this module that wrote this ``optimizer.state_dict()``.

    Adam, AdamW, SGD, NAdam and RAdam are told apart by their options. Parameter groups
    that differ only in their weight decay become a mask.

    Args:
      state_dict: as ``optimizer.state_dict()``; only its ``param_groups`` are read.
      names: See `state_from`. Every leaf of the parameters must have a name.
      lr: a schedule of the step, counted from the start of torch's run. None is the
        learning rate that torch has at present.

    Returns:
      An optimizer for `state_from`.

    Raises:
      ValueError: groups that differ in more than their weight decay: give each an
        optimizer of its own by ``optax.partition``. An optimizer that is not one of this
        module.

    >>> group = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
    >>> groups = [{**group, "weight_decay": 0.5, "params": [0]}]
    >>> optimizer = optimizer_from({"state": {}, "param_groups": groups}, {"weight": "w"})
    """
    groups = state_dict["param_groups"]
    make = _kind(groups[0])
    options = inspect.signature(make).parameters.keys() & groups[0].keys()
    shared = {k: _number(groups[0][k]) for k in options - {"weight_decay"}}
    for i, group in enumerate(groups):
        for k, value in shared.items():
            if _number(group[k]) != value:
                raise ValueError(
                    f"param_groups[{i}] has {k}={group[k]!r}, param_groups[0] {value!r}; "
                    "groups that differ in more than weight_decay need an optimizer each: "
                    "optax.partition."
                )
    rates = {
        _path(names[name]): _number(group["weight_decay"])
        for group, members in zip(groups, _members(state_dict, names), strict=True)
        for name in members
    }
    largest = max(rates.values())
    uniform = set(rates.values()) == {largest}
    mask = None if uniform else _by_path({p: rate / largest for p, rate in rates.items()})
    shared["lr"] = shared["lr"] if lr is None else lr
    return make(**shared, weight_decay=largest, mask=mask)


def state_from(
    state_dict: StateDict,
    params: PyTree,
    names: Names,
    optimizer: optax.GradientTransformation | optax.MultiSteps | None = None,
    *,
    step: int | None = None,
) -> Any:
    """The state with which a run that began in torch continues in JAX.

        step → count, exp_avg → mu, exp_avg_sq → nu, momentum_buffer → trace

    Args:
      state_dict: as ``optimizer.state_dict()``, of tensors or arrays.
      params: the parameters here; see `params_from`.
      names: See `params_from`. Unless torch was given ``named_parameters()``, its state
        has numbers for names. Then give them in the order in which torch's optimizer was
        given its parameters, group by group.
      optimizer: the optimizer that continues; None is that of `optimizer_from`. Any chain
        that keeps the same moments will do, such as `optwd.adamw`.
      step: updates so far, which torch's SGD does not keep; for the others None.

    Returns:
      The state of ``optimizer``, as ``update`` takes it.

    Raises:
      ValueError: names, shapes or steps that do not fit; parameters that have made
        different numbers of steps; moments for which the optimizer has no place.
      TypeError: a dtype here that does not hold torch's.

    >>> import jax.numpy as jnp, optwd
    >>> moment = jnp.array([[1.0, 2.0]])
    >>> adam = {"step": 7.0, "exp_avg": moment, "exp_avg_sq": moment**2}
    >>> state_dict = {"state": {0: adam}, "param_groups": [{"params": [0]}]}
    >>> params, names = {"kernel": jnp.zeros((2, 1))}, {"weight": "kernel"}
    >>> print(state_from(state_dict, params, names, optwd.adamw(0.1))[0].mu["kernel"].T)
    [[1. 2.]]
    """
    if optimizer is None:
        optimizer = optimizer_from(state_dict, names)
    states = _states(state_dict, names)
    trees = {
        ours: _placed({name: s[theirs] for name, s in states.items()}, names)
        for theirs, ours in _TREES.items()
        if _in_all(theirs, states)
    }
    product = _one("mu_product", states)
    kept = _carry.Kept(
        "torch state_dict",
        _steps(states, step),
        trees,
        {} if product is None else {"mu_product": product},
    )
    return _carry.fill(optimizer.init(params), kept)


def _by_path(factors: Mapping[str, float]) -> Callable[[PyTree], PyTree]:
    """A mask of these paths as they are; as globs, ``a*`` would also be ``ab``."""

    def mask(params: PyTree) -> PyTree:
        here = _paths.by_path(params)
        _check_paths(here.keys(), factors.keys(), _paths.leaves(params))
        return _paths.unflatten((factors[path] for path in here), params)

    return mask


def _check_paths(here: Any, named: Any, leaves: Sequence[_paths.Leaf]) -> None:
    """Raise unless every leaf has a name, and, where no leaf is hidden, the other way."""
    hidden = any(leaf.shape is None for leaf in leaves)
    if here - named or (named - here and not hidden):
        names, params = (sorted(paths) for paths in (named, here))
        raise ValueError(
            "the names must lead to all parameters: "
            f"{_paths.difference('names', names, 'parameters', params)}"
        )


def _kind(group: Mapping[str, Any]) -> Callable[..., Optimizer]:
    if "momentum_decay" in group:
        return nadam
    if "dampening" in group:
        return sgd
    if "decoupled_weight_decay" in group:
        return adam if "amsgrad" in group else radam
    raise ValueError(
        "param_groups[0] is not of torch's Adam, AdamW, SGD, NAdam or RAdam; it has "
        f"{', '.join(group)}. For the AdamW of an old torch set decoupled_weight_decay in "
        "every group; for another optimizer give its counterpart to state_from."
    )


def _members(state_dict: StateDict, names: Names) -> list[list[str]]:
    """The torch names of every parameter group."""
    groups = state_dict["param_groups"]
    total = sum(len(group["params"]) for group in groups)
    if total != len(names):
        raise ValueError(
            f"names has {len(names)} parameters, the state_dict {total}; give one name for "
            "each, in the order in which torch's optimizer was given them."
        )
    given, members = iter(names), []
    for group in groups:
        keys = group["params"]
        known = group.get("param_names")
        if known is None and all(isinstance(key, str) and key in names for key in keys):
            known = keys  # torch.distributed has names for numbers
        members.append([next(given) for _ in keys] if known is None else list(known))
    unknown = [name for group in members for name in group if name not in names]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: in the state_dict, but not in names.")
    return members


def _states(state_dict: StateDict, names: Names) -> dict[str, ParameterState]:
    """What torch keeps for every parameter, by its name."""
    order = [name for members in _members(state_dict, names) for name in members]
    keys = [_key(key) for group in state_dict["param_groups"] for key in group["params"]]
    entries = {_key(key): entry for key, entry in state_dict["state"].items()}
    strange = [key for key in entries if key not in keys]
    if strange:
        raise ValueError(
            f"the state_dict has a state for {strange[:5]}, which are not among the params "
            f"of its param_groups, {keys[:5]}; both must name parameters alike."
        )
    return {name: entries.get(key, {}) for name, key in zip(order, keys, strict=True)}


def _key(key: int | str) -> int | str:
    """A number that went through JSON comes back as a string."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _placed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Values by torch's names, as transposed arrays by path."""
    placed = {}
    for name, value in values.items():
        to, x = names[name], _carry.numpy(value)
        path = _path(to)
        if path in placed:
            raise ValueError(f"{path}: two of torch's names lead to it; {name!r} is one.")
        if not isinstance(to, str):
            x = x.transpose(tuple(to[1]))
        elif path.split("/")[-1] in ("kernel", "w") and x.ndim > 1:
            x = x.transpose(*range(2, x.ndim), 1, 0)
        placed[path] = x
    return placed


def _path(name: str | tuple[str, Sequence[int]]) -> str:
    return name if isinstance(name, str) else name[0]


def _in_all(key: str, states: Mapping[str, ParameterState]) -> bool:
    having = [name for name, s in states.items() if s.get(key) is not None]
    if having and len(having) < len(states):
        without = ", ".join(name for name in states if name not in having)
        raise ValueError(
            f"{without}: no {key} in torch's state, while {having[0]} has one; a parameter "
            "that never had a gradient has made fewer steps than the others."
        )
    return bool(having)


def _one(key: str, states: Mapping[str, ParameterState]) -> Any:
    """What all parameters share, in the dtype in which torch keeps it, or None."""
    if not _in_all(key, states):
        return None
    values = {name: _number(s[key]) for name, s in states.items()}
    if len(set(values.values())) > 1:
        raise ValueError(
            f"the parameters differ in {key}: {values}; here it is one for all."
        )
    return next(iter(states.values()))[key]


def _steps(states: Mapping[str, ParameterState], step: int | None) -> int | None:
    kept = _number(_one("step", states))
    if kept is None:
        return step
    if kept != int(kept) or kept < 0 or (step is not None and step != kept):
        raise ValueError(
            f"torch's state says step={kept!r}, not {step!r}; it must be a whole number, "
            "and need not be given."
        )
    return int(kept)


def _number(value: Any) -> Any:
    """A Python number, or a tuple of them, where torch may have tensors."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_number, value))
    return value.item() if hasattr(value, "item") else value
