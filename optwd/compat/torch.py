"""PyTorch's optimizers, by torch's names, defaults and arithmetic, and their state.

``lr`` and ``weight_decay`` may be schedules of the step; ``mask`` says who decays, for
which torch needs parameter groups. What only says how torch computes (``foreach``,
``fused``, ``capturable``, ``differentiable``) is not here.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jax.typing import ArrayLike

from optwd import masks
from optwd._check import ScalarOrSchedule
from optwd._moments import scale_by_adam
from optwd.compat import _carry, _parts
from optwd.compat._moments import (
    scale_by_amsgrad_raw,
    scale_by_nadam,
    scale_by_radam_eps_hat,
)
from optwd.compat._parts import Optimizer
from optwd.masks import MaskLike

Betas = tuple[ArrayLike, ArrayLike]
Names = Mapping[str, str | tuple[str, Sequence[int]]]


def adam(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.Adam``: its weight decay is L2, coupled, unless it says otherwise.

        g ← g + λθ, then θ ← θ − ηₜ m̂/(√v̂ + ε)
        θ ← θ − ηₜ(m̂/(√v̂ + ε) + λθ)        decoupled_weight_decay

    Place in the chain: a finished optimizer; its updates are added to the parameters.

    Args:
      lr: ηₜ ≥ 0: a number, or a schedule of the step (0 at the first).
      betas: See `optwd.scale_by_adam`, as ``eps``.
      weight_decay: λ ≥ 0: a number, or a schedule of the step.
      amsgrad: the largest raw second moment in v̂: `optwd.compat.scale_by_amsgrad_raw`.
      maximize: ascend. The gradient is negated first, so the decay still shrinks.
      decoupled_weight_decay: as in `adamw`.
      mask: who decays; see `optwd.decay.linear`.

    Returns:
      An optimizer; see `optwd.adam`. ``update`` needs the parameters.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adam(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.1]

    Source: torch 2.13, ``torch/optim/adam.py``.
    """
    direction = (scale_by_amsgrad_raw if amsgrad else scale_by_adam)(*betas, eps)
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def adamw(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.AdamW``: decay scaled by the learning rate, on the old weights.

        θ ← θ − ηₜ(m̂/(√v̂ + ε) + λθ)

    Place in the chain, arguments, result and errors: see `adam`. The default weight decay
    is a hundred times that of Optax.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = adamw(0.1, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: torch 2.13, ``torch/optim/adamw.py``.
    """
    return adam(
        lr,
        betas,
        eps,
        weight_decay,
        amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
        mask=mask,
    )


def sgd(
    lr: ScalarOrSchedule = 1e-3,
    momentum: ArrayLike = 0.0,
    dampening: ArrayLike = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.SGD``: its weight decay is L2, and enters the momentum.

        g ← g + λθ,   m ← (1 − dampening)·g + momentum·m,   θ ← θ − ηₜm

    Place in the chain, other arguments, result and errors: see `adam`.

    Args:
      momentum: See `optwd.trace`, as ``nesterov``; with 0 there is no such state.
      dampening: See `optwd.compat.trace_dampened`; with ``nesterov`` it must be 0.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = sgd(0.1, 0.9, weight_decay=0.5), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([0.0]), optimizer.init(theta), theta)[0])
    [-0.05]

    Source: torch 2.13, ``torch/optim/sgd.py``.
    """
    _parts.check_nesterov(momentum, dampening, nesterov)
    direction = _parts.momentum(momentum, nesterov, dampening)
    return _parts.coupled(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def nadam(
    lr: ScalarOrSchedule = 2e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    momentum_decay: ArrayLike = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.NAdam``: Nesterov momentum that grows along a schedule.

        the equations of `adam` with m̂ of `optwd.compat.scale_by_nadam`

    Place in the chain, other arguments, result and errors: see `adam`.

    Args:
      momentum_decay: See `optwd.compat.scale_by_nadam`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = nadam(0.1, momentum_decay=0.0), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.1056]

    Source: torch 2.13, ``torch/optim/nadam.py``.
    """
    direction = scale_by_nadam(*betas, eps, momentum_decay)
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


def radam(
    lr: ScalarOrSchedule = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: ArrayLike = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
    mask: MaskLike = None,
) -> Optimizer:
    """``torch.optim.RAdam``: not divided by the second moment until that can be trusted.

        the equations of `adam` with û of `optwd.compat.scale_by_radam_eps_hat`

    Place in the chain, arguments, result and errors: see `adam`.

    >>> import jax.numpy as jnp
    >>> optimizer, theta = radam(0.1), jnp.array([1.0])
    >>> print(optimizer.update(jnp.array([5.0]), optimizer.init(theta), theta)[0])
    [-0.5]

    Source: torch 2.13, ``torch/optim/radam.py``.
    """
    direction = scale_by_radam_eps_hat(*betas, eps)
    chain = _parts.decoupled if decoupled_weight_decay else _parts.coupled
    return chain(
        direction,
        _parts.learning_rate("lr", lr),
        weight_decay,
        mask,
        _parts.negated(maximize),
    )


# --- a run that has begun in torch ---------------------------------------------------

_FIELDS = {
    "exp_avg": "mu",
    "exp_avg_sq": "nu",
    "max_exp_avg_sq": "nu_max",
    "momentum_buffer": "trace",
}


def params_from(state_dict: Mapping[str, Any], params: Any, names: Names) -> Any:
    """A torch model's weights, as parameters like ``params``.

        kernels: (out, in, *space) → (*space, in, out)

    A leaf named ``kernel`` or ``w`` (linen, nnx, Haiku) is a linear or convolution kernel,
    whose axes torch has the other way round; all else keeps its axes.

    Args:
      state_dict: from torch's names to tensors or arrays, as ``model.state_dict()``.
      params: parameters of the right structure, shapes and dtypes; their values are not
        used.
      names: from torch's names to the paths of leaves, ``{"fc.weight": "fc/kernel"}``, or
        to a path and the axes of its transposition, ``("up/kernel", (2, 3, 0, 1))``.

    Returns:
      A tree like ``params``, of arrays of its own.

    Raises:
      ValueError: names or shapes that do not fit.
      TypeError: a dtype here that does not hold torch's.

    >>> import jax.numpy as jnp
    >>> params, weights = {"fc": {"kernel": jnp.zeros((2, 1))}}, jnp.array([[1.0, 2.0]])
    >>> params_from({"fc.weight": weights}, params, {"fc.weight": "fc/kernel"})
    {'fc': {'kernel': Array([[1.],
           [2.]], dtype=float32)}}

    Source: the layouts of ``torch.nn.Linear``, ``ConvNd`` and of Flax.
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
    state_dict: Mapping[str, Any], names: Names, *, lr: ScalarOrSchedule | None = None
) -> Optimizer:
    """The optimizer of this module that a torch optimizer's ``state_dict()`` is of.

    Adam, AdamW, SGD, NAdam and RAdam are told apart by their options. Parameter groups
    that differ in their weight decay become a mask.

    Args:
      state_dict: as ``optimizer.state_dict()``; only its ``param_groups`` are read.
      names: See `state_from`.
      lr: a schedule of the step, counted from the start of torch's run; None is the
        learning rate that torch has at present.

    Returns:
      An optimizer for `state_from`.

    Raises:
      ValueError: groups that differ in more than their weight decay: give each its
        optimizer by ``optax.partition``. An optimizer that is not one of this module.

    >>> group = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False}
    >>> groups = [{**group, "weight_decay": 0.5, "params": [0]}]
    >>> optimizer = optimizer_from({"state": {}, "param_groups": groups}, {"weight": "w"})

    Source: torch 2.13, ``torch/optim``.
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
    rates = {}
    for group, members in zip(groups, _members(state_dict, names), strict=True):
        rates |= dict.fromkeys(
            (_path(names[name]) for name in members), _number(group["weight_decay"])
        )
    largest = max(rates.values())
    factors = {path: rate / largest for path, rate in rates.items() if rate}
    mask = None if set(rates.values()) == {largest} else masks.multipliers(factors)
    shared["lr"] = shared["lr"] if lr is None else lr
    return make(**shared, weight_decay=largest, mask=mask)


def state_from(
    state_dict: Mapping[str, Any],
    params: Any,
    names: Names,
    optimizer: Any = None,
    *,
    step: int | None = None,
) -> Any:
    """The state with which a run that has begun in torch continues in JAX.

        step → count, exp_avg → mu, exp_avg_sq → nu, momentum_buffer → trace

    No file is opened: arrays in, arrays out. Kernels are transposed as by `params_from`.

    Args:
      state_dict: as ``optimizer.state_dict()``, of tensors or arrays.
      params: the parameters here; see `params_from`.
      names: See `params_from`. Unless torch was given ``named_parameters()``, its state
        has numbers for names: then give them in the order in which torch's optimizer was
        given its parameters, group by group.
      optimizer: the optimizer that continues; None is the one of `optimizer_from`. Any
        chain will do that keeps the same moments, such as `optwd.adamw`.
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
    >>> state = state_from(state_dict, params, names, optwd.adamw(0.1))
    >>> print(state[0].count, state[0].mu["kernel"].ravel())
    7 [1. 2.]

    Source: torch 2.13, ``torch/optim``.
    """
    if optimizer is None:
        optimizer = optimizer_from(state_dict, names)
    order = [name for members in _members(state_dict, names) for name in members]
    numbers = [i for group in state_dict["param_groups"] for i in group["params"]]
    states = {
        name: state_dict["state"].get(i, {}) for i, name in zip(numbers, order, strict=True)
    }
    trees = {
        ours: _placed({name: s[theirs] for name, s in states.items()}, names)
        for theirs, ours in _FIELDS.items()
        if _in_all(theirs, states)
    }
    products = _one("mu_product", states)
    kept = _carry.Kept(
        "torch state_dict",
        _steps(states, step),
        trees,
        {} if products is None else {"mu_product": products},
    )
    return _carry.fill(optimizer.init(params), kept)


def _kind(group: Mapping[str, Any]) -> Any:
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


def _members(state_dict: Mapping[str, Any], names: Names) -> list[list[str]]:
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
        known = group.get("param_names")
        members.append([next(given) for _ in group["params"]] if known is None else known)
    unknown = [name for group in members for name in group if name not in names]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: in the state_dict, but not in names.")
    return members


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


def _path(name: Any) -> str:
    return name if isinstance(name, str) else name[0]


def _in_all(key: str, states: Mapping[str, Mapping[str, Any]]) -> bool:
    having = [name for name, s in states.items() if s.get(key) is not None]
    if having and len(having) < len(states):
        without = ", ".join(name for name in states if name not in having)
        raise ValueError(
            f"{without}: no {key} in torch's state, while {having[0]} has one; a parameter "
            "that never had a gradient has made fewer steps than the others."
        )
    return bool(having)


def _one(key: str, states: Mapping[str, Mapping[str, Any]]) -> Any:
    """The number that all parameters share, or None."""
    if not _in_all(key, states):
        return None
    values = {name: _number(s[key]) for name, s in states.items()}
    if len(set(values.values())) > 1:
        raise ValueError(
            f"the parameters differ in {key}: {values}; here it is one for all."
        )
    return next(iter(values.values()))


def _steps(states: Mapping[str, Mapping[str, Any]], step: int | None) -> int | None:
    kept = _one("step", states)
    if kept is None:
        return step
    if kept != int(kept) or kept < 0 or (step is not None and step != kept):
        raise ValueError(
            f"torch's state says step={kept!r}, not {step!r}; it must be a whole number, "
            "and need not be given."
        )
    return int(kept)


def _number(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
