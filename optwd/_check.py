"""Hyperparameters: numbers in their domain, and schedules read at a step."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike

from optwd import _dtypes

Scalar = Any  # a Python number, or a traced or concrete array of shape ()
ScalarOrSchedule = ArrayLike | optax.Schedule


def number(
    name: str, value: Any, *, below: float = math.inf, closed: bool = False
) -> Scalar:
    """A hyperparameter in [0, below) as a Python float, or unchanged while it is traced.

    The interval is [0, below] if `closed`. A Python float keeps double precision until it
    is used, and is weakly typed, so that it never widens what it multiplies.
    """
    domain = f"[0, {below:g}{']' if closed else ')'}"
    if not is_real(value) or _dtypes.dtype_of(value) == jnp.bool_:
        raise TypeError(f"{name} must be a real number in {domain}, got {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(
            f"{name} must be one number in {domain}, got an array of shape "
            f"{jnp.shape(value)}; use a mask of floats for a value per leaf."
        )
    if isinstance(value, Tracer):
        return value
    if not (0.0 <= float(value) < below or (closed and float(value) == below)):
        hint = ""
        if _dtypes.is_narrow(value):
            hint = (
                " It was rounded to low precision: give optax.inject_hyperparams "
                "hyperparam_dtype=jnp.float32."
            )
        raise ValueError(f"{name} must be in {domain}, got {value!r}.{hint}")
    return float(value)


def integer(name: str, value: Any) -> Any:
    """An integer in [0, 2³²), unchanged, traced or not."""
    if not is_real(value) or not jnp.issubdtype(_dtypes.dtype_of(value), jnp.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if jnp.shape(value) != ():
        raise ValueError(f"{name} must be one integer, got shape {jnp.shape(value)}.")
    if not isinstance(value, Tracer) and not 0 <= int(value) < 2**32:
        raise ValueError(f"{name} must be in [0, 2³²), got {value!r}; it would wrap round.")
    return value


def rate(name: str, value: Any, **domain: Any) -> Any:
    """A schedule (any callable of the step), unchanged, or a checked `number`."""
    if not callable(value) and not is_real(value):
        raise TypeError(f"{name} must be a number or a schedule, got {value!r}.")
    return value if callable(value) else number(name, value, **domain)


def at_step(name: str, value: Any, step: ArrayLike, **domain: Any) -> Scalar:
    """The value of a number or schedule at this step, in float32 at least.

    Where it is concrete it must be in its domain; see `number`.
    """
    if callable(value):
        value = value(step)
        if jnp.shape(value) != ():
            raise ValueError(
                f"the schedule {name} must return one number, got an array of shape "
                f"{jnp.shape(value)}."
            )
        if not isinstance(value, Tracer):
            number(f"the value of the schedule {name} at step {step}", value, **domain)
    return jnp.asarray(value, jnp.float32) if _dtypes.is_narrow(value) else value


def first(name: str, value: Any, **domain: Any) -> None:
    """Raise at `init`, also where that is traced, if the first step would."""
    if callable(value):
        with jax.ensure_compile_time_eval():
            at_step(name, value, jnp.zeros([], jnp.int32), **domain)


def need_params(name: str, params: Any) -> None:
    """Raise if `update` was called without parameters."""
    if params is None:
        raise ValueError(
            f"{name} needs the parameters: call update(updates, state, params)."
        )


def need_state(name: str, state: Any, kind: type[Any]) -> None:
    """Raise if `update` was given the state of something else."""
    if not isinstance(state, kind):
        raise TypeError(
            f"{name}: the state is of type {type(state).__name__}, not {kind.__name__}. It "
            "must come from `init` of this optimizer; compat.optax.state_from takes over "
            "that of an Optax optimizer."
        )


def is_real(value: Any) -> bool:
    """Whether `value` is a number or an array of numbers, and not complex."""
    numbers = (int, float, np.generic, np.ndarray, jax.Array)
    return isinstance(value, numbers) and any(
        jnp.issubdtype(_dtypes.dtype_of(value), kind)
        for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )
