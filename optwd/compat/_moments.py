"""Moments that only other frameworks have.

Their dtypes, domains and errors are those of `optwd.scale_by_adam`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwd import _check, _dtypes, _leafwise, _moments, _rounding
from optwd._leafwise import Equation
from optwd._moments import Scalars, next_moments, root


class NadamState(NamedTuple):
    """Adam's moments, and the product of momenta that corrects the bias of the first.

    Attributes:
      step: updates so far; int32 of shape ().
      mu: first moments; a tree like the parameters.
      nu: second moments; a tree like the parameters.
      mu_product: ``μ₁·…·μₜ``, of shape ().
    """

    step: jax.Array
    mu: Any
    nu: Any
    mu_product: Any = None


class AmsgradRawState(NamedTuple):
    """Adam's moments, and the largest second one as it is, without bias correction.

    Attributes:
      step: updates so far; int32 of shape ().
      mu: first moments; a tree like the parameters.
      nu: second moments; a tree like the parameters.
      nu_max_raw: the largest second moments; a tree like the parameters. It is not called
        ``nu_max``, which is the largest corrected one in `optax.ScaleByAmsgradState`.
    """

    step: jax.Array
    mu: Any
    nu: Any
    nu_max_raw: Any


class DampenedTraceState(NamedTuple):
    """The momentum, and the number of updates.

    Attributes:
      step: updates so far; int32 of shape ().
      trace: the sums; a tree like the parameters.
    """

    step: jax.Array
    trace: Any


def scale_by_adam_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with ε added to the raw root, as Keras and TensorFlow compute it.

        m, v as in `scale_by_adam`
        u = √(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√v + eps)

    This is `scale_by_adam` with ``eps/√(1 − b2ᵗ)`` for its eps, which in the first step is
    30 times larger for ``b2 = 0.999``. See there for the arguments.

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> adam = scale_by_adam_eps_hat(b2=0.99, eps=1.0)
    >>> print(adam.update(jnp.array([1.0]), adam.init(jnp.zeros(1)))[0])  # 0.1/(0.1 + 1)
    [0.0909]

    Source: Kingma and Ba, arXiv 1412.6980, the end of Section 2, where eps is ε̂.
    """
    return _moments.scale_by(
        "scale_by_adam_eps_hat",
        _ADAM_EPS_HAT,
        optax.ScaleByAdamState,
        *(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
    )


def scale_by_amsgrad_raw(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad as torch computes it: the maximum is of the raw second moment.

        m, v, m̂ as in `scale_by_adam`
        w ← max(w, v)
        u = m̂ / (√(w/(1 − b2ᵗ)) + eps)

    The corrected maximum w/(1 − b2ᵗ) falls with t even while w does not, so that a large
    gradient of the first steps is partly forgotten; `scale_by_amsgrad` does not forget it.
    See `scale_by_adam` for the arguments.

    Returns:
      A transformation with state `AmsgradRawState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> amsgrad = scale_by_amsgrad_raw(b1=0.0, b2=0.5)
    >>> _, state = amsgrad.update(jnp.array([10.0]), amsgrad.init(jnp.zeros(1)))
    >>> print(amsgrad.update(jnp.array([0.0]), state)[1].nu_max_raw)  # of 50, then of 25
    [50.]

    Source: torch's ``Adam(amsgrad=True)``, after Reddi, Kale and Kumar, arXiv 1904.09237.
    """
    return _moments.scale_by(
        "scale_by_amsgrad_raw",
        _AMSGRAD_RAW,
        AmsgradRawState,
        *(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
    )


def scale_by_amsgrad_raw_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad as Keras computes it: the raw maximum, and ε added to its raw root.

        m, v, w as in `scale_by_amsgrad_raw`
        u = √(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√w + eps)

    See `scale_by_adam` for the arguments.

    Returns:
      A transformation with state `AmsgradRawState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> amsgrad = scale_by_amsgrad_raw_eps_hat(b2=0.99, eps=1.0)
    >>> print(amsgrad.update(jnp.array([1.0]), amsgrad.init(jnp.zeros(1)))[0])
    [0.0909]

    Source: Keras's ``Adam(amsgrad=True)``.
    """
    return _moments.scale_by(
        "scale_by_amsgrad_raw_eps_hat",
        _AMSGRAD_RAW_EPS_HAT,
        AmsgradRawState,
        *(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
    )


def scale_by_radam_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rectified Adam as torch computes it, with ε added to the raw root.

        ρ∞ = 2/(1 − b2) − 1        ρ = ρ∞ − 2t·b2ᵗ/(1 − b2ᵗ)
        r = √((ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ))
        u = r·û where ρ > 5, else m/(1 − b1ᵗ)

    with m and û of `scale_by_adam_eps_hat`. The first steps are too few to estimate a
    variance from, so they are not divided by it; with ``b2`` up to 2/3 no step ever is. See
    `scale_by_adam` for the arguments.

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> radam = scale_by_radam_eps_hat()
    >>> print(radam.update(jnp.array([5.0]), radam.init(jnp.zeros(1)))[0])
    [5.]

    Source: Liu et al., arXiv 1908.03265, Algorithm 2, as torch's ``RAdam`` reads it.
    """
    return _moments.scale_by(
        "scale_by_radam_eps_hat",
        _RADAM,
        optax.ScaleByAdamState,
        *(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
        more=lambda b1, b2, state: _rectification(b2, _leafwise.increment(state.count)),
    )


def scale_by_nadam(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    momentum_decay: ArrayLike = 4e-3,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdam with the momentum schedule of its paper, as torch computes it.

        μₜ = b1·(1 − ½·0.96^(t·momentum_decay))
        m, v, v̂ as in `scale_by_adam`
        m̂ = μₜ₊₁·m/(1 − μ₁·…·μₜ₊₁) + (1 − μₜ)·g/(1 − μ₁·…·μₜ)
        u = m̂ / (√v̂ + eps)

    The momentum μₜ grows from half of b1 to b1, half of the way in about 4000 steps, where
    `scale_by_adam(nesterov=True)` has b1 from the start. See `scale_by_adam` for the other
    arguments.

    Args:
      momentum_decay: ≥ 0, how fast the momentum grows; with 0 it stays at half of b1.

    Returns:
      A transformation with state `NadamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> nadam = scale_by_nadam(momentum_decay=0.0)  # 0.45·0.1/(1 − 0.45²) + 0.55/0.55
    >>> print(nadam.update(jnp.array([1.0]), nadam.init(jnp.zeros(1)))[0])
    [1.0564]

    Source: Dozat, Incorporating Nesterov momentum into Adam, 2016, as torch reads it.
    """
    psi = _check.number("momentum_decay", momentum_decay)

    def momentum(b1: Any, t: jax.Array) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (t.astype(float) * psi))

    def product(b1: Any, state: Any) -> jax.Array:
        now = momentum(b1, _leafwise.increment(state.step))
        return (state.mu_product * now).astype(state.mu_product.dtype)

    def shares(b1: Any, b2: Any, state: Any) -> tuple[Any, Any]:
        del b2
        t = _leafwise.increment(state.step)
        now, ahead = momentum(b1, t), momentum(b1, _leafwise.increment(t))
        so_far = product(b1, state)
        return ahead / (1 - so_far * ahead), (1 - now) / (1 - so_far)

    inner = _moments.scale_by(
        "scale_by_nadam",
        _NADAM,
        NadamState,
        *(b1, b2, eps, 0.0, mu_dtype, nu_dtype),
        more=shares,
    )

    def init(params: Any) -> NadamState:
        state: Any = inner.init(params)
        return state._replace(mu_product=jnp.ones([], float))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new: Any
        updates, new = inner.update(updates, state, params, **extra)
        return updates, new._replace(mu_product=product(b1, state))

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_nadam_one_correction(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdam as AlgoPerf and init2winit compute it, with the bias correction of Adam.

        m, v, v̂ as in `scale_by_adam`
        m̂ = (b1·m + (1 − b1)·g)/(1 − b1ᵗ)
        u = m̂ / (√(v̂ + eps_root) + eps)

    `scale_by_adam(nesterov=True)` divides b1·m by ``1 − b1ᵗ⁺¹``: its first step is 1, where
    this one's is ``1 + b1``. See `scale_by_adam` for the arguments.

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> nadam = scale_by_nadam_one_correction()
    >>> print(nadam.update(jnp.array([3.0]), nadam.init(jnp.zeros(1)))[0])
    [1.9]

    Source: Choi et al., arXiv 1910.05446, Table 1, as in google/init2winit,
    ``optimizer_lib/kitchen_sink/_src/transform.py``.
    """
    return _moments.scale_by(
        "scale_by_nadam_one_correction",
        _NADAM_ONE_CORRECTION,
        optax.ScaleByAdamState,
        *(b1, b2, eps, eps_root, mu_dtype, nu_dtype),
        more=lambda b1, b2, state: b1,
    )


def trace_dampened(
    momentum: ArrayLike, dampening: ArrayLike, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Momentum to which every gradient but the first contributes less.

        m ← (1 − dampening)·g + momentum·m, and m = g in the first step
        u = m

    With ``dampening = 0`` this is `optwd.trace`.

    Args:
      momentum: decay of the sum, in [0, 1).
      dampening: in [0, 1]; with ``dampening = momentum`` the sum is an average.
      accumulator_dtype: dtype in which the sum is kept; None is float32 at least.

    Returns:
      A transformation with state `DampenedTraceState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> average = trace_dampened(0.5, 0.5)
    >>> _, state = average.update(jnp.array([1.0]), average.init(jnp.zeros(1)))
    >>> print(average.update(jnp.array([1.0]), state)[0])
    [1.]

    Source: torch's ``SGD(dampening=…)``.
    """
    momentum = _check.number("momentum", momentum, below=1.0)
    dampening = _check.number("dampening", dampening, below=1.0, closed=True)
    dtype = _dtypes.moment_dtype("accumulator_dtype", accumulator_dtype)
    return _leafwise.transformation(
        "trace_dampened",
        _DAMPENED_TRACE,
        DampenedTraceState,
        {"trace": _leafwise.moment(dtype)},
        lambda state: (momentum, jnp.where(state.step == 0, 1.0, 1 - dampening)),
    )


def _rectification(b2: Any, t: jax.Array) -> jax.Array:
    """The r of `scale_by_radam_eps_hat`, and 0 where ρ ≤ 5.

    ρ∞ − 2t·b2ᵗ/(1 − b2ᵗ) is about 6 from the difference of two terms of about 2000. With
    y = −½·log b2 it equals 1 − κ(y) + t·κ(ty), where κ(y) = 1 + 1/y − coth y is in (0, 1).
    """
    y = -_moments.log(b2) / 2
    t = t.astype(jnp.result_type(float))
    rho, end = 1 - _kappa(y) + t * _kappa(t * y), (1 + b2) / (1 - b2)
    square = (rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho)
    return jnp.where(rho > 5, jnp.sqrt(jnp.where(rho > 5, square, 1)), 0)


def _kappa(y: Any) -> jax.Array:
    """``1 + 1/y − coth y``, by its series where the two would cancel."""
    y = jnp.asarray(y, jnp.result_type(float))
    small = y < 0.2  # the series is then good to 5e-14, the difference to some ulp
    z = jnp.where(small, y, 0.2)
    series = 1 - z * (1 / 3 - z**2 * (1 / 45 - z**2 * (2 / 945 - z**2 * (
        1 / 4725 - z**2 * 2 / 93555))))  # fmt: skip
    y = jnp.where(small, 0.2, y)
    return jnp.where(small, series, 1 / y - 2 / jnp.expm1(2 * y))


def _adam_eps_hat(g, m, v, s):
    return m / (s.first.correction * root(v / s.second.correction, _bare(s)))


def _amsgrad_moments(g, m, v, w, s):
    return *next_moments(g, m, v, s), w


def _raw_maximum(g, m, v, w, s):
    return m, v, jnp.maximum(w, v)


def _amsgrad_raw(g, m, v, w, s):
    return m / (s.first.correction * root(w / s.second.correction, s))


def _amsgrad_raw_eps_hat(g, m, v, w, s):
    return _adam_eps_hat(g, m, w, s)


def _radam(g, m, v, s):
    return jnp.where(s.more > 0, s.more * _adam_eps_hat(g, m, v, s), m / s.first.correction)


def _nadam(g, m, v, s):
    of_m, of_g = s.more
    below = root(v / s.second.correction, s)
    return of_m * (m / below) + of_g * (g / below)  # the sum of both may overflow


def _nadam_one_correction(g, m, v, s):
    ahead = s.more * m + s.first.gain * g
    return ahead / (s.first.correction * root(v / s.second.correction, s))


def _next_dampened_trace(g, m, s):
    momentum, share = s
    return (share * g + momentum * m,)


def _dampened_trace(g, m, s):
    return m


def _bare(s: Scalars) -> Scalars:
    """ε added to the raw root, in the terms of the corrected one."""
    return s._replace(eps=s.eps / jnp.sqrt(s.second.correction))


_ADAM_EPS_HAT = Equation(_adam_eps_hat, next_moments)
_AMSGRAD_RAW = Equation(_amsgrad_raw, _amsgrad_moments, _raw_maximum)
_AMSGRAD_RAW_EPS_HAT = Equation(_amsgrad_raw_eps_hat, _amsgrad_moments, _raw_maximum)
_RADAM = Equation(_radam, next_moments)
_NADAM = Equation(_nadam, next_moments)
_NADAM_ONE_CORRECTION = Equation(_nadam_one_correction, next_moments)
_DAMPENED_TRACE = Equation(
    _dampened_trace, _next_dampened_trace, store=(_rounding.narrowed,)
)
