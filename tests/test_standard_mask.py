"""`masks.standard()` is right leaf by leaf.

- On linen, nnx, Haiku and Equinox: an MLP, a ConvNet, a transformer block, an LSTM; alone
  and as a stack, where every leaf has an axis more and the decisions stay the same.
- On what has tricked other rules: embeddings and tokens, tied weights, WeightNorm, LoRA in
  a partition, norms over two axes, biases with three.
- On the names of matrices that large codebases keep without a module, and on compound
  names of classes and parameters, of which only the last word counts.
- What it cannot know is one error that lists every such leaf and the patterns that settle
  them, unless another mask decides.
- It costs little of a trace, and works on what a sub-optimizer sees.

The table lists the decayed leaves, then the others, each list by full path.
"""

import cProfile
import pstats

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optwd
from optwd import _paths, masks
from optwd.masks import MaskError, path, standard
from tests.helpers import cases

KEY = jax.random.key(0)
TEXT, IMAGE = jnp.ones((2, 5, 8)), jnp.ones((2, 6, 6, 8))


def decisions(params):
    """The paths of the leaves that decay, of those that do not, and of the undecided."""
    rows = masks.explain(standard(), params)
    return tuple(
        sorted(leaf.path for leaf, factor, _ in rows if factor == wanted)
        for wanted in (1.0, 0.0, None)
    )


def test_the_reason_is_the_answer_that_decided():
    square = jnp.ones((2, 2))
    params = {
        "attn": {"weight": square},
        "ids": jnp.ones((2, 2), int),
        "kernel": square,
        "lora_a": square,
        "mixer": {"weight": square},
        "scale": square,
        "temperature": jnp.ones(()),
        "v": jnp.ones(2),
    }
    assert [why for *_, why in masks.explain(standard(), params)] == [
        "in attn",
        "not floating point",
        "named kernel",
        "LoRA",
        "undecided",
        "named scale",
        "scalar",
        "vector",
    ]


# --- linen ---------------------------------------------------------------------------


class _LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(8)(nn.PReLU()(nn.Dense(16)(x))), None


class _LinenConv(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x = nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x))
        x = nn.GroupNorm(2)(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x))
        return nn.ConvTranspose(8, (1, 1))(x), None


class _LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        x += nn.MultiHeadDotProductAttention(2, normalize_qk=True, name="a")(
            nn.LayerNorm()(x)
        )
        return x + nn.Dense(8, use_bias=False)(nn.Dense(16)(nn.RMSNorm()(x))), None


class _LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.RNN(nn.OptimizedLSTMCell(8, name="cell"))(x), None


def linen(module, x):
    return jax.eval_shape(module().init, KEY, x)["params"]


def linen_scan(module, x):
    stack = nn.scan(module, variable_axes={True: 0}, split_rngs={"params": True}, length=3)
    return jax.eval_shape(stack().init, KEY, x)["params"]


# --- nnx -----------------------------------------------------------------------------


class _NnxMLP(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.act = nnx.PReLU()


class _NnxConv(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.depthwise = nnx.Conv(
            8, 8, (3, 3), feature_group_count=8, use_bias=False, rngs=rngs
        )
        self.gn = nnx.GroupNorm(8, 2, rngs=rngs)


class _NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.ln = nnx.LayerNorm(8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 8, normalize_qk=True, decode=False, rngs=rngs
        )
        self.rms = nnx.RMSNorm(8, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, use_bias=False, rngs=rngs)
        )


class _NnxLSTM(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 8, rngs=rngs), rngs=rngs)


def nnx_alone(module):
    return nnx.state(nnx.eval_shape(lambda: module(nnx.Rngs(0))), nnx.Param)


def nnx_vmap(module):
    stack = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: module(rngs)))
    return nnx.state(nnx.eval_shape(lambda: stack(nnx.Rngs(0))), nnx.Param)


# --- Haiku ---------------------------------------------------------------------------


def haiku_mlp(hk, x):
    return hk.nets.MLP([16, 8])(x)


def haiku_conv(hk, x):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), is_training=True)
    return hk.GroupNorm(2)(hk.DepthwiseConv2D(1, 3)(x))


def haiku_block(hk, x):
    h = hk.LayerNorm(-1, True, True)(x)
    w_init = hk.initializers.VarianceScaling()
    x += hk.MultiHeadAttention(2, 4, w_init=w_init)(h, h, h)
    return x + hk.Linear(8, with_bias=False)(hk.Linear(16)(hk.RMSNorm(-1)(x)))


def haiku_lstm(hk, x):
    core = hk.LSTM(8)
    return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]


def haiku(function, x):
    hk = pytest.importorskip("haiku")
    init = hk.transform_with_state(lambda x: function(hk, x)).init
    return jax.eval_shape(init, KEY, x)[0]


def haiku_stack(function, x):
    hk = pytest.importorskip("haiku")

    def stacked(x):
        return hk.experimental.layer_stack(3, name="stack")(lambda x: function(hk, x))(x)

    params = jax.eval_shape(hk.transform_with_state(stacked).init, KEY, x)[0]
    return {module.removeprefix("stack/"): leaves for module, leaves in params.items()}


# --- Equinox -------------------------------------------------------------------------


def equinox_models():
    eqx = pytest.importorskip("equinox")

    class MLP(eqx.Module):
        mlp: eqx.nn.MLP
        act: eqx.nn.PReLU

        def __init__(self, key):
            self.mlp, self.act = eqx.nn.MLP(8, 8, 16, 1, key=key), eqx.nn.PReLU()

    class Conv(eqx.Module):
        conv: eqx.nn.Conv2d
        bn: eqx.nn.BatchNorm
        depthwise: eqx.nn.Conv2d
        gn: eqx.nn.GroupNorm

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(8, 4, 3, key=key)
            self.bn = eqx.nn.BatchNorm(4, "batch", mode="batch")
            self.depthwise = eqx.nn.Conv2d(4, 4, 3, groups=4, use_bias=False, key=key)
            self.gn = eqx.nn.GroupNorm(2, 4)

    class Block(eqx.Module):
        first: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        second: eqx.nn.RMSNorm
        up: eqx.nn.Linear
        down: eqx.nn.Linear

        def __init__(self, key):
            self.first = eqx.nn.LayerNorm(8)
            self.attention = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=key)
            self.second = eqx.nn.RMSNorm(8, use_bias=False)
            self.up = eqx.nn.Linear(8, 16, key=key)
            self.down = eqx.nn.Linear(16, 8, use_bias=False, key=key)

    class LSTM(eqx.Module):
        cell: eqx.nn.LSTMCell

        def __init__(self, key):
            self.cell = eqx.nn.LSTMCell(8, 8, key=key)

    return eqx, {"mlp": MLP, "conv": Conv, "block": Block, "lstm": LSTM}


def equinox(name):
    eqx, models = equinox_models()
    return eqx.filter_eval_shape(lambda: eqx.filter(models[name](KEY), eqx.is_array))


def equinox_vmap(name):
    eqx, models = equinox_models()
    keys = jax.random.split(KEY, 3)
    stack = eqx.filter_vmap(models[name])
    return eqx.filter_eval_shape(lambda: eqx.filter(stack(keys), eqx.is_array))


# --- the table -----------------------------------------------------------------------

# model: (alone, stacked, argument), decayed, not decayed
MODELS = {
    "linen mlp": (
        (linen, linen_scan, (_LinenMLP, TEXT)),
        "Dense_0/kernel Dense_1/kernel",
        "Dense_0/bias Dense_1/bias PReLU_0/negative_slope",
    ),
    "linen conv": (
        (linen, linen_scan, (_LinenConv, IMAGE)),
        "ConvTranspose_0/kernel Conv_0/kernel Conv_1/kernel",
        """BatchNorm_0/bias BatchNorm_0/scale ConvTranspose_0/bias Conv_0/bias
        GroupNorm_0/bias GroupNorm_0/scale""",
    ),
    "linen block": (
        (linen, linen_scan, (_LinenBlock, TEXT)),
        """Dense_0/kernel Dense_1/kernel
        a/key/kernel a/out/kernel a/query/kernel a/value/kernel""",
        """Dense_1/bias LayerNorm_0/bias LayerNorm_0/scale RMSNorm_0/scale
        a/key/bias a/key_ln/scale a/out/bias a/query/bias a/query_ln/scale a/value/bias""",
    ),
    "linen lstm": (
        (linen, linen_scan, (_LinenLSTM, TEXT)),
        """cell/hf/kernel cell/hg/kernel cell/hi/kernel cell/ho/kernel
        cell/if/kernel cell/ig/kernel cell/ii/kernel cell/io/kernel""",
        "cell/hf/bias cell/hg/bias cell/hi/bias cell/ho/bias",
    ),
    "nnx mlp": (
        (nnx_alone, nnx_vmap, (_NnxMLP,)),
        "layers/0/kernel layers/1/kernel",
        "act/negative_slope layers/0/bias layers/1/bias",
    ),
    "nnx conv": (
        (nnx_alone, nnx_vmap, (_NnxConv,)),
        "conv/kernel depthwise/kernel",
        "bn/bias bn/scale conv/bias gn/bias gn/scale",
    ),
    "nnx block": (
        (nnx_alone, nnx_vmap, (_NnxBlock,)),
        """attention/key/kernel attention/out/kernel attention/query/kernel
        attention/value/kernel mlp/layers/0/kernel mlp/layers/1/kernel""",
        """attention/key/bias attention/key_ln/scale attention/out/bias attention/query/bias
        attention/query_ln/scale attention/value/bias ln/bias ln/scale mlp/layers/0/bias
        rms/scale""",
    ),
    "nnx lstm": (
        (nnx_alone, nnx_vmap, (_NnxLSTM,)),
        "rnn/cell/dense_h/kernel rnn/cell/dense_i/kernel",
        "rnn/cell/dense_h/bias",
    ),
    "haiku mlp": (
        (haiku, haiku_stack, (haiku_mlp, TEXT)),
        "mlp/~/linear_0/w mlp/~/linear_1/w",
        "mlp/~/linear_0/b mlp/~/linear_1/b",
    ),
    "haiku conv": (
        (haiku, haiku_stack, (haiku_conv, IMAGE)),
        "conv2_d/w depthwise_conv2_d/w",
        """batch_norm/offset batch_norm/scale conv2_d/b depthwise_conv2_d/b
        group_norm/offset group_norm/scale""",
    ),
    "haiku block": (
        (haiku, haiku_stack, (haiku_block, TEXT)),
        """linear/w linear_1/w multi_head_attention/key/w multi_head_attention/linear/w
        multi_head_attention/query/w multi_head_attention/value/w""",
        """layer_norm/offset layer_norm/scale linear_1/b multi_head_attention/key/b
        multi_head_attention/linear/b multi_head_attention/query/b
        multi_head_attention/value/b rms_norm/scale""",
    ),
    "haiku lstm": (
        (haiku, haiku_stack, (haiku_lstm, TEXT)),
        "lstm/linear/w",
        "lstm/linear/b",
    ),
    "equinox mlp": (
        (equinox, equinox_vmap, ("mlp",)),
        "mlp/layers/0/weight mlp/layers/1/weight",
        "act/negative_slope mlp/layers/0/bias mlp/layers/1/bias",
    ),
    "equinox conv": (
        (equinox, equinox_vmap, ("conv",)),
        "conv/weight depthwise/weight",
        """bn/batch_counter/init bn/batch_state_index/init/0 bn/batch_state_index/init/1
        bn/bias bn/weight conv/bias gn/bias gn/weight""",
    ),
    "equinox block": (
        (equinox, equinox_vmap, ("block",)),
        """attention/key_proj/weight attention/output_proj/weight
        attention/query_proj/weight attention/value_proj/weight down/weight up/weight""",
        "attention/query_proj/bias first/bias first/weight second/weight up/bias",
    ),
    "equinox lstm": (
        (equinox, equinox_vmap, ("lstm",)),
        "cell/weight_hh cell/weight_ih",
        "cell/bias",
    ),
}


@pytest.mark.parametrize("stacked", cases({"alone": False, "stacked": True}, {"stacked"}))
@pytest.mark.parametrize("model", MODELS)
def test_models(model, stacked):
    (*build, arguments), decayed, others = MODELS[model]
    params = build[stacked](*arguments)
    assert decisions(params) == (decayed.split(), others.split(), [])
    if stacked:  # or the stack would not be one
        assert not any(leaf.shape == () for leaf in _paths.leaves(params))
    if "dict" in type(params).__name__:  # what jax.tree.map makes of it is the same
        assert decisions(jax.tree.map(lambda x: x, params)) == decisions(params)


# --- what has tricked other rules ----------------------------------------------------


def test_embeddings_positions_and_tokens_in_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embed = nn.Embed(10, 8)
            x = embed(tokens) + self.param("pos_embedding", nn.initializers.ones, (1, 5, 8))
            x += self.param("cls", nn.initializers.ones, (1, 1, 8))
            x += self.param("mask_token", nn.initializers.ones, (1, 1, 8))
            x = nn.Conv(8, (4,), name="patch_embedding")(x)
            return embed.attend(nn.LayerNorm()(x))  # tied

    params = jax.eval_shape(Model().init, KEY, jnp.ones((2, 5), int))["params"]
    assert decisions(params) == (
        ["patch_embedding/kernel"],
        [
            "Embed_0/embedding",
            "LayerNorm_0/bias",
            "LayerNorm_0/scale",
            "cls",
            "mask_token",
            "patch_embedding/bias",
            "pos_embedding",
        ],
        [],
    )


def test_embeddings_in_nnx_and_haiku():
    assert decisions(nnx.state(nnx.Embed(9, 8, rngs=nnx.Rngs(0)))) == (
        [],
        ["embedding"],
        [],
    )

    hk = pytest.importorskip("haiku")

    def model(tokens):
        embed = hk.Embed(10, 8)
        x = embed(tokens) + hk.get_parameter("pos_embed", (1, 5, 8), init=jnp.ones)
        return hk.Bias(bias_dims=[1, 2])(x) @ embed.embeddings.T  # tied

    params = jax.eval_shape(hk.transform(model).init, KEY, jnp.ones((2, 5), int))
    assert decisions(params) == ([], ["bias/b", "embed/embeddings", "~/pos_embed"], [])


def test_equinox_weights_go_by_the_class_of_their_module():
    eqx = pytest.importorskip("equinox")

    class Model(eqx.Module):
        a: eqx.nn.Embedding
        b: eqx.nn.LayerNorm
        c: eqx.nn.Conv2d
        d: eqx.nn.WeightNorm
        e: eqx.nn.Shared

    linear = eqx.nn.Linear(8, 10, key=KEY)
    embedding = eqx.nn.Embedding(10, 8, key=KEY)
    model = Model(
        a=embedding,
        b=eqx.nn.LayerNorm((3, 4), use_bias=False),
        c=eqx.nn.Conv2d(4, 4, 1, key=KEY),
        d=eqx.nn.WeightNorm(linear),
        e=eqx.nn.Shared((embedding, linear), lambda t: t[1].weight, lambda t: t[0].weight),
    )
    params = eqx.filter(model, eqx.is_inexact_array)
    assert (params.b.weight.shape, params.c.bias.shape) == ((3, 4), (4, 1, 1))
    assert decisions(params) == (
        ["c/weight", "d/layer/weight"],
        [
            "a/weight",
            "b/weight",
            "c/bias",
            "d/g",
            "d/layer/bias",
            "e/pytree/0/weight",
            "e/pytree/1/bias",
        ],
        [],
    )


def test_weights_without_classes_go_by_bias_and_module_name():
    def shape(*axes):
        return jax.ShapeDtypeStruct(axes, jnp.float32)

    params = {
        "anything": {"weight": shape(3, 4, 2), "bias": shape(3, 4)},
        "whatever": {"weight": shape(3, 4), "bias": shape(3, 4)},
        "out_proj": {"weight": shape(4, 4)},
        "norm1": {"weight": shape(3, 4)},
        "layers": [
            {"attention": {"in_proj_weight": shape(4, 4), "in_proj_bias": shape(4)}}
        ],
        "tok_embeddings": {"weight": shape(4, 4)},
        "rnn": {"weight_hh_l0": shape(4, 4)},
        "mixer": {"weight": shape(3, 4)},
        "proj_norm": {"weight": shape(3, 4)},
        "post_attention_layernorm": {"weight": shape(3, 4)},
        "token_mixer": {"weight": shape(3, 4)},
        "c_q": {"weight": shape(3, 4)},
        "proj_out": {"weight": shape(3, 4)},
        "w1": {"weight": shape(3, 4)},
        "A_log": shape(3, 4),
    }
    assert decisions(params) == (
        [
            "anything/weight",
            "c_q/weight",
            "layers/0/attention/in_proj_weight",
            "out_proj/weight",
            "proj_out/weight",
            "rnn/weight_hh_l0",
            "w1/weight",
        ],
        [
            "anything/bias",
            "layers/0/attention/in_proj_bias",
            "norm1/weight",
            "post_attention_layernorm/weight",
            "proj_norm/weight",
            "tok_embeddings/weight",
            "whatever/bias",
            "whatever/weight",
        ],
        ["A_log", "mixer/weight", "token_mixer/weight"],
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # the last word says what it is
        *((name, None) for name in ("TokenMixer", "ScaleNet", "ClsFuse", "PosFFN")),
        *((name, None) for name in ("NormFreeBlock", "EmbeddingRouter", "Bnet", "Model")),
        *(
            (name, True)
            for name in ("TokenLinear", "NormAttention", "MoELinear", "QKVProj")
        ),
        *((name, True) for name in ("Conv2d", "ConvTranspose1d", "LayerNormMLP", "LMHead")),
        *(
            (name, False)
            for name in ("AttentionNorm", "RmsNorm", "BatchNorm2d", "LayerScale")
        ),
        *((name, False) for name in ("TokenEmbedding", "LinearNorm", "LayerNormalization")),
    ],
)
def test_the_weight_of_a_class_goes_by_its_last_word(name, expected):
    eqx = pytest.importorskip("equinox")
    holder = type(name, (eqx.Module,), {"__annotations__": {"weight": jax.Array}})
    own = type(f"{name}Mixture", (holder,), {})  # says nothing itself, its base may
    for kind in (holder, own):
        [(_, factor, _)] = masks.explain(standard(), {"x": kind(jnp.ones((3, 4)))})
        assert factor == expected


RAW = {
    True: """wi wi_0 wi_1 wo wi_0_weight wi_weight wo_weight gate_weight gating_einsum
    linear mm_input_projection/w w W w1 W_q w_out kernel_q g_kernel kernel_in proj
    in_proj_weight weight_ih_l0_reverse kernel_lora_a kernel_lora_b w_lora_a w_lora_b lora_a
    lora_b lora/b gating_einsum_lora_a gating_einsum_lora_b linear_lora_a linear_lora_b
    lora_A/weight""",
    False: """wi_0_bias wo_bias gate_bias u_bias bias_ih_l0 b b_q probe cls mask_token
    tape_tokens pos_embedding rel_pos_h rel_pos_w position_bias embedding_table level_embed
    positional_embedding_vlm embed_tokens_per_layer pos_emb_param per_expert_scale scale_2
    gamma_1 q_norm res_beta moving_mean moving_variance weight_g lora_scale lora/bias
    kernel_scale norm_weight lora_embedding_A lora_embedding_B""",
    None: """A_log B C D res_alpha hc_fn sinks layer_scalar gate mixer toeplitz_params
    per_dim_scale/param weight_mixer token_fuse w_b exploration""",
}


@pytest.mark.parametrize("expected", RAW)
def test_raw_parameters_go_by_their_last_word(expected):
    for name in RAW[expected].split():
        params = {"feed_forward": {}}
        node = params["feed_forward"]
        *modules, leaf = name.split("/")
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = jnp.ones((2, 3, 4))
        [(_, factor, _)] = masks.explain(standard(), params)
        assert factor == expected, name


class Wrapper:
    """An array without a key, as haliax's `NamedArray`."""

    def __init__(self, array):
        self.array = array


jax.tree_util.register_pytree_node(
    Wrapper, lambda w: ((w.array,), None), lambda _, x: Wrapper(*x)
)


def test_a_wrapper_does_not_hide_the_class_of_its_holder():
    eqx = pytest.importorskip("equinox")

    class Linear(eqx.Module):
        weight: Wrapper
        bias: Wrapper

    class RmsNorm(eqx.Module):
        weight: Wrapper

    square, row = Wrapper(jnp.ones((3, 4))), Wrapper(jnp.ones((3, 4)))
    params = {"a": Linear(square, row), "b": RmsNorm(row), "c": {"kernel": square}}
    assert decisions(params) == (["a/weight", "c/kernel"], ["a/bias", "b/weight"], [])


def test_weight_norm_scales():
    params = jax.eval_shape(nn.WeightNorm(nn.Dense(4)).init, KEY, TEXT)["params"]
    assert decisions(params) == (
        ["layer_instance/kernel"],
        ["layer_instance/bias", "layer_instance/kernel/scale"],
        [],
    )


@pytest.mark.skipif(not hasattr(nnx, "WeightNorm"), reason="a later flax")
def test_weight_norm_scales_in_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.WeightNorm(nnx.Linear(8, 8, rngs=rngs), rngs=rngs)

    kernel, bias, scale = "layer_instance/kernel", "layer_instance/bias", "scales/kernel"
    expected = ([f"norm/{kernel}"], [f"norm/{bias}", f"norm/{scale}"], [])
    assert decisions(nnx.state(Model(nnx.Rngs(0)))) == expected
    stack = nnx.split_rngs(splits=3)(nnx.vmap(lambda rngs: Model(rngs)))(nnx.Rngs(0))
    assert decisions(nnx.state(stack)) == expected


def test_lora_in_a_partition():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.lora = nnx.LoRALinear(4, 4, lora_rank=2, rngs=rngs)

    params = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(0)), nnx.Param))
    labels = jax.tree_util.tree_map_with_path(
        lambda keys, _: "lora" if "lora_" in keys[-1].key else "frozen", params
    )
    tuned = optwd.sgdw(1.0, weight_decay=0.5, mask=standard())
    optimizer = optax.partition({"lora": tuned, "frozen": optax.set_to_zero()}, labels)
    ones = jax.tree.map(jnp.ones_like, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(ones), ones)
    assert jax.tree.map(lambda u: float(u.min()), updates)["lora"] == {
        "bias": 0.0,
        "kernel": 0.0,
        "lora": {"lora_a": -0.5, "lora_b": -0.5},
    }
    adapter = {
        "lora": {"A": jnp.ones((4, 2)), "B": jnp.ones((2, 4)), "b": jnp.ones((2, 4))}
    }
    assert decisions(adapter)[0] == ["lora/A", "lora/B", "lora/b"]
    assert decisions({"lora": {"bias": jnp.ones((3, 4))}})[1] == ["lora/bias"]


def test_leaves_that_are_not_floating_point_do_not_decay():
    params = {"kernel": jnp.ones((2, 2), int), "w": jax.random.split(KEY), "weight": None}
    assert decisions(params) == ([], ["kernel", "w"], [])


# --- what it cannot know -------------------------------------------------------------


def test_what_it_cannot_know_is_an_error_unless_another_mask_decides():
    params = {"A_log": jnp.ones((3, 4)), "kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}
    for mask in (
        standard(),
        ~standard(),
        standard() & path("**"),
        standard() | ~path("**"),
    ):
        with pytest.raises(MaskError, match=r"A_log \(3, 4\)\. Say it: .*path\('A_log'\)"):
            optwd.adamw(1e-3, mask=mask).init(params)
    decays = {"A_log": True, "kernel": True, "bias": False}
    assert (standard() | path("A_log")).tree(params) == decays
    assert (path("A_log") | standard()).tree(params) == decays
    for mask in (standard() & ~path("A_log"), ~path("A_log") & standard()):
        assert mask.tree(params) == {**decays, "A_log": False}


def undecided(params):
    with pytest.raises(MaskError) as error:
        masks.resolve(standard(), params)
    said = str(error.value)
    leaves, fix = said.removesuffix(" does not.").split(". Say it: ")
    decayed, spared = fix.split(" decays them, ")
    assert decayed.replace("| path", "& ~path") == spared
    globs = decayed.removeprefix("standard() | path(").removesuffix(")").split(", ")
    mask = standard() | path(*(glob.strip("'") for glob in globs))
    before = [row[1] for row in masks.explain(standard(), params)]
    after = jax.tree.leaves(masks.resolve(mask, params))
    assert [1.0 if k is None else k for k in before] == after  # and nothing else is touched
    return leaves.split(": ")[1], [glob.strip("'") for glob in globs]


def test_one_error_lists_every_undecided_leaf_and_one_pattern_settles_them():
    square, long = jnp.ones((2, 2)), jnp.ones((3, 2))
    layers = {f"layers_{i}": {"hc": {"fn_0": square, "fn_1": square}} for i in range(24)}
    assert undecided(layers) == ("48 × layers_*/hc/fn_* (2, 2)", ["**/fn_*"])
    seven = {f"{name}_log": square for name in "ABCDEFG"}
    assert undecided(seven) == (
        ", ".join(f"{name}_log (2, 2)" for name in "ABCDEFG"),
        [f"**/{name}_log" for name in "ABCDEFG"],
    )
    assert undecided({"a": {"A_log": square}}) == ("a/A_log (2, 2)", ["a/A_log"])
    mixers = {f"block_{i}": {"mixer": {"weight": square}} for i in range(3)}
    norms = {f"norm_{i}": {"weight": square} for i in range(3)}
    assert undecided({**mixers, **norms, "B": long}) == (
        "B (3, 2), 3 × block_*/mixer/weight (2, 2)",
        ["**/B", "**/mixer/weight"],
    )
    twins = {"a": {"x_0": square, "x_0_bias": square}, "b": {"x_1": long}}
    assert undecided(twins) == ("a/x_0 (2, 2), b/x_1 (3, 2)", ["**/x_0", "**/x_1"])


def test_the_patterns_of_the_error_are_ten_at_most():
    names = [f"{a}{b}x" for a in "abcdef" for b in "abcdef"]
    with pytest.raises(MaskError) as error:
        masks.resolve(standard(), {name: jnp.ones((2, 2)) for name in names})
    said = str(error.value)
    assert all(f"{name} (2, 2)" in said for name in names)
    assert said.count("'**/") == 20


# --- cost ----------------------------------------------------------------------------


def test_resolving_is_a_small_part_of_a_trace():
    """Counted in calls of functions, which no neighbour on the machine disturbs."""
    params = {f"Dense_{i}": {"kernel": jnp.ones((4, 4)), "bias": 1.0} for i in range(100)}
    mask = standard() & ~path("**/Dense_1?/*", "Dense_7/**")
    optimizer = optwd.adamw(1e-3, mask=mask)
    state = optimizer.init(params)

    def calls(function):
        profile = cProfile.Profile()
        profile.runcall(function)
        return pstats.Stats(profile).total_calls

    resolve = calls(lambda: masks.resolve(mask, params))
    trace = calls(lambda: jax.jit(optimizer.update).trace(params, state, params))
    assert resolve < trace / 10
