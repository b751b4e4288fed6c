"""From gradient to direction: moments and their bias correction.

Moments live in float32 at least (float64 for float64 parameters), and their dtype is fixed
at ``init``. The second moment of a complex parameter is real. Directions have the dtype of
the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwd import _check, _dtypes, _leafwise, _rounding
from optwd._leafwise import Equation


def scale_by_adam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by bias-corrected first and second moments.

        m ← m + (1 − b1)(g − m)           m̂ = m/(1 − b1ᵗ)
        v ← v + (1 − b2)(|g|² − v)        v̂ = v/(1 − b2ᵗ)
        u = m̂ / (√(v̂ + eps_root) + eps)

    and with ``nesterov``, ``m̂ = b1·m/(1 − b1ᵗ⁺¹) + (1 − b1)·g/(1 − b1ᵗ)``.

    It stands first in a chain, or after what should enter the moments (clipping,
    `add_l2`). What comes later, such as `decay.linear`, is not rescaled.

    The bias correction is ``−expm1(t·log b)``, with the logarithm in double precision
    if ``b`` is a Python number. A traced ``b`` (``optax.inject_hyperparams``, ``vmap``)
    is known only to float32, and the direction is then within 1e-5 for ``b2 = 0.999``. In
    float32 ``|g|`` may be up to 1.8e19: beyond, ``g²`` overflows and the direction is 0
    from then on. Clip, or wrap the optimizer in ``optax.apply_if_finite``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, ≥ 0, in units of the gradient. With ``eps = 0`` a leaf that
        has never had a gradient has direction 0.
      eps_root: added inside the root, ≥ 0, in units of the gradient squared.
      mu_dtype: dtype of the first moment; None means float32 at least. bfloat16 is rounded
        up in a share of the steps, right on average, and costs up to 0.6% of the direction
        (root mean square).
      nu_dtype: dtype of the second moment, as ``mu_dtype``. bfloat16 costs 1.3% (white
        noise) to 2% (one gradient in five steps), and up to 9% in single steps. float16
        cannot hold squares of small gradients, and raises.
      nesterov: look one step ahead in the first moment (NAdam).

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> adam = scale_by_adam()
    >>> u, _ = adam.update(jnp.array([1e-3, -300.0]), adam.init(jnp.zeros(2)))
    >>> print(u.round(4))
    [ 1. -1.]

    Source: Kingma and Ba, arXiv 1412.6980, Algorithm 1; for ``nesterov``, Dozat,
    Incorporating Nesterov momentum into Adam, 2016, in Optax's form.
    """
    return scale_by(
        "scale_by_adam",
        _NADAM if nesterov else _ADAM,
        optax.ScaleByAdamState,
        *(b1, b2, eps, eps_root, mu_dtype, nu_dtype),
        more=_nesterov_share if nesterov else None,
    )


def scale_by_amsgrad(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam's direction over the largest second moment so far.

        m, v, m̂, v̂ as in `scale_by_adam`
        w ← max(w, v̂)
        u = m̂ / (√(w + eps_root) + eps)

    The maximum is of the bias-corrected moment, as in Optax. In torch it is of the raw
    one, which differs in the first ``1/(1 − b2)`` steps. For arguments and errors see
    `scale_by_adam`.

    Returns:
      A transformation with state `optax.ScaleByAmsgradState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> amsgrad = scale_by_amsgrad(b1=0.0)
    >>> _, state = amsgrad.update(jnp.array([10.0]), amsgrad.init(jnp.zeros(1)))
    >>> u, _ = amsgrad.update(jnp.array([1.0]), state)
    >>> print(u)  # the large gradient is not forgotten
    [0.1]

    Source: Reddi, Kale and Kumar, arXiv 1904.09237, Algorithm 2.
    """
    return scale_by(
        "scale_by_amsgrad",
        _AMSGRAD,
        optax.ScaleByAmsgradState,
        *(b1, b2, eps, eps_root, mu_dtype, nu_dtype),
    )


def trace(
    decay: ArrayLike, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Momentum: the sum of past gradients, each faded by ``decay`` per step.

        m ← g + decay·m
        u = m, and with ``nesterov`` u = g + decay·m

    `optax.trace` with the numerics of this package: the accumulator of a bfloat16 leaf is
    float32, and its dtype does not change between steps.

    Args:
      decay: what is left of the sum after a step, in [0, 1).
      nesterov: apply the momentum once more to the direction.
      accumulator_dtype: dtype of the sum; None means float32 at least.

    Returns:
      A transformation with state `optax.TraceState`; leaves of any shape.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> momentum = trace(0.5)
    >>> _, state = momentum.update(jnp.array([1.0]), momentum.init(jnp.zeros(1)))
    >>> print(momentum.update(jnp.array([1.0]), state)[0])
    [1.5]

    Source: Sutskever et al., ICML 2013; torch's form with ``dampening = 0``.
    """
    decay = _check.number("decay", decay, below=1.0)
    dtype = _dtypes.moment_dtype("accumulator_dtype", accumulator_dtype)
    return _leafwise.transformation(
        "trace",
        _NESTEROV_TRACE if nesterov else _TRACE,
        optax.TraceState,
        {"trace": _leafwise.moment(dtype)},
        lambda state: decay,
    )


class Moment(NamedTuple):
    """The scalars of one moment in a step.

        m ← b·m + (1 − b)·g = keep·m + (gain·g − back·m)

    For b > ½ that is m + (1 − b)(g − m), which keeps the digits of 1 − b, multiplied out,
    since g − m overflows at the edge of the dtype. For b ≤ ½ it would cancel, and is b·m +
    (1 − b)·g. `correction` is 1 − bᵗ.
    """

    keep: Any
    gain: Any
    back: Any
    correction: Any


class Scalars(NamedTuple):
    """What a step of moments needs; `more` is what only some equations do."""

    first: Moment
    second: Moment
    eps: Any
    eps_root: Any
    more: Any


def scale_by(
    name: str,
    equation: Equation,
    state_type: type[Any],
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    mu_dtype: Any,
    nu_dtype: Any,
    more: Callable[[Any, Any, Any], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that keeps a first moment `mu`, and squares named `nu…`."""
    b1 = _check.number("b1", b1, below=1.0)
    b2 = _check.number("b2", b2, below=1.0)
    eps, eps_root = _check.number("eps", eps), _check.number("eps_root", eps_root)
    first = _leafwise.moment(_dtypes.moment_dtype("mu_dtype", mu_dtype))
    nu_dtype = _dtypes.moment_dtype("nu_dtype", nu_dtype)
    if nu_dtype is not None and jnp.finfo(nu_dtype).nexp < 8:
        raise ValueError(
            f"nu_dtype={nu_dtype} cannot hold the square of a small gradient: 1e-4 would "
            "be 0. Use bfloat16, which has the range of float32."
        )
    square = _leafwise.moment(nu_dtype, real=True)
    squares = [name for name in state_type._fields if name.startswith("nu")]
    fields = {"mu": first} | dict.fromkeys(squares, square)

    def scalars(state: Any) -> Scalars:
        t = _leafwise.increment(state[0])
        other = None if more is None else more(b1, b2, state)
        return Scalars(moment(b1, t), moment(b2, t), eps, eps_root, other)

    return _leafwise.transformation(name, equation, state_type, fields, scalars)


def moment(b: Any, t: jax.Array) -> Moment:
    """The scalars of a moment that decays by `b`, in step t ≥ 1."""
    if isinstance(b, float):
        keep, back = (1.0, 1 - b) if b > 0.5 else (b, 0.0)
    else:
        keep, back = jnp.where(b > 0.5, 1, b), jnp.where(b > 0.5, 1 - b, 0)
    return Moment(keep, 1 - b, back, bias_correction(b, t))


def _nesterov_share(b1: Any, b2: Any, state: Any) -> Any:
    """Of the first moment in m̂, times its correction."""
    t = _leafwise.increment(state.count)
    return b1 * bias_correction(b1, t) / bias_correction(b1, _leafwise.increment(t))


def bias_correction(b: Any, t: jax.Array) -> jax.Array:
    """``1 − bᵗ`` to a few ulp, for every b in [0, 1) and every count t ≥ 1."""
    t = t.astype(jnp.result_type(float))
    if isinstance(b, float):
        return -jnp.expm1(t * log(b))
    b = _wide(b)  # the derivative is right at b = 0 too
    return jnp.where(b < 0.5, 1 - b**t, -jnp.expm1(t * log(jnp.maximum(b, 0.5))))


def log(b: Any) -> Any:
    """The natural logarithm, in double precision if `b` is a Python number."""
    if isinstance(b, float):
        return math.log(b) if b > 0.0 else -math.inf
    # 1 − b is exact, so this matches the factor that moves the moment
    return jnp.log1p(-(1 - _wide(b)))


def _wide(b: Any) -> jax.Array:
    b = jnp.asarray(b)
    return b.astype(_dtypes.at_least_float32(b.dtype))


def move(m: Any, g: Any, s: Moment) -> Any:
    """The moment after a step."""
    return s.keep * m + (s.gain * g - s.back * m)


def move_square(v: Any, g: Any, s: Moment) -> Any:
    """The moment of |g|² after a step; once that has overflowed it stays inf."""
    finite = jnp.minimum(v, jnp.finfo(v.dtype).max)  # not inf − inf
    return s.keep * v + (s.gain * square(g) - s.back * finite)


def square(g: Any) -> Any:
    """|g|²."""
    return g.real * g.real + g.imag * g.imag if jnp.iscomplexobj(g) else g * g


def root(v: Any, s: Scalars) -> Any:
    """√(v + eps_root) + eps, above 0 and with a finite derivative also at v = 0.

    There the root is that of the smallest normal number, 1e-19, which no v that counts can
    tell from 0.
    """
    return jnp.sqrt(v + (s.eps_root + jnp.finfo(v.dtype).tiny)) + s.eps


def next_moments(g, m, v, s):
    return move(m, g, s.first), move_square(v, g, s.second)


def _adam(g, m, v, s):
    v_hat = v / s.second.correction
    return m / (s.first.correction * root(v_hat, s))  # m / correction may overflow


def _nadam(g, m, v, s):
    ahead = s.more * m + s.first.gain * g
    return _adam(g, ahead, v, s)


def _amsgrad_moments(g, m, v, w, s):
    return *next_moments(g, m, v, s), w


def _amsgrad_maximum(g, m, v, w, s):
    return m, v, jnp.maximum(w, v / s.second.correction)


def _amsgrad(g, m, v, w, s):
    return m / (s.first.correction * root(w, s))


def _next_trace(g, m, decay):
    return (g + decay * m,)


def _trace(g, m, decay):
    return m


def _nesterov_trace(g, m, decay):
    return g + decay * m


_ADAM = Equation(_adam, next_moments)
_NADAM = Equation(_nadam, next_moments)
_AMSGRAD = Equation(_amsgrad, _amsgrad_moments, _amsgrad_maximum)
_TRACE = Equation(_trace, _next_trace, store=(_rounding.narrowed,))
_NESTEROV_TRACE = Equation(_nesterov_trace, _next_trace, store=(_rounding.narrowed,))
