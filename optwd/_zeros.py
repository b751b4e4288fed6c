"""State at the start: arrays that live where their parameters live."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optwd import _dtypes


def like(p: Any, dtype: Any = None) -> jax.Array:
    """Zeros of the shape of `p`, beside it, in its dtype unless another is given."""
    return beside(p, jnp.zeros_like(p, dtype=dtype))


def beside(p: Any, x: Any) -> Any:
    """`x`, on the devices of `p`, whose shape it has.

    A traced `p` does not say which devices these are, but what is computed from it
    elementwise stays there. So `p` enters a condition that never holds, as XLA does not
    know: where it does know, for integers or for a choice between equals, `x` ends up on
    one device.
    """
    keys = jnp.issubdtype(_dtypes.dtype_of(p), jax.dtypes.extended)  # random keys
    return _where_never(p, x) if isinstance(p, Tracer) and not keys else x


@jax.jit
def _where_never(p: Any, x: Any) -> jax.Array:
    p = p if _dtypes.is_inexact(p) else p.astype(jnp.float32)
    return jnp.where((p == p) & (p != p), jnp.ones_like(x), x)
