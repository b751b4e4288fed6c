"""Rounding to a narrower dtype: to nearest, or up or down so that the mean is exact."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# x, the dtype in which it is kept, and what its chance is drawn from
Store = Callable[[Any, Any, Any], jax.Array]
BITS = 32  # of a chance, an unsigned integer: chance / 2³² is in [0, 1)


def nearest(x: jax.Array, dtype: Any, chance: Any = None) -> jax.Array:
    """`x` rounded to the nearest number of that dtype, returned in its own.

    XLA may drop a cast down and up. It does not drop `reduce_precision`, which however
    takes subnormals for 0: those of float16 are weights like any other.
    """
    del chance
    if jnp.iscomplexobj(x):
        return jax.lax.complex(nearest(x.real, dtype), nearest(x.imag, dtype))
    to = jnp.finfo(dtype)
    normal = jax.lax.reduce_precision(x, exponent_bits=to.nexp, mantissa_bits=to.nmant)
    quantum = float(to.smallest_subnormal)
    if quantum < jnp.finfo(x.dtype).tiny:
        return normal
    return jnp.where(jnp.abs(x) < float(to.tiny), jnp.round(x / quantum) * quantum, normal)


def narrowed(x: jax.Array, dtype: Any, chance: Any = None) -> jax.Array:
    """As `nearest`, but unchanged where `dtype` is no narrower.

    There `reduce_precision` would only make XLA compute `x` once more for each use.
    """
    same = jnp.finfo(dtype).nmant >= jnp.finfo(x.dtype).nmant
    return x if same else nearest(x, dtype, chance)


def as_applied(x: Any, dtype: Any, chance: Any = None) -> jax.Array:
    """A new weight, or a weight and its update, to nearest.

    Written as in `optax.apply_updates`: what is one expression can be one pass over memory.
    """
    if not isinstance(x, tuple):
        return nearest(x, dtype, chance)
    weight, update = (y.astype(dtype) for y in x)
    return nearest((weight + update).astype(x[0].dtype), dtype)


def by_step(x: jax.Array, dtype: Any, step: jax.Array | None) -> jax.Array:
    """`x` in `dtype`: below float32 by the chance of the step, to nearest if there is none.

    So a state that moves by less than its spacing moves all the same.
    """
    if step is None or jnp.finfo(dtype).bits >= 32:
        return x.astype(dtype)
    return by_chance(x.astype(jnp.float32), dtype, for_step(step)).astype(dtype)


def by_element(x: tuple[jax.Array, jax.Array], dtype: Any, words: jax.Array) -> jax.Array:
    """A `two_sum` in `dtype`, every element by a chance of its own."""
    total, lost = x
    chance = for_elements(words, total.shape)
    # First to float32, in which it may not fit either: unbiased twice is unbiased.
    beyond = jnp.nextafter(total, jnp.where(lost > 0, jnp.inf, -jnp.inf))
    share = hashed(chance).astype(total.dtype) * 2.0**-BITS
    total = jnp.where(share * jnp.abs(beyond - total) < jnp.abs(lost), beyond, total)
    return by_chance(total, dtype, chance).astype(dtype)


def two_sum(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum, and what rounding takes from it (Knuth, exact)."""
    total = x + y
    moved = total - x
    return total, (x - (total - moved)) + (y - moved)


def by_chance(x: jax.Array, dtype: Any, chance: jax.Array) -> jax.Array:
    """One of the two neighbours of a float32 in a narrower dtype, returned in float32.

    The nearer it is, the likelier. On the bits of a float32 that is one addition: of a
    random number below the last bit that stays, before the bits after it are cut off. It
    holds for every sign, exponent and carry.
    """
    to = jnp.finfo(dtype)
    cut = jnp.finfo(x.dtype).nmant - to.nmant
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = (bits + (chance >> (BITS - cut))) & jnp.uint32(2**BITS - 2**cut)
    result = jax.lax.bitcast_convert_type(bits, x.dtype)
    if (quantum := float(to.smallest_subnormal)) >= jnp.finfo(x.dtype).tiny:  # float16
        below = jnp.floor(x / quantum)
        up = (chance >> 8).astype(x.dtype) * 2.0**-24 < x / quantum - below
        result = jnp.where(jnp.abs(x) < float(to.tiny), (below + up) * quantum, result)
    return jnp.where(jnp.isnan(x), x, result)  # whose bits may be all ones


def for_step(step: jax.Array) -> jax.Array:
    """One chance per step: multiples of the golden ratio, evenly spread over time."""
    return step.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)


def key(seed: Any) -> jax.Array:
    """Two words that belong to the seed, whichever generator JAX is configured to use."""
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def words(key: jax.Array, step: jax.Array, leaves: int) -> jax.Array:
    """Two random words per leaf at this step, of shape (leaves, 2), by threefry."""
    at_step = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), step)
    return jax.random.bits(at_step, (leaves, 2), jnp.uint32)


def for_elements(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One chance per element of a leaf: a hash of its position and the two words.

    Threefry for each element would cost more than the rest of the step. The position is
    known wherever the element is, so a sharded leaf needs no communication. The constants
    are those of ``lowbias32`` (Wellons, Prospecting for hash functions, 2018).
    """
    x, stride = words[0], 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        x = x + along * jnp.uint32(stride % 2**BITS)
        stride *= shape[axis]
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) + words[1]
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)  # its upper half is the random one


def hashed(chance: jax.Array) -> jax.Array:
    """Another chance, as good as independent of this one."""
    x = (chance ^ (chance >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
