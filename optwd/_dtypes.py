"""Dtypes: which one a leaf is computed in, kept in, and returned in."""

from typing import Any

import jax
import jax.numpy as jnp


def dtype_of(x: Any) -> Any:
    """The dtype of an array, a shape or a Python number."""
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def is_inexact(x: Any) -> bool:
    """Whether `x` is floating or complex."""
    return jnp.issubdtype(dtype_of(x), jnp.inexact)


def is_complex(x: Any) -> bool:
    """Whether `x` is complex."""
    return jnp.issubdtype(dtype_of(x), jnp.complexfloating)


def is_narrow(x: Any) -> bool:
    """Whether `x` is floating and below float32."""
    return is_inexact(x) and jnp.finfo(dtype_of(x)).bits < 32


def holds(wide: Any, dtype: Any) -> bool:
    """Whether every number of the floating `dtype` is one of the dtype `wide`."""
    return jnp.issubdtype(dtype, jnp.inexact) and jnp.promote_types(wide, dtype) == wide


def at_least_float32(*dtypes: Any) -> Any:
    """The real dtype in which leaves of these dtypes are computed."""
    return jnp.float64 if max(jnp.finfo(d).bits for d in dtypes) > 32 else jnp.float32


def complex_of(real_dtype: Any) -> Any:
    """The complex dtype whose parts have this real one, or the nearest wider."""
    return jnp.complex128 if real_dtype == jnp.float64 else jnp.complex64


def wider(x: Any, y: Any) -> Any:
    """The dtype that holds both `x` and `y`, which are floating or complex."""
    if dtype_of(x) == dtype_of(y):
        return dtype_of(x)
    if is_narrow(x) or is_narrow(y):  # JAX does not promote float8
        others = [dtype_of(z) for z in (x, y) if not is_narrow(z)]
        return others[0] if others else jnp.float32
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype_of(x), dtype_of(y))


def wide_scalar(value: Any) -> Any:
    """As wide as a Python number is, since the other factor may be one.

    Optax's schedules are float32 also under x64; a product in float32 would round a
    Python number to it.
    """
    default = jnp.result_type(float)
    if isinstance(value, (int, float)) or not is_inexact(value):
        return value
    narrow = jnp.finfo(value.dtype).bits < jnp.finfo(default).bits
    return value.astype(default) if narrow else value


def widened(*arrays: Any) -> list[jax.Array]:
    """All in one dtype, float32 at least, complex if one of them is."""
    dtype = at_least_float32(*map(dtype_of, arrays))
    dtype = complex_of(dtype) if any(map(is_complex, arrays)) else dtype
    return [jnp.asarray(x).astype(dtype) for x in arrays]


def moment_dtype(name: str, dtype: Any) -> Any:
    """The argument of that name as a floating dtype, or None."""
    if dtype is None:
        return None
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"{name} must be a floating dtype or None, got {dtype}.")
    return dtype
