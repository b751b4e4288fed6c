"""openpi: AdamW behind a clip on the π₀ models, at a weight decay of 1e-10.

- 50 steps agree with NumPy to 1e-12, at their weight decay and at one that can be felt.
- Theirs is none: `rates.half_life` is 2.8e14 steps where a run has 30 000, and float32
  cannot hold the factor of a step.
- `masks.standard()` takes the matrices that Gemma keeps without a module, and both halves
  of each LoRA pair; the differences from their policy, leaf by leaf.

From Physical-Intelligence/openpi at 15a9616: src/openpi/training/optimizer.py ("changing
this to 0 can cause out-of-memory errors"), scripts/train.py (`weight_decay_mask=None`),
src/openpi/models/{gemma,lora,siglip,pi0}.py.
"""

import numpy as np
import optax
import pytest

import optwd
from optwd import masks, rates
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD = 2.5e-5, 1e-10
LR = common.cosine(PEAK, start=PEAK / 11, end=2.5e-6)
ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8}

SCALE = "they exclude nothing; a norm's scale is no matrix"
BIAS = "they exclude nothing; a bias is no matrix"
TOKEN = "they exclude nothing; a position or a probe is a token, no matrix"
EMBEDDING = "they exclude nothing; a rare row decays at every step and learns at few"
L, D, F, N, H, R = 2, 6, 8, 2, 3, 2  # layers (scanned), width, MLP, heads, head, rank
LAYERS, IMG = "PaliGemma/llm/layers", "PaliGemma/img"
ENCODER = f"{IMG}/Transformer/encoderblock"
LEAVES = {
    "PaliGemma/llm/embedder/input_embedding": ((9, D), True, False, EMBEDDING),
    f"{LAYERS}/pre_attention_norm/scale": ((L, D), True, False, SCALE),
    f"{LAYERS}/attn/q_einsum/w": ((L, N, D, H), True),
    f"{LAYERS}/attn/q_einsum/lora_a": ((L, N, D, R), True),
    f"{LAYERS}/attn/q_einsum/lora_b": ((L, N, R, H), True),
    f"{LAYERS}/attn/kv_einsum/w": ((L, 2, 1, D, H), True),
    f"{LAYERS}/attn/attn_vec_einsum_1/w": ((L, N, H, D), True),
    f"{LAYERS}/pre_ffw_norm_1/Dense_0/kernel": ((L, D, 3 * D), True),  # adaptive, π₀.₅
    f"{LAYERS}/pre_ffw_norm_1/Dense_0/bias": ((L, 3 * D), True, False, BIAS),
    f"{LAYERS}/mlp/gating_einsum": ((L, 2, D, F), True),
    f"{LAYERS}/mlp/gating_einsum_lora_a": ((L, 2, D, R), True),
    f"{LAYERS}/mlp/gating_einsum_lora_b": ((L, 2, R, F), True),
    f"{LAYERS}/mlp/linear": ((L, F, D), True),
    f"{LAYERS}/mlp/linear_lora_a": ((L, F, R), True),
    f"{LAYERS}/mlp/linear_lora_b": ((L, R, D), True),
    "PaliGemma/llm/final_norm/scale": ((D,), True, False, SCALE),
    f"{IMG}/embedding/kernel": ((2, 2, 3, D), True),  # a convolution of this name
    f"{IMG}/embedding/bias": ((D,), True, False, BIAS),
    f"{IMG}/pos_embedding": ((1, 4, D), True, False, TOKEN),
    f"{ENCODER}/LayerNorm_0/scale": ((L, D), True, False, SCALE),
    f"{ENCODER}/LayerNorm_0/bias": ((L, D), True, False, BIAS),
    f"{ENCODER}/MultiHeadDotProductAttention_0/query/kernel": ((L, D, N, H), True),
    f"{ENCODER}/MultiHeadDotProductAttention_0/query/bias": ((L, N, H), True, False, BIAS),
    f"{ENCODER}/MlpBlock_0/Dense_0/kernel": ((L, D, F), True),
    f"{IMG}/MAPHead_0/probe": ((1, 1, D), True, False, TOKEN),
    f"{IMG}/head/kernel": ((D, D), True),
    "action_in_proj/kernel": ((4, D), True),
    "action_in_proj/bias": ((D,), True, False, BIAS),
    "time_mlp_in/kernel": ((D, D), True),
}
RUN = {f"{LAYERS}/mlp/gating_einsum", f"{LAYERS}/mlp/linear_lora_b", "action_in_proj/bias"}


@pytest.mark.parametrize("weight_decay", [WD, 10.0])
def test_default(weight_decay):
    def trajectory(path, theta, gradients):
        for t, u in enumerate(reference.adam(gradients, **ADAM)):
            theta = theta - LR[t] * (u + weight_decay * theta)
            yield theta

    ours = optax.chain(
        optax.clip_by_global_norm(1.0),
        optwd.adamw(common.schedule(LR), **ADAM, weight_decay=weight_decay),
    )
    params = common.tree(LEAVES, RUN)
    assert common.largest_difference(ours, params, trajectory, max_norm=1.0) < 1e-12


def test_their_weight_decay_is_none():
    np.testing.assert_allclose(rates.half_life(PEAK, WD), 2.8e14, rtol=0.03)
    assert np.float32(1 - PEAK * WD) == 1


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(None, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)
