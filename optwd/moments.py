"""From gradient to direction: moments and their bias correction.

All of these compute in at least float32 and return the dtype that came in. The moments
live in float32 at least (float64 for float64 parameters) and their dtype is fixed at
``init``. The second moment of a complex parameter is real.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from optwd import _tree


class NadamState(NamedTuple):
    """Adam's moments, and the product of momenta that corrects the first.

    Attributes:
      step: updates so far; int32 of shape ().
      mu: first moments; a tree like the parameters.
      nu: second moments; a tree like the parameters.
      mu_product: ``μ₁·…·μₜ``, of shape ().
    """

    step: jax.Array
    mu: Any
    nu: Any
    mu_product: jax.Array


class DampenedTraceState(NamedTuple):
    """The momentum, and how often it has moved.

    Attributes:
      step: updates so far; int32 of shape ().
      trace: the sums; a tree like the parameters.
    """

    step: jax.Array
    trace: Any


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

    Place in the chain: first, or after what should enter the moments (clipping,
    `add_l2`). What stands behind it, such as `decay.linear`, is not rescaled.

    The bias correction is ``−expm1(t·log b)``, with the logarithm in double precision
    when ``b`` is a Python number. A traced ``b`` (``optax.inject_hyperparams``, ``vmap``)
    is known to float32 only: the direction is then within 1e-5 for ``b2 = 0.999``. In
    float32, ``|g|`` up to 1.8e19 is in the domain: beyond, ``g²`` overflows and the
    direction is 0 from then on; clip, or wrap in ``optax.apply_if_finite``.

    Args:
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second moment, in [0, 1).
      eps: added to the root, ≥ 0, in units of the gradient. With ``eps = 0`` a leaf that
        never saw a gradient has direction 0.
      eps_root: added inside the root, ≥ 0, in units of the gradient squared.
      mu_dtype: dtype in which the first moment is kept; None is float32 at least. In
        bfloat16 it is rounded up in a share of the steps that is right on average; the
        direction is then off by up to 0.6% (root mean square).
      nu_dtype: the same for the second moment, with 1.5%. Rounded to nearest it would not
        move once a step is below 0.2% of it: off by 16% to 97%.
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
    Incorporating Nesterov momentum into Adam, 2016, as Optax reads it.
    """
    b1, b2, eps, eps_root = _hyperparameters(b1, b2, eps, eps_root)
    mu_dtype = _tree.moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = _tree.moment_dtype("nu_dtype", nu_dtype)

    def init(params: Any) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=_tree.zeros_like(params, mu_dtype),
            nu=_tree.zeros_like(params, nu_dtype, real=True),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        t = _tree.increment(state.count)
        scalars = (1 - b1, 1 - b2, bias_correction(b1, t), bias_correction(b2, t))
        chance = _tree.chance(t, mu_dtype, nu_dtype)
        equation = _adam
        if nesterov:
            scalars += (bias_correction(b1, _tree.increment(t)),)
            equation = _nadam
        u, mu, nu = _tree.map_leaves(
            lambda *leaf: _tree.Call(equation, leaf, (eps, eps_root, *scalars), chance),
            updates,
            state={"mu": state.mu, "nu": state.nu},
        )
        return u, optax.ScaleByAdamState(count=t, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


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

    The maximum is of the bias-corrected moment, as in Optax; torch takes it of the raw
    one, which differs in the first ``1/(1 − b2)`` steps.

    Place in the chain, arguments and errors: see `scale_by_adam`.

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
    b1, b2, eps, eps_root = _hyperparameters(b1, b2, eps, eps_root)
    mu_dtype = _tree.moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = _tree.moment_dtype("nu_dtype", nu_dtype)

    def init(params: Any) -> optax.ScaleByAmsgradState:
        return optax.ScaleByAmsgradState(
            count=jnp.zeros([], jnp.int32),
            mu=_tree.zeros_like(params, mu_dtype),
            nu=_tree.zeros_like(params, nu_dtype, real=True),
            nu_max=_tree.zeros_like(params, nu_dtype, real=True),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        t = _tree.increment(state.count)
        scalars = (1 - b1, 1 - b2, bias_correction(b1, t), bias_correction(b2, t))
        chance = _tree.chance(t, mu_dtype, nu_dtype)
        u, mu, nu, nu_max = _tree.map_leaves(
            lambda *leaf: _tree.Call(_amsgrad, leaf, (eps, eps_root, *scalars), chance),
            updates,
            state={"mu": state.mu, "nu": state.nu, "nu_max": state.nu_max},
        )
        return u, optax.ScaleByAmsgradState(count=t, mu=mu, nu=nu, nu_max=nu_max)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_adam_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam with ε beside the raw root, as Keras and TensorFlow compute it.

        m, v as in `scale_by_adam`
        u = √(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√v + eps)

    In the terms of `scale_by_adam`, its eps is ``eps/√(1 − b2ᵗ)`` here: 30 times larger in
    the first step for ``b2 = 0.999``.

    Place in the chain, arguments and errors: see `scale_by_adam`.

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> adam = scale_by_adam_eps_hat(b2=0.99, eps=1.0)
    >>> print(adam.update(jnp.array([1.0]), adam.init(jnp.zeros(1)))[0])  # 0.1/(0.1 + 1)
    [0.0909]

    Source: Kingma and Ba, arXiv 1412.6980, the end of Section 2, where eps is ε̂.
    """
    return _scale_by(_adam_eps_hat, b1, b2, eps, mu_dtype, nu_dtype)


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

    What corrects the maximum falls with t even while the maximum stays, so a large
    gradient of the first steps is partly forgotten; by `scale_by_amsgrad` it is not.

    Place in the chain, arguments and errors: see `scale_by_adam`.

    Returns:
      A transformation with state `optax.ScaleByAmsgradState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> amsgrad = scale_by_amsgrad_raw(b1=0.0, b2=0.5)
    >>> _, state = amsgrad.update(jnp.array([10.0]), amsgrad.init(jnp.zeros(1)))
    >>> print(amsgrad.update(jnp.array([0.0]), state)[1].nu_max)  # of 50, then of 25
    [50.]

    Source: torch's ``Adam(amsgrad=True)``, after Reddi, Kale and Kumar, arXiv 1904.09237.
    """
    return _scale_by(_amsgrad_raw, b1, b2, eps, mu_dtype, nu_dtype)


def scale_by_amsgrad_raw_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-7,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """AMSGrad as Keras computes it: the raw maximum, and ε beside its raw root.

        m, v, w as in `scale_by_amsgrad_raw`
        u = √(1 − b2ᵗ)/(1 − b1ᵗ) · m/(√w + eps)

    Place in the chain, arguments and errors: see `scale_by_adam`.

    Returns:
      A transformation with state `optax.ScaleByAmsgradState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> amsgrad = scale_by_amsgrad_raw_eps_hat(b2=0.99, eps=1.0)
    >>> print(amsgrad.update(jnp.array([1.0]), amsgrad.init(jnp.zeros(1)))[0])
    [0.0909]

    Source: Keras's ``Adam(amsgrad=True)``.
    """
    return _scale_by(_amsgrad_raw_eps_hat, b1, b2, eps, mu_dtype, nu_dtype)


def scale_by_radam_eps_hat(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    mu_dtype: DTypeLike | None = None,
    *,
    nu_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Rectified Adam as torch computes it, with ε beside the raw root.

        ρ∞ = 2/(1 − b2) − 1        ρ = ρ∞ − 2t·b2ᵗ/(1 − b2ᵗ)
        r = √((ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ))
        u = r·û where ρ > 5, else m/(1 − b1ᵗ)

    with m and û of `scale_by_adam_eps_hat`. The first steps, too few to estimate a
    variance from, are not divided by one.

    Place in the chain, arguments and errors: see `scale_by_adam`. With ``b2`` up to 2/3 no
    step is ever rectified.

    Returns:
      A transformation with state `optax.ScaleByAdamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> radam = scale_by_radam_eps_hat()
    >>> print(radam.update(jnp.array([5.0]), radam.init(jnp.zeros(1)))[0])
    [5.]

    Source: Liu et al., arXiv 1908.03265, Algorithm 2, as torch's ``RAdam`` reads it.
    """
    return _scale_by(_radam, b1, b2, eps, mu_dtype, nu_dtype, _rectification)


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

    The momentum starts at half of b1 and grows to it, half of the way in about 4000 steps.
    `scale_by_adam(nesterov=True)` keeps it at b1.

    Place in the chain, other arguments and errors: see `scale_by_adam`.

    Args:
      momentum_decay: ≥ 0, how fast the momentum grows; at 0 it stays at half of b1.

    Returns:
      A transformation with state `NadamState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> nadam = scale_by_nadam(momentum_decay=0.0)  # 0.45·0.1/(1 − 0.45²) + 0.55/0.55
    >>> print(nadam.update(jnp.array([1.0]), nadam.init(jnp.zeros(1)))[0])
    [1.0564]

    Source: Dozat, Incorporating Nesterov momentum into Adam, 2016, as torch reads it.
    """
    b1, b2, eps, _ = _hyperparameters(b1, b2, eps, 0.0)
    psi = _tree.number("momentum_decay", momentum_decay)
    mu_dtype = _tree.moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = _tree.moment_dtype("nu_dtype", nu_dtype)

    def init(params: Any) -> NadamState:
        return NadamState(
            step=jnp.zeros([], jnp.int32),
            mu=_tree.zeros_like(params, mu_dtype),
            nu=_tree.zeros_like(params, nu_dtype, real=True),
            mu_product=jnp.ones([], float),
        )

    def momentum(t: jax.Array) -> jax.Array:
        return b1 * (1 - 0.5 * 0.96 ** (t.astype(float) * psi))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        t = _tree.increment(state.step)
        now, ahead = momentum(t), momentum(_tree.increment(t))
        product = (state.mu_product * now).astype(state.mu_product.dtype)
        of_m, of_g = ahead / (1 - product * ahead), (1 - now) / (1 - product)
        scalars = (eps, 1 - b1, 1 - b2, bias_correction(b2, t), of_m, of_g)
        chance = _tree.chance(t, mu_dtype, nu_dtype)
        u, mu, nu = _tree.map_leaves(
            lambda *leaf: _tree.Call(_nadam_ahead, leaf, scalars, chance),
            updates,
            state={"mu": state.mu, "nu": state.nu},
        )
        return u, NadamState(step=t, mu=mu, nu=nu, mu_product=product)

    return optax.GradientTransformationExtraArgs(init, update)


def trace(
    momentum: ArrayLike, nesterov: bool = False, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Momentum: the sum of past gradients, each fading by ``momentum`` a step.

        m ← g + momentum·m
        u = m, and with ``nesterov`` u = g + momentum·m

    `optax.trace` with the numerics of this package: the accumulator of a bfloat16 leaf is
    float32, and its dtype does not change between steps.

    Place in the chain: first, or behind what should enter the momentum (`add_l2`).

    Args:
      momentum: fading, in [0, 1).
      nesterov: apply the momentum once more to the direction.
      accumulator_dtype: dtype in which the sum is kept; None is float32 at least.

    Returns:
      A transformation with state `optax.TraceState`; leaves of any shape.

    Raises:
      ValueError: a hyperparameter outside its domain; gradients that do not fit the state.

    >>> import jax.numpy as jnp
    >>> momentum = trace(0.5)
    >>> _, state = momentum.update(jnp.array([1.0]), momentum.init(jnp.zeros(1)))
    >>> print(momentum.update(jnp.array([1.0]), state)[0])
    [1.5]

    Source: Sutskever et al., ICML 2013; the form of torch with ``dampening = 0``.
    """
    momentum = _tree.number("momentum", momentum, below=1.0)
    accumulator_dtype = _tree.moment_dtype("accumulator_dtype", accumulator_dtype)
    equation = _nesterov_trace if nesterov else _trace

    def init(params: Any) -> optax.TraceState:
        return optax.TraceState(trace=_tree.zeros_like(params, accumulator_dtype))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        u, new = _tree.map_leaves(
            lambda g, m: _tree.Call(equation, (g, m), (momentum,)),
            updates,
            state={"trace": state.trace},
        )
        return u, optax.TraceState(trace=new)

    return optax.GradientTransformationExtraArgs(init, update)


def trace_dampened(
    momentum: ArrayLike, dampening: ArrayLike, accumulator_dtype: DTypeLike | None = None
) -> optax.GradientTransformationExtraArgs:
    """Momentum in which every gradient but the first counts for less.

        m ← (1 − dampening)·g + momentum·m, and m = g in the first step
        u = m

    Place in the chain, other arguments and errors: see `trace`, which this is with
    ``dampening = 0``.

    Args:
      dampening: in [0, 1]; with ``dampening = momentum`` the sum is an average.

    Returns:
      A transformation with state `DampenedTraceState`; leaves of any shape.

    >>> import jax.numpy as jnp
    >>> average = trace_dampened(0.5, 0.5)
    >>> _, state = average.update(jnp.array([1.0]), average.init(jnp.zeros(1)))
    >>> print(average.update(jnp.array([1.0]), state)[0])
    [1.]

    Source: torch's ``SGD(dampening=…)``.
    """
    momentum = _tree.number("momentum", momentum, below=1.0)
    dampening = _tree.number("dampening", dampening, below=1.0, closed=True)
    accumulator_dtype = _tree.moment_dtype("accumulator_dtype", accumulator_dtype)

    def init(params: Any) -> DampenedTraceState:
        return DampenedTraceState(
            step=jnp.zeros([], jnp.int32),
            trace=_tree.zeros_like(params, accumulator_dtype),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        share = jnp.where(state.step == 0, 1.0, 1 - dampening)
        u, new = _tree.map_leaves(
            lambda g, m: _tree.Call(_dampened_trace, (g, m), (momentum, share)),
            updates,
            state={"trace": state.trace},
        )
        return u, DampenedTraceState(step=_tree.increment(state.step), trace=new)

    return optax.GradientTransformationExtraArgs(init, update)


def bias_correction(b: Any, t: jax.Array) -> jax.Array:
    """``1 − bᵗ`` to a few ulp, for every b in [0, 1) and every count t ≥ 1."""
    return -jnp.expm1(t.astype(jnp.result_type(float)) * _log(b))


def _log(b: Any) -> Any:
    if isinstance(b, float):
        return math.log(b) if b > 0.0 else -math.inf
    b = jnp.asarray(b)  # 1 − b is exact, so this matches the factor that moves the moment
    return jnp.log1p(-(1 - b.astype(_tree.at_least_float32(b.dtype))))


def _rectification(b2: Any, t: jax.Array) -> tuple[jax.Array]:
    """The r of `scale_by_radam_eps_hat`, and 0 where ρ ≤ 5.

    ρ∞ − 2t·b2ᵗ/(1 − b2ᵗ) is about 6 from the difference of two terms of about 2000. With
    y = −½·log b2 it equals 1 − κ(y) + t·κ(ty), where κ(y) = 1 + 1/y − coth y is in (0, 1).
    """
    y = -_log(b2) / 2
    t = t.astype(jnp.result_type(float))
    rho, end = 1 - _kappa(y) + t * _kappa(t * y), (1 + b2) / (1 - b2)
    square = (rho - 4) * (rho - 2) * end / ((end - 4) * (end - 2) * rho)
    return (jnp.where(rho > 5, jnp.sqrt(jnp.where(rho > 5, square, 1)), 0),)


def _kappa(y: Any) -> jax.Array:
    """``1 + 1/y − coth y``, by its series where the two would cancel."""
    y = jnp.asarray(y, jnp.result_type(float))
    small = y < 0.2  # the series is then good to 5e-14, the difference to some ulp
    z = jnp.where(small, y, 0.2)
    series = 1 - z * (1 / 3 - z**2 * (1 / 45 - z**2 * (2 / 945 - z**2 * (
        1 / 4725 - z**2 * 2 / 93555))))  # fmt: skip
    y = jnp.where(small, 0.2, y)
    return jnp.where(small, series, 1 / y - 2 / jnp.expm1(2 * y))


def _scale_by(
    equation: Callable[..., Any],
    b1: Any,
    b2: Any,
    eps: Any,
    mu_dtype: Any,
    nu_dtype: Any,
    more: Callable[[Any, jax.Array], tuple[Any, ...]] = lambda b2, t: (),
) -> optax.GradientTransformationExtraArgs:
    """`u, *moments ← equation(g, *moments, eps, *scalars)`; 1 − b and 1 − bᵗ first."""
    b1, b2, eps, _ = _hyperparameters(b1, b2, eps, 0.0)
    mu_dtype = _tree.moment_dtype("mu_dtype", mu_dtype)
    nu_dtype = _tree.moment_dtype("nu_dtype", nu_dtype)
    maximum = equation in (_amsgrad_raw, _amsgrad_raw_eps_hat)
    form = optax.ScaleByAmsgradState if maximum else optax.ScaleByAdamState

    def init(params: Any) -> Any:
        squares = [_tree.zeros_like(params, nu_dtype, real=True) for _ in form._fields[2:]]
        return form(jnp.zeros([], jnp.int32), _tree.zeros_like(params, mu_dtype), *squares)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        del params, extra
        moments = state._asdict()
        t = _tree.increment(moments.pop("count"))
        scalars = (eps, 1 - b1, 1 - b2, bias_correction(b1, t), bias_correction(b2, t))
        scalars += more(b2, t)
        chance = _tree.chance(t, mu_dtype, nu_dtype)
        u, *new = _tree.map_leaves(
            lambda *leaf: _tree.Call(equation, leaf, scalars, chance),
            updates,
            state=moments,
        )
        return u, form(t, *new)

    return optax.GradientTransformationExtraArgs(init, update)


def _hyperparameters(b1: Any, b2: Any, eps: Any, eps_root: Any) -> tuple[Any, ...]:
    return (
        _tree.number("b1", b1, below=1.0),
        _tree.number("b2", b2, below=1.0),
        _tree.number("eps", eps),
        _tree.number("eps_root", eps_root),
    )


def _adam(keep, g, m, v, eps, eps_root, a1, a2, c1, c2):  # a = 1 − b, c = 1 − bᵗ
    m, v = keep(_move(m, g, a1), _move_square(v, g, a2))
    return m / (c1 * _root(v / c2, eps, eps_root)), m, v  # m / c1 may overflow


def _nadam(keep, g, m, v, eps, eps_root, a1, a2, c1, c2, c1_next):
    m, v = keep(_move(m, g, a1), _move_square(v, g, a2))
    ahead = (1 - a1) * c1 / c1_next * m + a1 * g
    return ahead / (c1 * _root(v / c2, eps, eps_root)), m, v


def _amsgrad(keep, g, m, v, w, eps, eps_root, a1, a2, c1, c2):
    m, v = keep(_move(m, g, a1), _move_square(v, g, a2))
    *_, w = keep(m, v, jnp.maximum(w, v / c2))  # of v as it is kept, as u is of w
    return m / (c1 * _root(w, eps, eps_root)), m, v, w


def _adam_eps_hat(keep, g, m, v, eps, a1, a2, c1, c2):
    return _adam(keep, g, m, v, eps / jnp.sqrt(c2), 0.0, a1, a2, c1, c2)


def _amsgrad_raw(keep, g, m, v, w, eps, a1, a2, c1, c2):
    m, v = keep(_move(m, g, a1), _move_square(v, g, a2))
    *_, w = keep(m, v, jnp.maximum(w, v))
    return m / (c1 * _root(w / c2, eps, 0.0)), m, v, w


def _amsgrad_raw_eps_hat(keep, g, m, v, w, eps, a1, a2, c1, c2):
    return _amsgrad_raw(keep, g, m, v, w, eps / jnp.sqrt(c2), a1, a2, c1, c2)


def _radam(keep, g, m, v, eps, a1, a2, c1, c2, r):
    u, m, v = _adam_eps_hat(keep, g, m, v, eps, a1, a2, c1, c2)
    return jnp.where(r > 0, r * u, m / c1), m, v


def _nadam_ahead(keep, g, m, v, eps, a1, a2, c2, of_m, of_g):
    m, v = keep(_move(m, g, a1), _move_square(v, g, a2))
    return (of_m * m + of_g * g) / _root(v / c2, eps, 0.0), m, v


def _trace(g, m, momentum):
    m = g + momentum * m
    return m, m


def _nesterov_trace(g, m, momentum):
    m = g + momentum * m
    return g + momentum * m, m


def _dampened_trace(g, m, momentum, share):
    m = share * g + momentum * m
    return m, m


def _move(m, g, a):
    """M + a(g − m), multiplied out: g − m overflows at the edge of the dtype."""
    return m + (a * g - a * m)


def _move_square(v, g, a):
    """The same towards |g|². Once that has overflowed, v stays inf: not inf − inf."""
    square = g.real * g.real + g.imag * g.imag if jnp.iscomplexobj(g) else g * g
    return v + a * (square - jnp.minimum(v, jnp.finfo(v.dtype).max))


def _root(v, eps, eps_root):
    """√(v + eps_root) + eps, above 0 and with a finite derivative also at v = 0.

    There the root is that of the least normal number, 1e-19, which no v that counts can
    tell from 0.
    """
    return jnp.sqrt(v + (eps_root + jnp.finfo(v.dtype).tiny)) + eps
