"""What holds for every transformation and optimizer of the package.

- updates come back in the dtype of the gradients; the state keeps its structure, shapes
  and dtypes, also when a rate is a schedule or a mask is given;
- None, integer, float0, empty, 0-d and 0-size leaves and Python numbers pass as they must;
- eager, jit, pmap and NumPy arguments give the same; jit in one trace, in place of the
  buffers it is given; vmap, scan and cond equal a loop; adamw holds 8 bytes a parameter,
  or 4;
- it works inside Optax's wrappers, and one step exports for cpu, cuda and tpu;
- a rate of 0 is the identity and a masked leaf is untouched, bit for bit;
- bad input raises an error that names the path, the value and the fix.

Laws about dtypes and structure are decided by `jax.eval_shape`, which compiles nothing.
"""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

import optwd
from tests.helpers import (
    assert_same_signature,
    cases,
    each,
    random_tree,
    stack,
    stepper,
    written_and_read,
)
from tests.registry import ALL, DECAYS, KINDS, OPTIMIZERS, Entry

every, every_decay, every_optimizer = map(each, (ALL, DECAYS, OPTIMIZERS))

SHAPES = {"a": {"kernel": (3, 4), "bias": (4,)}, "b": [(2,), ()]}
tree = functools.partial(random_tree, SHAPES)
assert_equal = chex.assert_trees_all_equal
# a few ulp: contraction may differ
assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-6, atol=2e-7)


def counted(function, n):
    """It fails when it is traced more than `n` times; one such function at a time."""
    chex.clear_trace_counter()
    return chex.assert_max_traces(function, n)


def run(transformation, steps=5, dtype=jnp.float32, jit=True, donate=True):
    """Parameters and state after some steps: in one trace, in place of their buffers."""
    params, step = tree(0, dtype), stepper(transformation)
    if jit:
        step = jax.jit(counted(step, 1), donate_argnums=(0, 1) if donate else ())
    state = transformation.init(params)
    for t in range(steps):
        before = jax.tree.leaves((params, state))
        params, state = step(params, state, tree(t + 1, dtype))
        assert all(x.is_deleted() == (jit and donate) for x in before)
    return params, state


def shapes_of_step(transformation, params, gradients, state=None):
    """(updates, state, new state), of which only shapes and dtypes are computed."""
    state = jax.eval_shape(transformation.init, params) if state is None else state
    return state, *jax.eval_shape(transformation.update, gradients, state, params)


# --- dtypes and structure ------------------------------------------------------------


def mixed(seed, *dtypes):
    return {jnp.dtype(dtype).name: tree(seed, dtype) for dtype in dtypes}


@every
@pytest.mark.parametrize(
    "scheduled", cases({"number": False, "schedule": True}, {"schedule"})
)
def test_dtype_and_state_are_kept(entry: Entry, scheduled):
    changes = {entry.decay: lambda t: jnp.float32(0.1)} if entry.decay and scheduled else {}
    if entry.optimizer and scheduled:
        changes["learning_rate"] = optax.linear_schedule(0.01, 0.0, 10)
    params, gradients = (
        mixed(seed, jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64)
        for seed in range(2)
    )
    state, updates, new = shapes_of_step(entry.make(**changes), params, gradients)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)
    assert_same_signature(new, state)


@every
def test_moments_of_low_precision_are_wide(entry: Entry):
    for x in jax.tree.leaves(jax.eval_shape(entry.make().init, tree(0, jnp.bfloat16))):
        assert x.dtype in (jnp.int32, jnp.float32) or entry.anchored or entry.narrow


@every
def test_bfloat16_parameters_with_float32_gradients_in_scan(entry: Entry):
    transformation, params = entry.make(), tree(0, jnp.bfloat16)
    carry = (params, transformation.init(params))

    def body(carry, gradients):
        return stepper(transformation)(*carry, gradients), None

    new, _ = jax.lax.scan(body, carry, stack(tree(1), tree(2)))
    assert_same_signature(new, carry)
    chex.assert_tree_all_finite(new[0])
    assert not any(np.isnan(np.float32(x)).any() for x in jax.tree.leaves(new[1]))


RATES_OF_DTYPES = {
    "JAX": jnp.float32(0.1),
    "NumPy, wide": np.float64(0.1),
    "NumPy": np.float32(0.1),
}


@every_decay
@pytest.mark.parametrize("rate", cases(RATES_OF_DTYPES, {"NumPy, wide"}))
def test_the_dtype_of_a_rate_does_not_widen(entry: Entry, rate, x64):
    changes = {entry.decay: rate}
    if entry.optimizer:
        changes["learning_rate"] = rate
    params, gradients = (mixed(seed, jnp.bfloat16, jnp.float32) for seed in range(2))
    for changed in (changes, {k: (lambda t, v=v: v) for k, v in changes.items()}):
        _, updates, _ = shapes_of_step(entry.make(**changed), params, gradients)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)


@every
def test_strict_promotion(entry: Entry, x64):
    dtypes = jnp.float32, jnp.bfloat16, jnp.float64
    params, gradients = (mixed(seed, *dtypes) for seed in range(2))
    with jax.numpy_dtype_promotion("strict"):
        _, updates, _ = shapes_of_step(entry.make(), params, gradients)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, gradients)


@every_decay
def test_state_is_the_same_for_number_schedule_and_mask(entry: Entry):
    masks = [
        None,
        {"a": True, "b": 0.5},
        lambda p: jax.tree.map(lambda x: x.ndim == 2, p),
        False,
    ]
    rates = [0.1, 0.0, optax.constant_schedule(0.1)]
    states = [
        [
            jax.eval_shape(entry.make(**{entry.decay: rate, "mask": mask}).init, tree(0))
            for rate in rates
        ]
        for mask in masks
    ]
    for of_a_mask in states:
        assert_same_signature(*of_a_mask)
    if not entry.anchored:  # an anchor is kept only where there is decay
        assert_same_signature(*(of_a_mask[0] for of_a_mask in states))


# --- leaves that do not take part ----------------------------------------------------


@every
def test_none_gradient_leaves_its_leaf_alone(entry: Entry):
    transformation, params = entry.make(), tree(0)
    state = transformation.init(params)
    full = transformation.update(tree(1), state, params)
    gradients = tree(1)
    gradients["a"]["kernel"] = None
    updates, new = transformation.update(gradients, state, params)
    assert updates["a"]["kernel"] is None
    np.testing.assert_array_equal(updates["a"]["bias"], full[0]["a"]["bias"])
    assert_same_signature(new, state)
    for field in ("mu", "nu", "nu_max", "trace"):
        if (moments := optax.tree.get(new, field, None)) is not None:
            assert not np.any(moments["a"]["kernel"])


@every
def test_leaves_that_are_not_floating_are_untouched(entry: Entry):
    start = {
        "int32": jnp.array([16777217, 1]),  # not a float32
        "bool": jnp.array([True, False]),
    }
    params = {"w": jnp.ones(2), "zeros": start, "float0": start}
    gradients = {
        "w": jnp.ones(2),
        "zeros": jax.tree.map(jnp.zeros_like, start),
        "float0": jax.tree.map(lambda x: np.zeros(2, jax.dtypes.float0), start),
    }
    transformation = entry.make()
    state = transformation.init(params)
    for _ in range(2):
        updates, new = transformation.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert_same_signature(new, state)
        state = new
    for kind in ("zeros", "float0"):
        chex.assert_trees_all_equal(params[kind], start, strict=True)
    assert not np.array_equal(params["w"], jnp.ones(2))


@chex.dataclass
class Layer:  # noqa: D101
    kernel: jax.Array
    bias: jax.Array | None


ODD = {
    "dict": {},
    "tuple": (),
    "0-d": jnp.ones(()),
    "odd leaves": {
        "None": None,
        "0-size": jnp.ones((0, 3)),
        "0-d": jnp.ones(()),
        "masked": optax.MaskedNode(),
        "dataclass": Layer(kernel=jnp.ones(2), bias=None),
    },
}


def check_odd_tree(params, step, init):
    state = init(params)
    updates, new = step(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    assert_same_signature(new, state)
    chex.assert_tree_all_finite(updates)


@every
def test_odd_trees(entry: Entry):
    transformation = entry.make()
    for params in ODD.values():
        check_odd_tree(params, transformation.update, transformation.init)


@every
def test_odd_trees_under_jit(entry: Entry):
    transformation = entry.make()
    check_odd_tree(ODD, jax.jit(transformation.update), jax.jit(transformation.init))


@every
def test_a_leaf_of_a_dataclass_is_named(entry: Entry):
    params = [Layer(kernel=jnp.ones((1, 3)), bias=jnp.ones(2))]
    transformation = entry.make()
    wrong = [params[0].replace(kernel=jnp.ones((3, 1)))]
    with pytest.raises(ValueError, match=r"0/kernel: .*\(3, 1\).*\(1, 3\)"):
        transformation.update(wrong, transformation.init(params), params)


@every
def test_python_numbers_cost_no_further_trace(entry: Entry):
    transformation = entry.make()
    step = jax.jit(counted(stepper(transformation), 2))
    params, state = {"w": 2.0}, transformation.init({"w": 2.0})
    for _ in range(4):
        params, state = step(params, state, {"w": jnp.float32(1.0)})
    assert params["w"] != 2.0


# --- transformations of JAX ----------------------------------------------------------


@every
def test_jit_equals_eager(entry: Entry):
    assert_close(run(entry.make()), run(entry.make(), jit=False))


class TestArguments(chex.TestCase):
    """Every entry, under pmap too, is in `on_eight_devices.py`."""

    @chex.variants(with_device=True, without_device=True)
    @parameterized.named_parameters((str(e), e) for e in ALL if e.name in KINDS)
    def test_arrays_of_jax_and_of_numpy(self, entry):
        transformation = entry.make()
        args = tree(0), transformation.init(tree(0)), tree(1)
        step = stepper(transformation)
        assert_close(self.variant(step)(*args), step(*args))


@every
def test_vmap_equals_a_loop(entry: Entry):
    transformation, step = entry.make(), jax.jit(stepper(entry.make()))

    def two_steps(step, params, gradients):
        state = transformation.init(params)
        for _ in range(2):
            params, state = step(params, state, gradients)
        return params

    batch = [stack(*map(tree, seeds)) for seeds in ((0, 1, 2), (3, 4, 5))]
    alone = [two_steps(step, tree(s), tree(s + 3)) for s in range(3)]
    together = functools.partial(two_steps, stepper(transformation))
    assert_close(jax.jit(jax.vmap(together))(*batch), stack(*alone))


@every
def test_scan_and_cond_equal_a_loop(entry: Entry):
    transformation, params = entry.make(), tree(0)
    step = stepper(transformation)

    def body(carry, g):
        return jax.lax.cond(True, lambda c: step(*c, g), lambda c: c, carry), None

    gradients = stack(*(tree(t + 1) for t in range(5)))
    final, _ = jax.lax.scan(body, (params, transformation.init(params)), gradients)
    assert_close(final, run(transformation))


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "moments",
    [None, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
    ids=["wide", "narrow"],
)
def test_a_donated_step_is_in_place(entry: Entry, dtype, moments):
    taken = set(inspect.signature(entry.factory).parameters) & {"mu_dtype", "nu_dtype"}
    optimizer = entry.make(**dict.fromkeys(taken, moments))
    params = {"w": jnp.ones((256, 256), dtype), "b": jnp.ones(1 << 16, dtype)}
    args = params, optimizer.init(params), params
    step = jax.jit(stepper(optimizer), donate_argnums=(0, 1)).lower(*args).compile()
    memory, size = step.memory_analysis(), 2 << 17
    assert memory.temp_size_in_bytes < size / 100
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < size / 100


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("moments", "expected"), [(None, 8), (jnp.bfloat16, 4)])
def test_bytes_of_state(dtype, moments, expected):
    optimizer = optwd.adamw(1e-3, mu_dtype=moments, nu_dtype=moments)
    state = jax.eval_shape(optimizer.init, jnp.ones((1024, 1024), dtype))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert held / 1024**2 == pytest.approx(expected, abs=1e-4)  # and two counts


@every
def test_eval_shape_of_init(entry: Entry):
    params = tree(0, jnp.bfloat16)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    init = entry.make().init
    states = [init(params), jax.eval_shape(init, params), jax.eval_shape(init, shapes)]
    states += [] if entry.anchored else [init(shapes)]  # shapes hold no values to copy
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


@every_optimizer
def test_export_for_every_platform(entry: Entry):
    optimizer, params = entry.make(), tree(0)
    args = params, optimizer.init(params), tree(1)
    optwd.register_for_export(args)
    step = stepper(optimizer)
    assert_close(written_and_read(step, *args).call(*args), jax.jit(step)(*args))


@every_optimizer
def test_vmap_over_hyperparameters(entry: Entry):
    names = [n for n in ("learning_rate", entry.decay) if n]
    values = np.array([[0.01, 0.02, 0.0], [0.1, 0.0, 0.3]])[: len(names)]

    gradients = stack(*(tree(t + 1) for t in range(5)))

    def final(*hyperparameters):
        optimizer = entry.make(**dict(zip(names, hyperparameters, strict=True)))

        def body(carry, g):
            return stepper(optimizer)(*carry, g), None

        carry = (tree(0), optimizer.init(tree(0)))
        return jax.lax.scan(body, carry, gradients)[0][0]

    alone = [final(*column) for column in values.T.tolist()]
    assert_close(jax.jit(jax.vmap(final))(*jnp.asarray(values)), stack(*alone), atol=1e-6)


# --- inside Optax --------------------------------------------------------------------


@every
def test_accepts_extra_args(entry: Entry):
    transformation, params = entry.make(), tree(0)
    state = transformation.init(params)
    expected = transformation.update(tree(1), state, params)
    assert_equal(transformation.update(tree(1), state, params, loss=1.0, seed=3), expected)


@every
def test_in_apply_if_finite(entry: Entry):
    wrapped = optax.apply_if_finite(entry.make(), max_consecutive_errors=2)
    params, update = tree(0), jax.jit(wrapped.update)
    state = wrapped.init(params)
    bad = jax.tree.map(lambda g: np.asarray(g) * np.float32(np.nan), tree(1))
    updates, skipped = update(bad, state, params)
    assert_equal(skipped.inner_state, state.inner_state)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    updates, _ = update(tree(1), skipped, params)
    plain = entry.make()
    assert_close(updates, plain.update(tree(1), plain.init(params), params)[0])


@every
def test_in_partition_masked_and_chain(entry: Entry):
    params = tree(0)
    labels = {"a": "ours", "b": "frozen"}
    plain = entry.make()
    expected, _ = plain.update(tree(1), plain.init(params), params)
    partition = optax.partition(
        {"ours": entry.make(), "frozen": optax.set_to_zero()}, labels
    )
    updates, _ = partition.update(tree(1), partition.init(params), params)
    assert_close(updates["a"], expected["a"])
    assert not any(np.any(u) for u in jax.tree.leaves(updates["b"]))
    masked = optax.masked(entry.make(), {"a": True, "b": False})
    updates, _ = masked.update(tree(1), masked.init(params), params)
    assert_close(updates, {"a": expected["a"], "b": tree(1)["b"]})
    chain = optax.chain(optax.identity(), entry.make(), optax.scale(2.0))
    updates, _ = chain.update(tree(1), chain.init(params), params)
    assert_close(updates, jax.tree.map(lambda u: 2 * u, expected))


@every_optimizer
def test_multi_steps_equals_one_large_batch(entry: Entry):
    params, gradients = tree(0), [tree(1), tree(2)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    plain = entry.make()
    large, _ = plain.update(mean, plain.init(params), params)
    multi = optax.MultiSteps(entry.make(), every_k_schedule=2)
    state = multi.init(params)
    none, state = multi.update(gradients[0], state, params)
    assert not any(np.any(u) for u in jax.tree.leaves(none))
    updates, state = multi.update(gradients[1], state, params)
    assert_close(updates, large)


@every_optimizer
def test_inject_hyperparams(entry: Entry):
    schedule = optax.linear_schedule(0.01, 0.001, 4)
    injected = optax.inject_hyperparams(entry.factory)(
        **{**entry.arguments, "learning_rate": schedule}
    )
    plain = entry.make(learning_rate=schedule)
    # a traced b2 is known to float32 only, and this is what that costs
    got = run(injected, donate=False)[0]  # Optax does not read the hyperparameters it had
    assert_close(got, run(plain)[0], rtol=1e-5, atol=1e-6)
    state = injected.init(tree(0))
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.01)


def test_inject_hyperparams_on_bfloat16():
    params = tree(0, jnp.bfloat16)
    make = optax.inject_hyperparams(optwd.adamw, hyperparam_dtype=jnp.float32)
    optimizer = make(learning_rate=0.01, weight_decay=0.1)
    updates, _ = optimizer.update(tree(1, jnp.bfloat16), optimizer.init(params), params)
    plain = optwd.adamw(0.01, weight_decay=0.1)
    expected, _ = plain.update(tree(1, jnp.bfloat16), plain.init(params), params)
    assert_close(
        *(jax.tree.map(np.float32, t) for t in (updates, expected)), rtol=2**-8, atol=0
    )
    with pytest.raises(ValueError, match=r"b2 must be in \[0, 1\), got .*1"):
        optax.inject_hyperparams(optwd.adamw)(learning_rate=0.01).init(params)


@every
def test_map_params(entry: Entry):
    transformation, params = entry.make(), tree(0)
    state = transformation.init(params)
    mapped = optax.tree.map_params(transformation, lambda x: x + 1, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    specs = jax.tree.map(lambda x: x.ndim, params)
    ranks = optax.tree.map_params(
        transformation, lambda _, n: n, state, specs, transform_non_params=lambda _: -1
    )
    key = jnp.uint32  # of random words, which belong to no parameter
    expected = jax.tree.map(lambda x: x.ndim if x.ndim and x.dtype != key else -1, state)
    for got, want, x in zip(*map(jax.tree.leaves, (ranks, expected, state)), strict=True):
        assert got == want or (got, x.ndim) == (0, 0) or (entry.per_tensor and x.ndim == 0)


def test_tree_get_finds_adams_state():
    state = optwd.adamw(1e-3).init(tree(0))
    assert_equal(optax.tree.get(state, "mu"), jax.tree.map(jnp.zeros_like, tree(0)))
    assert optax.tree.get(state, "count") == 0
    assert isinstance(state[0], optax.ScaleByAdamState)


# --- rates and masks -----------------------------------------------------------------


@every_decay
def test_rate_zero_is_the_identity(entry: Entry):
    zero = entry.make(**{entry.decay: 0.0})
    traced = entry.make(**{entry.decay: lambda t: jnp.float32(0.0)})
    params = tree(0)
    none = entry.make(mask=False)
    expected, _ = none.update(tree(1), none.init(params), params)
    for transformation in (zero, traced):
        updates, _ = transformation.update(tree(1), transformation.init(params), params)
        assert_equal(updates, expected)
    if not entry.optimizer:
        assert_equal(expected, tree(1))


MASKS = {
    "tree": {"a": {"kernel": True, "bias": False}, "b": [0.5, False]},
    "prefix": {"a": {"kernel": True, "bias": False}, "b": False},
    "callable": lambda params: jax.tree.map(lambda p: p.ndim == 2, params),
    "array": {"a": {"kernel": np.True_, "bias": jnp.zeros(())}, "b": [np.float32(0.5), 0]},
}


@every_decay
def test_masks(entry: Entry):
    half = entry.arguments[entry.decay] / 2
    makes = {name: {"mask": mask} for name, mask in MASKS.items()}
    makes |= {"bare": {"mask": False}, "full": {}, "half": {entry.decay: half}}

    @jax.jit  # one program compiles sooner than seven
    def updates(gradients, params):
        made = {name: entry.make(**changes) for name, changes in makes.items()}
        return {
            name: transformation.update(gradients, transformation.init(params), params)[0]
            for name, transformation in made.items()
        }

    got = updates(tree(1), tree(0))
    bare, full, half = (got.pop(name) for name in ("bare", "full", "half"))
    for name, u in got.items():
        assert_equal(u["a"], full["a"] | {"bias": bare["a"]["bias"]})
        assert_equal(u["b"][1], bare["b"][1])
        if name in ("tree", "array"):
            assert_close(u["b"][0], half["b"][0])


@every_decay
def test_masks_see_parameters_only(entry: Entry):
    seen = []

    def mask(params):
        seen.append(params)
        return True

    transformation, params = entry.make(mask=mask), tree(0)
    transformation.update(tree(1), transformation.init(params), params)
    of_anchors = entry.name == "decay.toward_init"  # keeps those of decaying leaves only
    assert len(seen) == 2 + of_anchors  # at init and at update
    assert all(leaf is p for t in seen for leaf, p in
               zip(jax.tree.leaves(t), jax.tree.leaves(params), strict=True))  # fmt: skip


def test_mask_that_is_a_callable_tree():
    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, w):
            self.w = w

        def __call__(self, x):
            raise AssertionError("a module given as a mask is a tree, not a function")

        def tree_flatten(self):
            return (self.w,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    params = Module(jnp.ones(2))
    decay = optwd.decay.linear(0.5, Module(True))
    updates, _ = decay.update(params, decay.init(params), params)
    np.testing.assert_allclose(updates.w, 1.5)


# --- bad input -----------------------------------------------------------------------


@every
def test_params_none_names_the_transformation(entry: Entry):
    transformation = entry.make()
    state = transformation.init(tree(0))
    if entry.needs_params:
        named = r"^(add_l2|decay\.\w+|\w*round\w+|scale_by_\w+) needs"
        with pytest.raises(ValueError, match=named):
            transformation.update(tree(1), state)
    else:
        transformation.update(tree(1), state)


@every
@pytest.mark.parametrize("change", ["missing", "extra"])
def test_other_keys_raise_with_the_path(entry: Entry, change):
    transformation, gradients = entry.make(), tree(1)
    state = transformation.init(tree(0))
    if change == "missing":
        del gradients["a"]["bias"]
    else:
        gradients["a"]["typo"] = jnp.ones(2)
    with pytest.raises(ValueError, match=r"a/bias|a/typo"):
        transformation.update(gradients, state, tree(0))


@every
def test_real_gradient_of_a_complex_leaf_raises(entry: Entry):
    params = {"w": jnp.ones(2, jnp.complex64)}
    transformation = entry.make()
    with pytest.raises(TypeError, match=r"w: .*float32.*complex64"):
        transformation.update({"w": jnp.ones(2)}, transformation.init(params), params)


@every
def test_gradient_without_parameter_raises(entry: Entry):
    params = {"w": None, "v": jnp.ones(2)}
    transformation = entry.make()
    with pytest.raises(ValueError, match="w: a gradient, but nothing"):
        transformation.update(
            {"w": jnp.ones(2), "v": jnp.ones(2)}, transformation.init(params), params
        )


def test_a_gradient_of_a_whole_subtree_raises():
    params = {"a": {"kernel": jnp.ones(2)}}
    for transformation in (optwd.scale_by_adam(), optwd.decay.linear(0.1)):
        with pytest.raises(ValueError, match="a: a gradient, but nothing to match it in"):
            transformation.update({"a": jnp.ones(2)}, transformation.init(params), params)


@every_decay
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": True, "b": "no"}, "b: a mask leaf must be .* got 'no'"),
        ({"a": True, "b": float("nan")}, "b: .* got nan"),
        ({"a": -1.0, "b": True}, "a: .* got -1.0"),
        ({"a": True}, "only in the parameters: b/0, b/1"),
        ({"a": True, "b": True, "c": True}, "only in the mask: c"),
        ({"a": {"kernel": True}, "b": True}, "only in the parameters: a/bias"),
        ({"a": True, "b": jnp.ones(2)}, "b: a mask leaf must be"),
        (lambda p: jax.tree.map(lambda x: x > 0, p), "a mask leaf must be"),
    ],
)
def test_bad_masks_raise_at_init(entry: Entry, mask, message):
    with pytest.raises(ValueError, match=message):
        entry.make(mask=mask).init(tree(0))


@every_decay
def test_mask_of_values_under_jit_explains(entry: Entry):
    transformation = entry.make(mask=lambda p: jax.tree.map(lambda x: (x > 0).all(), p))
    with pytest.raises(ValueError, match="a/bias: the mask depends on a traced value"):
        jax.jit(transformation.init)(tree(0))


NOT_RATES = [-1e-3, float("nan"), float("inf"), jnp.float32(-1), np.float64("nan")]


@every
def test_hyperparameters_are_checked_when_concrete(entry: Entry):
    names = {"b1", "b2", "momentum", "decay"} & set(entry.factory.__code__.co_varnames)
    cases = [(n, v) for n in names for v in (1.0, -0.1, 1.5, float("nan"), jnp.float32(1))]
    cases += [
        (n, v)
        for n in {"eps", "eps_root", "learning_rate", entry.decay}
        & set(entry.factory.__code__.co_varnames)
        for v in NOT_RATES
    ]
    assert cases or entry.narrow or entry.decay is None
    for name, value in cases:
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, .*[])], got "):
            entry.make(**{name: value})
    if entry.decay:
        for value in (True, "0.1", None, 1j, np.bool_(True)):
            with pytest.raises(TypeError, match=rf"{entry.decay} must be a (real )?number"):
                entry.make(**{entry.decay: value})
        with pytest.raises(ValueError, match=r"one number .* array of shape \(2,\)"):
            entry.make(**{entry.decay: jnp.ones(2)})
        vector = entry.make(**{entry.decay: lambda t: jnp.ones(2)})
        with pytest.raises(
            ValueError, match=f"schedule {entry.decay} must return one number"
        ):
            vector.update(tree(1), vector.init(tree(0)), tree(0))


@pytest.mark.parametrize("name", ["mu_dtype", "nu_dtype"])
@pytest.mark.parametrize("factory", [optwd.scale_by_adam, optwd.scale_by_amsgrad])
def test_moment_dtypes_must_be_floating(factory, name):
    with pytest.raises(
        ValueError, match=f"{name} must be a floating dtype or None, got int32"
    ):
        factory(**{name: jnp.int32})


def test_coupling_errors():
    with pytest.raises(ValueError, match=r"scaled_by must be .* got 'lr'"):
        optwd.adamw(1e-3, scaled_by="lr")
    with pytest.raises(ValueError, match="needs peak_learning_rate"):
        optwd.adamw(optax.constant_schedule(1e-3), scaled_by="schedule")
    with pytest.raises(ValueError, match="only used by scaled_by='schedule'"):
        optwd.adamw(1e-3, peak_learning_rate=1e-3)
    with pytest.raises(ValueError, match="peak_learning_rate must be > 0"):
        optwd.adamw(0.0, scaled_by="schedule")


def test_rules_are_checked():
    with pytest.raises(TypeError, match=r"rule must be a function of \(u, p, rho\)"):
        optwd.decay.from_rule(0.1, 0.1)
    grow = optwd.decay.from_rule(lambda u, p, rho: jnp.stack([u, p]), 0.1)
    with pytest.raises(ValueError, match=r"turned a leaf of shape \(2,\) into \(2, 2\)"):
        grow.update(jnp.ones(2), grow.init(jnp.ones(2)), jnp.ones(2))
