"""What test_sharding.py proves, in a process that has 8 devices: it runs this file."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwd
from tests.helpers import written_and_read
from tests.registry import ALL, Entry


def bfloat16(name, rounding, **arguments):
    def make():
        moments = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
        adamw = optwd.adamw(0.01, weight_decay=0.1, **moments)
        return rounding(adamw, **arguments)

    return Entry(name, make, {}, narrow=True)


def subtracted(entry):
    return Entry(entry.name, lambda: optax.chain(entry.make(), optax.scale(-1)), {})


def replicated(entry):
    return Entry(entry.name, lambda: optwd.replicated(entry.make()), {})


STACKED = [
    dataclasses.replace(
        entry,
        name=f"{entry.name}[stacked]",
        arguments={**entry.arguments, "stacked": "stack/0"},
    )
    for entry in ALL
    if entry.measures
]
MEASURING = (
    *map(subtracted, [*(entry for entry in ALL if entry.measures), *STACKED]),
    Entry("monitor", lambda: optwd.monitor(optwd.decay.linear(0.1), "decay"), {}),
    Entry("monitor_rounding", optwd.monitor_rounding, {}),
    Entry("monitor_rotation", lambda: optwd.monitor_rotation(0.1, 0.1), {}),
    Entry(
        "monitor_rotation[stacked]",
        lambda: optwd.monitor_rotation(0.1, 0.1, stacked="stack/0"),
        {},
    ),
)
UNSTACKED = [entry for entry in MEASURING if "stacked" not in entry.name]
ELEMENTWISE = (
    *(entry for entry in ALL if not entry.measures),
    bfloat16("adamw in bfloat16, compensated", optwd.compensate_rounding),
    bfloat16(
        "adamw in bfloat16, residual in int8",
        optwd.compensate_rounding,
        residual_dtype=jnp.int8,
    ),
    bfloat16("adamw in bfloat16, stochastic", optwd.round_stochastically, seed=0),
)
every_measuring = pytest.mark.parametrize("entry", MEASURING, ids=str)
every_axis_type = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)

LAYOUT = {  # data repeats, or joins fsdp on its axis; tensor is the other axis
    "kernel": ((16, 64), P("fsdp", "tensor")),
    "joint": ((16, 3), P(("data", "fsdp"))),
    "bias": ((64,), P("tensor")),
    "scale": ((5,), P()),
    "stack": [((3, 4, 6), P(None, "fsdp", "tensor")), ((), P())],
}


def layout(part):
    return jax.tree.map(lambda x: x[part], LAYOUT, is_leaf=lambda x: isinstance(x, tuple))


def on_mesh(axis_type):
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(axis_type,) * 3)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), layout(1))


def tree(seed, entry):
    rng, dtype = np.random.default_rng(seed), jnp.bfloat16 if entry.narrow else jnp.float32
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        layout(0),
        is_leaf=lambda x: isinstance(x, tuple),
    )


def trees(seed, entries, shardings=None):
    return [jax.device_put(tree(seed, entry), shardings) for entry in entries]


def program(entries):
    """`init` and one step of all entries: one program compiles sooner than forty."""
    optimizers = [entry.make() for entry in entries]

    def init(params):
        return [tx.init(p) for tx, p in zip(optimizers, params, strict=True)]

    def step(params, states, gradients):
        new_params, new_states = [], []
        each = zip(entries, optimizers, params, states, gradients, strict=True)
        for entry, tx, p, state, g in each:
            with jax.named_scope(f"<{entry}>"):  # to be found in the compiled program
                updates, state = tx.update(g, state, p)
                new_params.append(optax.apply_updates(p, updates))
                new_states.append(state)
        return new_params, new_states

    return init, step


@functools.cache
def run(entries, axis_type=None):
    """(params, states) before and after three steps, and the program's text."""
    init, step = program(entries)
    shardings = on_mesh(axis_type) if axis_type else None
    params = trees(0, entries, shardings)
    gradients = [trees(t + 1, entries, shardings) for t in range(3)]
    ends = [(params, jax.jit(init)(params))]
    compiled = jax.jit(step).lower(*ends[0], gradients[0]).compile()
    for g in gradients:
        ends.append(compiled(*ends[-1], g))  # which refuses a state that has moved
    return ends, compiled.as_text()


def collectives(text):
    found = re.compile(r" (all-|reduce-scatter|collective-|ragged-|send|recv)[\w-]*\(")
    return [line.strip() for line in text.splitlines() if found.search(line)]


NUMBER = r"[fs]32\[3?\](\{0\})?(, )?(/\*index=\d+\*/)?"
REDUCED_NUMBERS = re.compile(rf"%\S+ = \(?({NUMBER})+\)? all-reduce\(.*")


def assert_lives(transformation, state, params):
    """Every leaf lives where its parameter lives, and everywhere if it has none."""

    def everywhere(x):
        assert x.sharding.is_fully_replicated, x.sharding

    def with_parameter(x, p):
        if x.ndim == 0 or x.shape != p.shape:  # one number per leaf, or per matrix
            everywhere(x)
        else:
            assert x.sharding.is_equivalent_to(p.sharding, x.ndim), x.sharding

    optax.tree.map_params(
        transformation, with_parameter, state, params, transform_non_params=everywhere
    )


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def assert_close(got, want, tolerance, name=""):
    def close(a, b):
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=name)

    jax.tree.map(close, got, want)


def assert_within_2_ulp(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        eps = 0.0 if jnp.issubdtype(a.dtype, jnp.integer) else float(jnp.finfo(a.dtype).eps)
        a, b = np.float64(a), np.float64(b)
        ulp = eps * 2.0 ** (np.frexp(np.maximum(np.abs(a), np.abs(b)))[1] - 1)
        bad = ~np.isclose(a, b, rtol=0, atol=2 * ulp)
        assert not bad.any(), (a[bad], b[bad])


# --- where the state lives -----------------------------------------------------------


@every_axis_type
@pytest.mark.parametrize("how", ["eager", "jit", "out_shardings"])
def test_state_lives_where_its_parameters_live(axis_type, how):
    entries, shardings = ELEMENTWISE + MEASURING, on_mesh(axis_type)
    init, params = program(entries)[0], trees(0, entries, shardings)
    everywhere = NamedSharding(shardings["scale"].mesh, P())
    where = [
        optax.tree.map_params(
            entry.make(),
            lambda x, p: p.sharding if x.shape == p.shape else everywhere,
            state,
            p,
            transform_non_params=lambda _: everywhere,
        )
        for entry, state, p in zip(
            entries, jax.eval_shape(init, params), params, strict=True
        )
    ]
    if how != "eager":
        init = jax.jit(init, out_shardings=where if how == "out_shardings" else None)
    states = init(params)
    alone, n = init(trees(0, entries)), len(ELEMENTWISE)
    assert_equal(states[:n], alone[:n])
    assert_close(states[n:], alone[n:], 1e-6)  # sums in another order
    for entry, state, p in zip(entries, states, params, strict=True):
        assert_lives(entry.make(), state, p)


@every_axis_type
def test_one_transformation_alone_under_jit(axis_type):
    params = tree(0, MEASURING[0]) | {"frozen": jnp.arange(8)}
    shardings = on_mesh(axis_type)
    placed = jax.device_put(params, shardings | {"frozen": shardings["bias"]})
    for transformation in (
        optwd.scale_by_adam(),
        optwd.trace(0.9),
        optwd.compensate_rounding(optax.identity(), wide=True),
        optwd.decay.toward(params, 0.1),
        optwd.decay.toward_init(0.1),
    ):
        state = jax.jit(transformation.init)(placed)
        assert_lives(transformation, state, placed)
        assert_equal(state, transformation.init(params))


@every_axis_type
def test_init_of_members_and_of_shards(axis_type):
    kernel = on_mesh(axis_type)["kernel"]
    members = jax.device_put(jnp.ones((16, 64)), kernel)
    tx = optwd.scale_by_adam()
    mu = jax.jit(jax.vmap(tx.init))(members).mu
    assert mu.sharding.is_equivalent_to(kernel, 2)
    inside = jax.shard_map(
        lambda p: tx.init(p).mu,
        mesh=kernel.mesh,
        in_specs=P("fsdp"),
        out_specs=P("fsdp"),
        axis_names={"fsdp"},
    )
    mu = jax.jit(inside)(members)
    assert mu.sharding.is_equivalent_to(kernel, 2)
    np.testing.assert_array_equal(mu, np.zeros((16, 64)))


# --- what it computes ----------------------------------------------------------------


@every_axis_type
@pytest.mark.parametrize("i", range(len(ELEMENTWISE)), ids=[str(e) for e in ELEMENTWISE])
def test_elementwise_equals_one_device(axis_type, i):
    # 2 ulp: a multiplication and an addition may be one instruction in the body of a
    # loop and two in its tail, and a shard has other tails
    ends, alone = (run(ELEMENTWISE, where)[0][-1] for where in (axis_type, None))
    (params, state), want = ([x[i] for x in end] for end in (ends, alone))
    assert_within_2_ulp([params, state], want)
    if ELEMENTWISE[i].narrow:  # chances are the same on any number of devices
        assert_equal([params, state], want)
    shardings = on_mesh(axis_type)
    same = jax.tree.map(
        lambda p, s: p.sharding.is_equivalent_to(s, p.ndim), params, shardings
    )
    assert jax.tree.all(same), same
    assert_lives(ELEMENTWISE[i].make(), state, params)


@every_axis_type
def test_elementwise_needs_no_communication(axis_type):
    assert collectives(run(ELEMENTWISE, axis_type)[1]) == []


@every_axis_type
@every_measuring
def test_measuring_reduces_numbers_and_nothing_larger(entry, axis_type):
    ends, text = run((entry,), axis_type)
    # some ulp of 1: sums of up to 1024 squares in another order, then a difference, Λ
    assert_close(ends[-1], run((entry,))[0][-1], 1e-6)
    assert_lives(entry.make(), ends[-1][1][0], ends[-1][0][0])

    found = collectives(text)
    sharded = [s for s in jax.tree.leaves(on_mesh(axis_type)) if not s.is_fully_replicated]
    assert 0 < len(found) <= len(sharded)
    assert all(map(REDUCED_NUMBERS.fullmatch, found)), found


@pytest.mark.parametrize("entry", UNSTACKED, ids=str)
def test_measuring_needs_one_reduction_if_all_leaves_lie_alike(entry):
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    params = [{str(n): jnp.ones((8, n)) for n in range(1, 6)}]
    params = jax.device_put(params, NamedSharding(mesh, P("fsdp")))
    init, step = program((entry,))
    compiled = jax.jit(step).lower(params, jax.jit(init)(params), params).compile()
    assert len(collectives(compiled.as_text())) == 1


class TestVariants(chex.TestCase):
    """With and without jit, arrays of JAX and of NumPy, and pmap."""

    @chex.all_variants
    def test_every_variant_is_the_same(self):
        init, step = program([replicated(e) if e.measures else e for e in ALL])
        params, gradients = trees(0, ALL), trees(1, ALL)
        args = params, init(params), gradients
        got, want = self.variant(step)(*args), step(*args)
        # in one program a penalty is added to the gradient without a rounding between them
        for i, entry in enumerate(ALL):
            mine, alone = ([x[i] for x in end] for end in (got, want))
            assert_close(mine, alone, 2**-6 if entry.narrow else 2**-20, str(entry))


# --- out of the process --------------------------------------------------------------


def test_a_sharded_step_is_exported():
    """Written and read, it takes the same path and leaves every leaf where it was."""
    entries = (*UNSTACKED, *ELEMENTWISE[-2:])
    ends, _ = run(entries, AxisType.Explicit)
    gradients = [trees(t + 1, entries, on_mesh(AxisType.Explicit)) for t in range(3)]
    optwd.register_for_export(ends[0])
    restored = written_and_read(program(entries)[1], *ends[0], gradients[0])
    assert restored.nr_devices == 8
    there = jax.jit(restored.call)
    end = ends[0]
    for g, want in zip(gradients, ends[1:], strict=True):
        end = there(*end, g)
        assert_within_2_ulp(end, want)
    for entry, p, state in zip(entries, *end, strict=True):
        assert_lives(entry.make(), state, p)


# --- inside of shard_map -------------------------------------------------------------


def test_elementwise_inside_of_shard_map():
    shardings = on_mesh(AxisType.Auto)
    before, after, *_ = run(ELEMENTWISE, AxisType.Auto)[0]
    args = (*before, trees(1, ELEMENTWISE, shardings))
    specs = jax.tree.map(lambda x: x.sharding.spec, args)
    step = jax.shard_map(
        program(ELEMENTWISE)[1],
        mesh=shardings["scale"].mesh,
        in_specs=specs,
        out_specs=specs[:2],
    )
    got = jax.jit(step)(*args)
    for i, entry in enumerate(ELEMENTWISE):
        mine, want = ([x[i] for x in end] for end in (got, after))
        if entry.narrow:  # a shard draws the chances of its own places: up or down differs
            assert_close(mine, want, 2**-6)
        else:
            assert_within_2_ulp(mine, want)


@every_measuring
def test_measuring_inside_of_shard_map_is_right_or_refused(entry):
    mesh = on_mesh(AxisType.Auto)["scale"].mesh
    tx, params, gradients = entry.make(), tree(0, entry), tree(1, entry)
    state = tx.init(params)

    def update(spec, **options):
        inside = jax.shard_map(
            lambda g, p: tx.update(g, state, p),
            mesh=mesh,
            in_specs=(spec, spec),
            out_specs=(spec, P()),
            **options,
        )
        return jax.jit(inside)(gradients, params)

    assert_within_2_ulp(update(P()), jax.jit(tx.update)(gradients, state, params))
    name = entry.name.split("[")[0]
    with pytest.raises(
        ValueError, match=rf"^{name}.* \('fsdp',\) .* outside of it, under jit"
    ):
        update(jax.tree.map(lambda _: P(), params) | {"kernel": P("fsdp")})
    with pytest.raises(ValueError, match=rf"^{name}.* \('data', 'fsdp', 'tensor'\)"):
        update(P(), check_vma=False)
