"""Flax's examples: lm1b, with partitioned linen boxes, and Gemma, with nnx.

- 50 steps of their AdamW agree with NumPy to 1e-12, Gemma's through `nnx.Optimizer` too.
- Both decay every leaf; the differences from `masks.standard()`, leaf by leaf.
- Their set-up on a mesh works with ours, also where a leaf has one number as its state.

From google/flax at 18f8f31: examples/lm1b/{train,models,utils}.py and configs/default.py,
examples/gemma/{train,transformer,modules,layers}.py and configs/default.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optwd
from optwd import decay, masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD, ADAM = 0.0016, 0.1, {"b1": 0.9, "b2": 0.98, "eps": 1e-9}
WARMUP = 10
# linear from 0, then the inverse square root, in both examples
LR = PEAK * np.minimum(
    np.arange(common.STEPS) / WARMUP,
    np.sqrt(WARMUP / np.maximum(np.arange(common.STEPS), 1)),
)

NORM = "they have no mask; a norm's scale is no matrix, decay pulls it to 0 and not to 1"
BIAS = "they have no mask; a bias has no scale to keep in check"
EMBEDDING = "they have no mask; a rare row decays at every step and learns at few"
V, D, F, H, K = 9, 4, 6, 2, 3
_BLOCK = "decoder/encoderdecoderblock_0"
LM1B = {
    "decoder/Embed_0/embedding": ((V, D), True, False, EMBEDDING),
    "decoder/posembed_output/pos_embedding": ((1, 5, D), True, False, EMBEDDING),
    f"{_BLOCK}/LayerNorm_0/scale": ((D,), True, False, NORM),
    f"{_BLOCK}/LayerNorm_0/bias": ((D,), True, False, NORM),
    f"{_BLOCK}/MultiHeadDotProductAttention_0/query/kernel": ((D, H, K), True),
    f"{_BLOCK}/MultiHeadDotProductAttention_0/out/kernel": ((H, K, D), True),
    f"{_BLOCK}/MlpBlock_0/Dense_0/kernel": ((D, F), True),
    f"{_BLOCK}/MlpBlock_0/Dense_0/bias": ((F,), True, False, BIAS),
    "decoder/encoderdecoder_norm/scale": ((D,), True, False, NORM),
    "decoder/logitdense/kernel": ((D, V), True),
    "decoder/logitdense/bias": ((V,), True, False, BIAS),
}
GEMMA = {
    "embedder/embedding": ((V, D), True, False, EMBEDDING),
    "final_norm/scale": ((D,), True, False, NORM),
    "layers/0/attn/_query_norm/scale": ((K,), True, False, NORM),
    "layers/0/attn/attn_vec_einsum/kernel": ((H, K, D), True),
    "layers/0/attn/kv_einsum/kernel": ((2, 1, D, K), True),
    "layers/0/attn/q_einsum/kernel": ((H, D, K), True),
    "layers/0/mlp/down_proj/kernel": ((F, D), True),
    "layers/0/mlp/gate_proj/kernel": ((D, F), True),
    "layers/0/mlp/up_proj/kernel": ((D, F), True),
    "layers/0/pre_attention_norm/scale": ((D,), True, False, NORM),
}


def ours(mask=None):
    return optwd.adamw(common.schedule(LR), **ADAM, weight_decay=WD, mask=mask)


def constrained():
    kernels = masks.path("**/kernel")
    return optwd.with_weight_decay(optwd.adam(PEAK), decay.constrained(0.1, kernels))


def theirs(path, theta, gradients):
    for eta, u in zip(LR, reference.adam(gradients, **ADAM), strict=True):
        theta = theta - eta * (u + WD * theta)
        yield theta


# --- lm1b ----------------------------------------------------------------------------


def boxed(only=None):
    """Every leaf in the box of `nn.with_logical_partitioning`, each axis with a name."""
    names = ("embed", "mlp", None, None)
    params = common.tree(LM1B, only)
    return jax.tree.map(lambda x: nn.LogicallyPartitioned(x, names[: x.ndim]), params)


def test_lm1b():
    run = common.tree(LM1B, {p for p in LM1B if "decoder/l" in p or "norm" in p})
    assert common.largest_difference(ours(), run, theirs) < 1e-12


def test_lm1b_masks():
    for params in (common.tree(LM1B), boxed()):  # the boxes add nothing to a path
        assert common.decisions(None, params) == common.theirs(LM1B)
        assert common.decisions(masks.standard(), params) == common.standard(LM1B)


@pytest.mark.parametrize(
    "optimizer", [ours(masks.standard()), constrained()], ids=["adamw", "constrained"]
)
def test_lm1b_set_up(optimizer):
    """`utils.setup_initial_state`: the state is made where its specs say."""

    def make():
        params = boxed({"decoder/logitdense/kernel", "decoder/encoderdecoder_norm/scale"})
        return TrainState.create(apply_fn=boxed, params=params, tx=optimizer)

    mesh = jax.make_mesh((1,), ("fsdp",))
    rules = (("embed", "fsdp"), ("mlp", None))
    specs = nn.get_partition_spec(jax.eval_shape(make))
    state = jax.jit(make, out_shardings=nn.logical_to_mesh_sharding(specs, mesh, rules))()
    kernel = state.params["decoder"]["logitdense"]["kernel"].value
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", None)


# --- Gemma ---------------------------------------------------------------------------


class _RMSNorm(nnx.Module):
    def __init__(self, features, **metadata):
        self.scale = nnx.Param(jnp.zeros(features), **metadata)


class Gemma(nnx.Module):
    """Their module names around the layers of Flax, annotated for a mesh as theirs."""

    def __init__(self):
        rngs, norm = nnx.Rngs(0), {"out_sharding": ("fsdp",)}
        given = {"param_dtype": jnp.float64, "rngs": rngs}

        def kernel(n):
            sharding = ("fsdp",) + (None,) * (n - 1)
            init = nnx.initializers.ones
            return {"kernel_init": init, "kernel_metadata": {"out_sharding": sharding}}

        def einsum(*shape):
            text = "abcd"[: len(shape)] + ",d->a"
            return nnx.Einsum(text, shape, **kernel(len(shape)), **given)

        def linear(n_in, n_out):
            return nnx.Linear(n_in, n_out, use_bias=False, **kernel(2), **given)

        block = nnx.Module()
        block.pre_attention_norm = _RMSNorm(D, **norm)
        block.attn, block.mlp = nnx.Module(), nnx.Module()
        block.attn.q_einsum, block.attn.kv_einsum = einsum(H, D, K), einsum(2, 1, D, K)
        block.attn.attn_vec_einsum = einsum(H, K, D)
        block.attn._query_norm = _RMSNorm(K)
        block.mlp.gate_proj, block.mlp.up_proj = linear(D, F), linear(D, F)
        block.mlp.down_proj = linear(F, D)
        self.embedder = nnx.Embed(V, D, embedding_init=nnx.initializers.ones, **given)
        self.layers = nnx.List([block])
        self.final_norm = _RMSNorm(D, **norm)


@pytest.fixture
def mesh():
    with jax.set_mesh(jax.make_mesh((1,), ("fsdp",))):
        yield


def test_gemma(mesh):
    model = nnx.Dict(mlp=Gemma().layers[0].mlp, final_norm=_RMSNorm(D))
    optimizer = nnx.Optimizer(model, ours(), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=(common.STEPS, *x.shape)) for x in jax.tree.leaves(params)]

    @nnx.jit
    def step(model, optimizer, gradients):
        gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
        optimizer.update(model, gradients)

    start = [np.asarray(x) for x in jax.tree.leaves(params)]
    for t in range(common.STEPS):
        step(model, optimizer, [g[t] for g in gradients])
    end = jax.tree.leaves(nnx.state(model, nnx.Param))
    for theta, gs, actual in zip(start, gradients, end, strict=True):
        *_, expected = theirs(None, theta, gs)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_gemma_masks(mesh):
    params = nnx.state(Gemma(), nnx.Param)
    shapes = {path: row[0] for path, row in sorted(GEMMA.items())}
    assert [x.shape for x in jax.tree.leaves(params)] == list(shapes.values())
    assert common.decisions(None, params) == common.theirs(GEMMA)
    assert common.decisions(masks.standard(), params) == common.standard(GEMMA)


def test_gemma_set_up_with_one_number_per_leaf(mesh):
    model = nnx.Dict(mlp=Gemma().layers[0].mlp)
    assert nnx.Optimizer(model, constrained(), wrt=nnx.Param).step[...] == 0
