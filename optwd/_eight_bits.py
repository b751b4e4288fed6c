"""A residual in eight bits: in 127ths of half the spacing of its weight.

Rounding takes at most half a spacing from a weight, so the weight says how large its
residual can be, and no scale has to be kept.
"""

import jax
import jax.numpy as jnp

from optwd import _dtypes, _rounding

LARGEST = 127


def load(codes: jax.Array, weight: jax.Array) -> jax.Array:
    """The residual of that weight, in float32 at least."""
    unit = half_spacing(weight) / LARGEST
    return codes.astype(unit.dtype) * unit


def store(residual: jax.Array, weight: jax.Array, step: jax.Array) -> jax.Array:
    """Its codes, up or down by the chance of the step, so that they are right on average.

    To nearest, steps below half a code would leave the residual where it is.
    """
    chance = _rounding.for_step(step).astype(residual.dtype) * 2.0**-_rounding.BITS
    codes = jnp.floor(residual * (LARGEST / half_spacing(weight)) + chance)
    return jnp.clip(codes, -LARGEST, LARGEST).astype(jnp.int8)


def half_spacing(x: jax.Array) -> jax.Array:
    """Half the distance from |x| to the next larger number of its dtype; finite, above 0.

    In float32 at least. The spacing of the smallest numbers of bfloat16 is no normal number
    there: for these it is the smallest normal number.
    """
    to = jnp.finfo(x.dtype)
    wide = _dtypes.at_least_float32(x.dtype)
    within = jnp.finfo(wide)
    bits = jax.lax.bitcast_convert_type(x.astype(wide), f"uint{within.bits}")
    exponent = (2**within.nexp - 1) << within.nmant  # neither the sign nor the digits
    power = jax.lax.bitcast_convert_type(bits & bits.dtype.type(exponent), wide)
    least = max(float(to.smallest_subnormal) / 2, float(within.tiny))
    return jnp.clip(power * (float(to.eps) / 2), least, float(within.max))
