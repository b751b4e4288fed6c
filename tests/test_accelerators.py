"""One step, compiled for accelerators that need not be there; JAX stays on the CPU.

For eight chips of a TPU v5e, sharded (``pip install libtpu``):

- moments of `jit(init)` live where their parameters live, also after the TPU's compiler;
- a step needs no communication and, donated, writes in place: no temporary for adamw;
- what measures needs one reduction.

For an H200 (``pip install jax-cuda12-plugin``, of the version of JAX):

- a donated step of whatever is elementwise is one kernel a leaf, without temporaries.

For both: it is one pass over each leaf, in every dtype and with compensated weights, of as
many bytes as it has to read and write: 28 a parameter in float32, 14 all in bfloat16. What
takes norms reads each leaf once more, to measure it.
What is not installed is skipped.
"""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import optwd
from tests.registry import ALL

MOMENTS = {"mu_dtype": jnp.bfloat16, "nu_dtype": jnp.bfloat16}
SHAPES = {
    "wte": {"embedding": (8192, 768)},
    "h_0": {"kernel": (768, 3072), "bias": (3072,)},
    "h_1": {"kernel": (3072, 768), "bias": (768,), "scale": (768,)},
}


def adamw(**arguments):
    mask = optwd.masks.standard()
    return optwd.adamw(1e-3, weight_decay=0.1, mask=mask, **arguments)


def in_eight_bits(optimizer):
    return optwd.compensate_rounding(optimizer, residual_dtype=jnp.int8)


def stochastic(optimizer):
    return optwd.round_stochastically(optimizer, 0)


@pytest.fixture(scope="module")
def fsdp():
    pytest.importorskip("libtpu")
    with pytest.MonkeyPatch.context() as environment:  # of a machine that has no TPU
        environment.setenv("TPU_SKIP_MDS_QUERY", "1")
        environment.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
        environment.setenv("TPU_WORKER_HOSTNAMES", "localhost")
        chips = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    return NamedSharding(Mesh(np.array(chips), ("fsdp",)), PartitionSpec("fsdp"))


H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 4800000000000
  device_memory_size: 151397597184
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


@pytest.fixture(scope="module")
def h200():
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        pytest.skip("JAX's CUDA plugin is not installed")
    one = {"target_config": H200, "topology": "1x1x1"}
    return SingleDeviceSharding(
        topologies.get_topology_desc("h200", "cuda", **one).devices[0]
    )


def tree(sharding, dtype, shapes):
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def placed(optimizer, params):
    """The shapes of its state, each where its parameter lives, and numbers everywhere."""
    place = jax.tree.leaves(params)[0].sharding
    everywhere = place
    if not place.is_fully_replicated:
        everywhere = NamedSharding(place.mesh, PartitionSpec())

    def at(sharding, x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return optax.tree.map_params(
        optimizer,
        lambda x, p: at(p.sharding if x.shape == p.shape else everywhere, x),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda x: at(everywhere, x),
    )


def compiled(optimizer, params, **options):
    """One donated step."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, placed(optimizer, params), params
    )
    return lowered.compile(compiler_options=options)


def local_size(params):
    """Elements on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(params))


# --- a TPU ---------------------------------------------------------------------------

CONSTRAINED = optwd.with_weight_decay(optwd.adam(1e-3), optwd.decay.constrained(0.1))
TO_NORM = optwd.with_weight_decay(optwd.adam(1e-3), optwd.decay.to_norm())
ROTATION = optax.chain(adamw(), optwd.monitor_rotation(1e-3, 0.1))
# name: dtype, optimizer, reductions, bytes a parameter in which leaves are staged
STEPS = {
    "float32": (jnp.float32, adamw(), 0, 0),
    "moments in bfloat16": (jnp.float32, adamw(**MOMENTS), 0, 0),
    "all in bfloat16": (jnp.bfloat16, adamw(**MOMENTS), 0, 0),
    "compensated": (jnp.bfloat16, optwd.compensate_rounding(adamw()), 0, 0),
    "residual in int8": (jnp.bfloat16, in_eight_bits(adamw()), 0, 0),
    "stochastic": (jnp.bfloat16, stochastic(adamw()), 0, 1),
    "constrained": (jnp.float32, CONSTRAINED, 1, 2),
    "monitored": (jnp.float32, optwd.monitor(adamw(), "adamw"), 1, 2),
    "rotation": (jnp.float32, ROTATION, 1, 8),
    "to_norm": (jnp.float32, TO_NORM, 1, 4),
}


@pytest.mark.parametrize(
    ("dtype", "optimizer", "reductions", "temporary"), STEPS.values(), ids=STEPS
)
def test_a_sharded_step(fsdp, dtype, optimizer, reductions, temporary):
    params = tree(fsdp, dtype, SHAPES)
    where = jax.jit(optimizer.init).lower(params).compile().output_shardings
    state = placed(optimizer, params)
    for here, x in zip(*map(jax.tree.leaves, (where, state)), strict=True):
        assert here.is_equivalent_to(x.sharding, x.ndim)
    step = compiled(optimizer, params)
    memory, text = step.memory_analysis(), step.as_text()
    assert memory.temp_size_in_bytes <= temporary * local_size(params)
    written = memory.output_size_in_bytes
    assert memory.alias_size_in_bytes == pytest.approx(written, rel=1e-3)
    found = re.findall(
        r" ((?:all-|collective-|ragged-|reduce-s)[\w-]*?)(?:-start)?\(", text
    )
    assert found == ["all-reduce"] * reductions


# --- both ----------------------------------------------------------------------------

PASSES = {  # what has to be read and written, in bytes a parameter
    "float32": (jnp.float32, adamw(), 28),
    "moments in bfloat16": (jnp.float32, adamw(**MOMENTS), 20),
    "weights in bfloat16": (jnp.bfloat16, adamw(), 22),
    "all in bfloat16": (jnp.bfloat16, adamw(**MOMENTS), 14),
    "compensated": (jnp.bfloat16, optwd.compensate_rounding(adamw()), 26),
    "all compensated": (jnp.bfloat16, optwd.compensate_rounding(adamw(**MOMENTS)), 18),
    "residual in int8": (jnp.bfloat16, in_eight_bits(adamw()), 24),
    "all, residual in int8": (jnp.bfloat16, in_eight_bits(adamw(**MOMENTS)), 16),
    "stochastic": (jnp.bfloat16, stochastic(adamw()), 22),
}
every_pass = pytest.mark.parametrize(
    ("dtype", "optimizer", "expected"), PASSES.values(), ids=PASSES
)


@every_pass
def test_one_pass_on_a_tpu(fsdp, dtype, optimizer, expected):
    params = tree(fsdp, dtype, {"kernel": (3072, 768)})
    step = compiled(optimizer, params)
    read_and_written = step.cost_analysis()["bytes accessed"] / local_size(params)
    slack = 0.05 if optimizer is PASSES["stochastic"][1] else 0.01  # its random words
    assert read_and_written == pytest.approx(expected, rel=slack)


def kernels(step):
    """The bytes that each kernel of a GPU's program reads and writes."""
    text, each, found = step.as_text(), {}, []
    sizes = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
    line = re.compile(r"^ +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)", re.M)
    for name, kind, operation, operands in line.findall(text[text.index("\nENTRY") :]):
        each[name] = sum(
            sizes[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", kind)
        )
        if operation not in ("parameter", "tuple", "get-tuple-element", "bitcast"):
            read = sum(each[operand] for operand in re.findall(r"%([\w.-]+)", operands))
            found.append(read + each[name])
    return found


NO_GRAPH = {"xla_gpu_enable_command_buffer": ""}  # would hide the kernels behind one call


@every_pass
def test_one_pass_on_a_gpu(h200, dtype, optimizer, expected):
    params = tree(h200, dtype, SHAPES)
    step = compiled(optimizer, params, **NO_GRAPH)
    moved = sum(kernels(step)) / local_size(params)
    assert moved == pytest.approx(expected, rel=1e-3)
    assert step.memory_analysis().temp_size_in_bytes <= 1e-3 * local_size(params)


MEASURED = {  # bytes a parameter in float32: one pass to measure, one to update
    # weights; then weights and updates, weights
    "constrained": (optax.chain(optwd.decay.constrained(0.1), optax.scale(-1)), 4 + 12),
    # weights and updates, both; weights again
    "to_norm": (optax.chain(optwd.decay.to_norm(), optax.scale(-1)), 8 + 12),
    "scale_by_weight_norm": (optwd.scale_by_weight_norm(), 8 + 12),
}
every_measured = pytest.mark.parametrize(
    ("transformation", "expected"), MEASURED.values(), ids=MEASURED
)


@every_measured
def test_two_passes_on_a_tpu(fsdp, transformation, expected):
    params = tree(fsdp, jnp.float32, {"kernel": (8 * 8192, 8192)})  # too large for its VMEM
    step = compiled(transformation, params)
    moved = step.cost_analysis()["bytes accessed"] / local_size(params)
    assert moved == pytest.approx(expected, rel=1e-3)
    assert step.memory_analysis().temp_size_in_bytes <= 1e-2 * local_size(params)


@every_measured
def test_two_passes_on_a_gpu(h200, transformation, expected):
    params = tree(h200, jnp.float32, SHAPES)
    step = compiled(transformation, params, **NO_GRAPH)
    moved = sum(kernels(step)) / local_size(params)
    assert moved == pytest.approx(expected, rel=2e-3)
    assert step.memory_analysis().temp_size_in_bytes <= 1e-2 * local_size(params)


def test_rotation_is_measured_while_the_update_is_added(fsdp):
    params = tree(fsdp, jnp.float32, {"kernel": (8 * 8192, 8192)})
    step = compiled(optwd.monitor_rotation(0.1, 0.1), params)
    moved = step.cost_analysis()["bytes accessed"] / local_size(params)
    assert moved == pytest.approx(12, rel=1e-3)  # what adding it would read and write


def test_rotation_is_measured_in_one_pass_on_a_gpu(h200):
    params = tree(h200, jnp.float32, {"kernel": (8192, 768)})
    step = compiled(optwd.monitor_rotation(0.1, 0.1), params, **NO_GRAPH)
    moved = np.array(kernels(step)) / local_size(params)
    # measured and added in one kernel; then a copy, since the weights are donated
    np.testing.assert_allclose(moved[moved > 0.1], [12, 8], rtol=1e-2)


# --- a GPU ---------------------------------------------------------------------------

ELEMENTWISE = [e for e in ALL if not e.measures]


@pytest.mark.parametrize("entry", ELEMENTWISE, ids=str)
def test_one_kernel_a_leaf(h200, entry):
    params = tree(h200, jnp.bfloat16 if entry.narrow else jnp.float32, SHAPES)
    step = compiled(entry.make(), params, **NO_GRAPH)
    of_leaves = [moved for moved in kernels(step) if moved > 1000]
    assert len(of_leaves) <= len(jax.tree.leaves(params))
    memory = step.memory_analysis()
    ends = memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert sum(of_leaves) <= 1.001 * ends  # all is read or written once, but for numbers
    assert memory.temp_size_in_bytes <= 1e-3 * local_size(params)
