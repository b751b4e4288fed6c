"""What takes the norm of every matrix: `to_norm`, `scale_by_weight_norm`, `stacked`.

- norms of weights from 1e-37 to 1e38, of one number, in stacks, complex, float64;
- to_norm: nothing with a pull of 0, exactly the sphere with 1 after 10 000 steps, also in
  bfloat16 with compensated rounding; matrices at 0 are left alone;
- recipes against float64 references and Optax: AdamH and MuonH as Levanter has them, LARS,
  LAMB, AdamWN, nGPT's unit rows;
- with `stacked`, each layer of a stack gets what it gets alone;
- constrained comes down from any start, and stays there;
- boxes of Flax with partition specs, in linen and nnx; Orbax;
- bad input raises, with the path, the value and the fix;
- in training (slow): AdamH keeps every norm of the digits network and of the transformer of
  `train_sharded` within 1e-6, and learns; a run goes over to it from AdamW.

That they are right on sharded matrices is in test_sharding.py, in two processes in
test_train_sharded.py, and what they read and write in test_accelerators.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import _measure, decay, masks
from tests import reference
from tests.helpers import cases

STEPS = 100
RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 3)) / 3
GRADIENTS = RNG.normal(size=(STEPS, 4, 3))
SCALES = np.array([0.1, 1.0, 10.0])  # of the layers of a stack
STACK = START * SCALES[:, None, None]
OF_STACK = RNG.normal(size=(STEPS, 3, 4, 3))
QUINTIC = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]


def path_of(optimizer, params, gradients):
    """The parameters after each step of a finished optimizer."""

    def body(carry, g):
        params, state = carry
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
        # XLA:CPU copies a whole array of bfloat16 to write one row of it
        wide = jax.tree.map(lambda p: p.astype(jnp.result_type(p, jnp.float32)), params)
        return (params, state), wide

    start = jax.tree.map(jnp.asarray, params)

    @jax.jit
    def run(start, gradients):
        return jax.lax.scan(body, (start, optimizer.init(start)), gradients)[1]

    return run(start, gradients)


def of_layers(path, *arguments):
    """A path of one matrix, for each layer of a stack."""
    return np.stack([path(*(x[..., i, :, :] for x in arguments)) for i in range(3)], axis=1)


def norms(x):
    return np.linalg.norm(np.float64(x), axis=(-2, -1))


def rate(t):
    return 0.02 * (1 - jnp.asarray(t, float) / 200)


# --- measuring -----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 4)])
def test_norms_of_every_size(shape):
    measure = jax.jit(lambda x: _measure.norms(x))
    for scale in 10.0 ** np.arange(-36, 37):
        x = (RNG.uniform(0.5, 1, size=shape) * scale).astype(np.float32)
        want = np.sqrt(np.sum(np.square(np.float64(x))))
        np.testing.assert_allclose(measure(x), want, rtol=1e-6, err_msg=str(scale))


def test_norms_of_numbers_of_many_sizes():
    x = np.float32(
        [[1e-25, 1, 1], [1e-25, 2e-25, 0], [1e25, 1, 0], [0, 0, 0], [1e20, 1e18, 1]]
    )
    want = np.sqrt(np.sum(np.square(np.float64(x)), axis=1))
    np.testing.assert_allclose(_measure.norms(jnp.asarray(x), 1), want, rtol=1e-6)
    whole = np.sqrt(np.sum(np.square(np.float64(x))))
    np.testing.assert_allclose(_measure.norms(jnp.asarray(x)), whole, rtol=1e-6)
    bad = jnp.float32([[np.nan, 1], [np.inf, 1]])
    np.testing.assert_array_equal(_measure.norms(bad, 1), [np.nan, np.inf])


def test_norms_of_other_dtypes(x64):
    z = jnp.asarray(np.complex64([3e-30 + 4e-30j, 12e-30]))
    np.testing.assert_allclose(_measure.norms(z), 13e-30, rtol=1e-6)
    for scale in (1e-300, 1.0, 1e300):
        x = jnp.asarray([3 * scale, 4 * scale])
        np.testing.assert_allclose(_measure.norms(x), 5 * scale, rtol=1e-15)
    narrow = jnp.full(1 << 16, 0.01, jnp.bfloat16)
    assert _measure.norms(narrow).dtype == jnp.float32
    np.testing.assert_allclose(_measure.norms(narrow), 256 * float(narrow[0]), rtol=1e-6)


# --- to_norm -------------------------------------------------------------------------


@pytest.mark.parametrize("pull", [0.0, lambda t: 0.0 * t], ids=["number", "schedule"])
def test_a_pull_of_0_changes_no_bit(pull):
    u = jnp.float32([[-0.0, 1e-30, 3.0], [1e30, np.inf, np.nan]])
    p = jnp.float32([[1.0, 2.0, 3.0], [1.0, 1e-40, -2.0]])
    transformation = decay.to_norm(pull)
    got, _ = jax.jit(transformation.update)(u, transformation.init(p), p)
    np.testing.assert_array_equal(*(np.asarray(x).view(np.uint32) for x in (got, u)))


def sphere(learning_rate=0.02, **arguments):
    return optax.chain(
        optwd.scale_by_adam(0.9, 0.95),
        optwd.scale_by_weight_norm(),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        decay.to_norm(**arguments),
        optax.scale(-1),
    )


@pytest.mark.parametrize(
    "shape", cases({"vector": ((3,),), "matrix": ((16, 12),)}, {"matrix"})
)
def test_the_sphere_after_10_000_steps(shape):
    start = RNG.normal(size=shape).astype(np.float32)
    step = sphere().update

    def body(i, carry):
        params, state, worst = carry
        g = jnp.sin(i * params + start)
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
        off = jnp.abs(_measure.norms(params) / _measure.norms(start) - 1)
        return params, state, jnp.maximum(worst, off)

    init = (start, sphere().init(start), jnp.float32(0))
    params, _, worst = jax.jit(lambda x: jax.lax.fori_loop(0, 10_000, body, x))(init)
    assert worst < 8 * np.finfo(np.float32).eps  # of which the two sums take a half
    assert np.linalg.norm(params - start) > 0.2 * np.linalg.norm(start)


def test_the_sphere_in_bfloat16():
    start = jnp.asarray(RNG.normal(size=(32, 32)), jnp.bfloat16)
    optimizer = optwd.compensate_rounding(optwd.in_float32(sphere(0.001)))
    gradients = RNG.normal(size=(1000, 32, 32)).astype(np.float32)
    path = path_of(optimizer, start, jnp.asarray(gradients, jnp.bfloat16))
    # 1024 roundings by up to 2⁻⁹ each, of which 32 stay
    np.testing.assert_allclose(norms(path) / norms(start), 1, atol=2**-9 / 4)
    assert norms(np.float32(path[-1]) - np.float32(start)) > 0.1 * norms(start)


def test_radius_is_a_root_mean_square():
    params = {"w": START * 5, "stack": STACK}
    optimizer = sphere(radius=0.7, stacked="stack")
    gradients = {"w": GRADIENTS[:2], "stack": OF_STACK[:2]}
    path = path_of(optimizer, params, gradients)
    for name, x in path.items():
        np.testing.assert_allclose(norms(x), 0.7 * np.sqrt(12), rtol=1e-6, err_msg=name)


def test_matrices_at_0_are_left_alone():
    params = jnp.stack([jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.ones((2, 2))])
    u = jnp.stack([jnp.full((2, 2), 3.0), jnp.ones((2, 2)), -jnp.ones((2, 2))])
    tx = decay.to_norm(stacked="<root>")
    got, state = tx.update(u, tx.init(params), params)
    np.testing.assert_array_equal(state.radius, [0, 2, 2])
    np.testing.assert_array_equal(got[:2], u[:2])  # the second one's next weights are 0
    np.testing.assert_allclose(params[2] - got[2], 1)


def test_weights_near_the_ends_of_float32():
    for size in (1e-25, 1e25):
        params, u = jnp.float32([3 * size, 4 * size]), jnp.float32([3, 0])
        relative, tx = optwd.scale_by_weight_norm(), decay.to_norm()
        u, _ = relative.update(u, relative.init(params), params)
        np.testing.assert_allclose(u, [5 * size, 0], rtol=1e-6)
        u, _ = tx.update(u, tx.init(params), params)  # (−2, 4), of norm √20
        np.testing.assert_allclose(
            (params - u) / size, np.array([-2, 4]) * 5 / 20**0.5, rtol=1e-6
        )
    far = optwd.scale_by_weight_norm()
    u, _ = far.update(jnp.float32([0, 1e-25]), far.init(0), jnp.float32([3e25, 4e25]))
    np.testing.assert_allclose(u, [0, 5e25], rtol=1e-6)


# --- recipes -------------------------------------------------------------------------


def adamh(learning_rate, stacked=()):
    return optax.chain(
        optwd.scale_by_adam(0.9, 0.95),
        optwd.scale_by_weight_norm(stacked=stacked),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        decay.to_norm(stacked=stacked),
        optax.scale(-1),
    )


def muonh(learning_rate, stacked=()):
    axes = optax.contrib.MuonDimensionNumbers(1, 2) if stacked else None
    return optax.chain(
        optwd.trace(0.95, nesterov=True),
        optax.contrib.scale_by_muon(
            ns_coeffs=QUINTIC,
            beta=0.0,
            nesterov=False,
            weight_dimension_numbers=axes,
        ),
        optwd.scale_by_weight_norm(stacked=stacked),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
        decay.to_norm(stacked=stacked),
        optax.scale(-1),
    )


def levanter_adamh(start, gradients):
    return np.stack(reference.on_sphere(start, reference.adam(gradients, 0.9, 0.95), rate))


def levanter_muonh(start, gradients):
    directions = reference.nesterov_trace(gradients, 0.95)
    turned = (reference.newton_schulz(u, QUINTIC) for u in directions)
    return np.stack(reference.on_sphere(start, turned, rate))


OF_LEVANTER = {"adamh": (adamh, levanter_adamh), "muonh": (muonh, levanter_muonh)}


@pytest.mark.parametrize(("ours", "theirs"), cases(OF_LEVANTER, {"adamh"}))
def test_levanter(ours, theirs, x64):
    got = path_of(ours(rate), START, GRADIENTS)
    np.testing.assert_allclose(got, theirs(START, GRADIENTS), rtol=0, atol=1e-12)
    got = np.asarray(path_of(ours(rate, "<root>"), STACK, OF_STACK))
    want = of_layers(theirs, STACK, OF_STACK)
    np.testing.assert_allclose(got / SCALES[:, None, None], want / SCALES[:, None, None],
                               rtol=0, atol=1e-12)  # fmt: skip
    np.testing.assert_allclose(norms(got), np.tile(norms(STACK), (STEPS, 1)), rtol=1e-13)


def test_lars_and_lamb_of_optax(x64):
    mask = masks.multipliers({"w": 0.001, "b": 0})  # the trust coefficient
    lars = optax.chain(
        decay.linear(0.1),
        optwd.scale_by_weight_norm(mask),
        optax.scale_by_learning_rate(0.5),
        optwd.trace(0.9),
    )
    lamb = optax.chain(
        optwd.scale_by_adam(eps=1e-6),
        decay.linear(0.1),
        optwd.scale_by_weight_norm(),
        optax.scale_by_learning_rate(0.01),
    )
    params = {"w": START, "b": START[0]}
    gradients = {"w": GRADIENTS, "b": GRADIENTS[:, 0]}
    trusted = {"w": True, "b": False}
    for ours, theirs in (
        (lars, optax.lars(0.5, 0.1, trust_coefficient=0.001, trust_ratio_mask=trusted)),
        (lamb, optax.lamb(0.01, weight_decay=0.1)),
    ):
        got, want = (path_of(tx, params, gradients) for tx in (ours, theirs))
        for name in params:
            # Optax's bias correction is in float32
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-6)


def test_adamwn(x64):
    """A soft pull to the first norm, by a schedule that is not the learning rate's."""

    def pull(t):
        return 0.1 * (1 - jnp.asarray(t, float) / 200)

    optimizer = optax.chain(
        optwd.scale_by_adam(),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        decay.to_norm(pull),
        optax.scale(-1),
    )
    p, want = START, []
    for t, u in enumerate(reference.adam(GRADIENTS)):
        p = p - rate(t) * u
        p = p - pull(t) * (1 - np.linalg.norm(START) / np.linalg.norm(p)) * p
        want.append(p)
    got = path_of(optimizer, START, GRADIENTS)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_unit_rows_as_in_ngpt(x64):
    """Each row is a matrix of its own if two globs, or one of a plain matrix, take axes."""
    optimizer = optax.chain(
        optwd.scale_by_adam(0.9, 0.95),
        optax.scale_by_learning_rate(0.01, flip_sign=False),
        decay.to_norm(radius=3**-0.5, stacked=["*", "stack"]),
        optax.scale(-1),
    )
    params = {"w": START, "stack": STACK}
    gradients = {"w": GRADIENTS, "stack": OF_STACK}
    got = path_of(optimizer, params, gradients)
    for name, start in params.items():
        p, path = start, np.asarray(got[name])
        directions = reference.adam(gradients[name], 0.9, 0.95)
        for u, seen in zip(directions, path, strict=True):
            p = p - 0.01 * u
            p = p / np.linalg.norm(p, axis=-1, keepdims=True)
            np.testing.assert_allclose(seen, p, rtol=0, atol=1e-12)


# --- stacks --------------------------------------------------------------------------


OF_LAYERS = {
    "constrained": functools.partial(decay.constrained, 0.1, update_rate=0.05),
    "warm start": functools.partial(decay.constrained, warm_start=5, update_rate=0.05),
    "to_norm": functools.partial(decay.to_norm, 0.3),
    "scale_by_weight_norm": optwd.scale_by_weight_norm,
}


@pytest.mark.parametrize("make", cases(OF_LAYERS, {"warm start", "to_norm"}))
def test_a_stack_is_its_layers(make, x64):
    def path(transformation, start, u):
        return path_of(optax.chain(transformation, optax.scale(-0.1)), start, u)

    got = path(make(stacked="<root>"), STACK, OF_STACK)
    layers = of_layers(functools.partial(path, make()), STACK, OF_STACK)
    np.testing.assert_allclose(got, layers, rtol=1e-12, atol=1e-12)
    whole = path(make(), STACK, OF_STACK)
    assert np.abs(whole - got).max() > 1e-3


def test_masked_layers_and_other_leaves():
    params = {
        "blocks": {"w": jnp.ones((3, 2, 2)), "b": jnp.ones((3, 2))},
        "n": jnp.arange(3),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = decay.to_norm(0.5, 2.0, masks.path("**/w"), stacked="blocks/**")
    got, state = tx.update(zeros, tx.init(params), params)
    assert jax.tree.map(jnp.shape, state.radius) == {
        "blocks": {"w": (3,), "b": (3,)},
        "n": (),
    }
    np.testing.assert_allclose(got["blocks"]["w"], -0.5)
    assert not got["blocks"]["b"].any()


# --- constrained from afar -----------------------------------------------------------


@pytest.mark.parametrize("mean_square", [1e-3, 0.49, 9.0, 1e4, 1e20, 1e44])
@pytest.mark.parametrize("bound", cases({"1e-4": 1e-4, ".5": 0.5, "30": 30.0}, {".5"}))
def test_constrained_holds_from_any_start(mean_square, bound):
    """With the default rate: finite at all times, and held in the end, under a push."""
    start = np.float32(mean_square**0.5) * jnp.sign(jnp.asarray(START, jnp.float32))
    push = -0.002 * bound**0.5 * jnp.sign(start)
    optimizer = optax.chain(decay.constrained(bound), optax.scale(-1))
    path = path_of(optimizer, start, jnp.broadcast_to(push, (20_000, *push.shape)))
    path = np.asarray(path)
    assert np.isfinite(path).all()
    last = np.mean(np.square(path[-2000:]), axis=(1, 2))
    assert last.max() < 1.1 * bound, last.max() / bound
    assert last.mean() > 0.5 * bound, last.mean() / bound


def test_constrained_does_not_grow_what_it_should_shrink():
    """What went to NaN: mean square 9, bound .5, no gradient."""
    optimizer = optax.chain(decay.constrained(0.5), optax.scale(-1))
    path = path_of(optimizer, jnp.full((4, 4), 3.0), jnp.zeros((50, 4, 4)))
    np.testing.assert_allclose(path[:3, 0, 0], [1.5, 0.75, 0.375])
    np.testing.assert_array_equal(path[3:], 0.375)  # Λ is 0 below the bound


# --- states --------------------------------------------------------------------------


def with_numbers():
    """What keeps one number per leaf or matrix beside leaves with partition specs."""
    only = masks.path("**/bias")
    return {
        "constrained": decay.constrained(0.1, stacked="**/kernel"),
        "to_norm": decay.to_norm(stacked="**/kernel"),
        "toward": decay.toward(1.0, 0.1),
        "toward_init": decay.toward_init(0.1, only),
        "compensate_rounding": optwd.compensate_rounding(optwd.adamw(0.1)),
    }


NUMBERS = {name: name for name in with_numbers()}
QUICK = {"constrained", "compensate_rounding"}  # one number per matrix, and per leaf


@pytest.mark.parametrize("name", cases(NUMBERS, QUICK))
def test_partitioned_linen_parameters(name):
    import flax.linen as nn

    tx = with_numbers()[name]
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = nn.with_partitioning(nn.initializers.ones, (None, "model"))
    along = nn.with_partitioning(nn.initializers.ones, ("model",))
    model = nn.Dense(4, kernel_init=spec, bias_init=along)
    params = model.init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    params["kernel"] = params["kernel"].replace_boxed(
        params["kernel"].value.astype(jnp.bfloat16)
    )
    shapes = jax.eval_shape(tx.init, params)
    specs = nn.get_partition_spec(shapes)
    for shape, spec in zip(*map(jax.tree.leaves, (nn.unbox(shapes), specs)), strict=True):
        assert len(spec) <= len(shape.shape)
    shardings = jax.tree.map(lambda spec: jax.sharding.NamedSharding(mesh, spec), specs)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.ones_like, params), state, params)
    assert all(np.isfinite(np.float32(u)).all() for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", cases(NUMBERS, QUICK))
def test_annotated_nnx_parameters(name):
    from flax import nnx

    tx = with_numbers()[name]
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spec = nnx.with_partitioning(nnx.initializers.ones, (None, "model"))
        along = nnx.with_partitioning(nnx.initializers.ones, ("model",))
        rngs = nnx.Rngs(0)
        model = nnx.Linear(3, 4, kernel_init=spec, bias_init=along, rngs=rngs)
        model.kernel.set_value(model.kernel.get_value().astype(jnp.bfloat16))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    values = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all(np.isfinite(np.float32(x)).all() for x in values)


@pytest.mark.slow
def test_orbax_round_trip(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    params = {"stack": jnp.asarray(STACK, jnp.float32), "b": jnp.ones(3)}
    tx = optax.chain(
        decay.constrained(0.1, stacked="stack"),
        decay.to_norm(stacked="stack"),
        decay.toward_init(0.1, masks.path("b")),
    )
    _, state = tx.update(params, tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_hyperparameters_can_be_injected():
    params = {"stack": jnp.asarray(STACK, jnp.float32)}
    for make, arguments in (
        (decay.to_norm, {"pull": 0.5, "radius": 0.3, "stacked": "stack"}),
        (decay.constrained, {"bound": 0.1, "stacked": "stack"}),
        (decay.constrained, {"warm_start": 0, "update_rate": 0.1}),
    ):
        plain, injected = make(**arguments), optax.inject_hyperparams(make)(**arguments)
        got, want = (
            jax.jit(tx.update)(params, tx.init(params), params)[0]
            for tx in (injected, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)


# --- bad input -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: decay.to_norm(1.5), r"pull must be in \[0, 1\], got 1.5"),
        (lambda: decay.to_norm(-0.5), r"pull must be in \[0, 1\], got -0.5"),
        (lambda: decay.to_norm(radius=0), "radius must be > 0, got 0"),
        (lambda: decay.to_norm(radius=-1.0), "radius must be in .* got -1.0"),
        (lambda: decay.to_norm(lambda t: 1.1), r"pull at step 0 must be in \[0, 1\]"),
        (
            lambda: decay.to_norm(0.5, None, masks.multipliers({"w": 3.0, "s": 1})),
            "w: the mask multiplies pull by 3.0, .* can be 2 at most",
        ),
        (lambda: decay.to_norm(stacked="v"), "'v' matches no leaf; nearest: .*w"),
        (
            lambda: decay.to_norm(stacked=["s", "*"]),
            r"decay.to_norm: 2 of the globs .* match s, which has shape \(2,\)",
        ),
        (lambda: decay.constrained(0.1, stacked=["s", "*"]), "decay.constrained: 2 of"),
        (lambda: optwd.scale_by_weight_norm(stacked=["s", "*"]), "scale_by_weight_norm: 2"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make().init({"w": jnp.ones((2, 2)), "s": jnp.ones(2)})


def test_another_state_is_refused():
    params = {"w": jnp.ones((3, 2, 2))}
    tx = decay.to_norm(stacked="w")
    other = tx.init({"w": jnp.ones((4, 2, 2))})
    with pytest.raises(ValueError, match=r"w: the gradient has shape \(3, 2, 2\), the rad"):
        tx.update(params, other, params)


# --- in training ---------------------------------------------------------------------


def of_digits():
    import equilibrium

    return equilibrium.of_digits(0, 200)


def of_transformer():
    """That of the example `train_sharded`, in small."""
    import _manual as manual
    import train_sharded
    from flax import nnx

    size = train_sharded.QUICK
    graph, params = nnx.split(size.model(0), nnx.Param)

    def loss(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, tokens[:, 1:]
        ).mean()

    batches = manual.batch(manual.text()[0], (200, 4), size.length, 0)
    return loss, params, (jnp.asarray(batches),)


@pytest.mark.slow
@pytest.mark.parametrize("task", [of_digits, of_transformer])
def test_adamh_keeps_every_norm_in_training(task):
    loss, start, batches = task()
    matrices = masks.ndim(2)
    tx = optax.chain(
        optwd.scale_by_adam(0.9, 0.95),
        optwd.scale_by_weight_norm(matrices),
        optax.scale_by_learning_rate(0.02, flip_sign=False),
        decay.to_norm(mask=matrices),
        optax.scale(-1),
    )

    def step(carry, batch):
        params, state = carry
        value, g = jax.value_and_grad(loss)(params, *batch)
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        sizes = [_measure.norms(p) for p in jax.tree.leaves(params) if p.ndim > 1]
        return (params, state), (value, jnp.stack(sizes))

    (end, _), (values, sizes) = jax.jit(functools.partial(jax.lax.scan, step))(
        (start, tx.init(start)), batches
    )
    first, last = (
        np.array([np.linalg.norm(np.float64(p)) for p in jax.tree.leaves(x) if p.ndim > 1])
        for x in (start, end)
    )
    np.testing.assert_allclose(last, first, rtol=1e-6)
    np.testing.assert_allclose(sizes, np.tile(first, (200, 1)), rtol=1e-6)
    assert np.mean(values[-20:]) < 0.9 * np.mean(values[:5])


@pytest.mark.slow
def test_a_run_goes_over_from_adamw_to_adamh(tmp_path, capsys):
    """No jump in the loss, and an end like AdamW's, at the angle that was measured."""
    import adamw_to_adamh

    runs = adamw_to_adamh.main(["--quick", "--out", str(tmp_path)])
    assert "Angles per step" in capsys.readouterr().out
    assert (tmp_path / "adamw_to_adamh.png").stat().st_size > 10_000
    before, stays = runs["before"][-1, :, 0], runs["AdamW"][-5:, :, 0].mean()
    goes = runs["AdamH, measured"]
    np.testing.assert_allclose(goes[0, :, 0], before, atol=0.05)
    np.testing.assert_allclose(goes[-5:, :, 0].mean(), stays, atol=0.03)
    assert runs["AdamH, theory"][-5:, :, 0].mean() > stays + 0.03
