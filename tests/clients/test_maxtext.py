"""MaxText: AdamW or `adam_pax` on scanned layers, with patterns that do not decay.

- 50 steps of both optimizers agree with NumPy to 1e-12; `adam_pax` writes the bias
  correction into the decay rates, and is AdamW.
- Its default decays every leaf. With the patterns of its distillation runs it decays what
  `masks.standard()` does, leaf by leaf, but for what no name can tell.

From AI-Hypercomputer/maxtext at e591f30: src/maxtext/optimizers/optimizers.py
(`get_optimizer`, `adam_pax`, `_get_path_mask_fn`), src/maxtext/configs/base.yml,
configs/post_train/distillation_gpt_oss_20b.yml, layers/moe.py, layers/mhc.py; the names
are those of tests/unit/optimizers_test.py for DeepSeek 3 and 4, and of gpt-oss.
"""

import numpy as np
import pytest

import optwd
from optwd import masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

WD, B1, B2, EPS = 0.1, 0.9, 0.95, 1e-8
LR = common.cosine(3e-5)

LOGITS = "the logits of an attention sink: no matrix, but nothing in the name says so"
MATRIX = "a matrix by their own comment, but alpha and fn are scales and more elsewhere"
# experts, layers, model, feed-forward, heads, per head, low rank, streams
E, L, D, F, H, K, R, S = 2, 3, 4, 6, 2, 3, 2, 2
ATTENTION = "params/decoder/moe_layers/self_attention"
MOE = "params/decoder/moe_layers/DeepSeekMoeBlock_0"
MHC = "params/decoder/layers/mhc_attention"
LEAVES = {
    "params/token_embedder/embedding": ((9, D), False),
    "params/decoder/decoder_norm/scale": ((D,), False),
    "params/decoder/logits_dense/kernel": ((D, 9), True),
    "params/decoder/dense_layers/mlp/wi_0/kernel": ((D, L, F), True),
    "params/decoder/dense_layers/mlp/wo/kernel": ((F, L, D), True),
    "params/decoder/moe_layers/pre_self_attention_layer_norm/scale": ((D, L), False),
    f"{ATTENTION}/wq_a/kernel": ((D, L, R), True),
    f"{ATTENTION}/wq_b/kernel": ((R, L, H, K), True),
    f"{ATTENTION}/wkv_a/kernel": ((D, L, R), True),
    f"{ATTENTION}/kv_norm/scale": ((R, L), False),
    f"{ATTENTION}/out/kernel": ((H, L, K, D), True),
    f"{ATTENTION}/query/bias": ((H, L, K), False),
    f"{ATTENTION}/sinks": ((H, L), True, None, LOGITS),
    f"{MOE}/MoeBlock_0/gate/kernel": ((D, L, E), True),
    f"{MOE}/MoeBlock_0/gate/bias": ((E, L), False),
    f"{MOE}/MoeBlock_0/wi_0": ((E, L, D, F), True),
    f"{MOE}/MoeBlock_0/wi_1": ((E, L, D, F), True),
    f"{MOE}/MoeBlock_0/wo": ((E, L, F, D), True),
    f"{MOE}/MoeBlock_0/wi_0_bias": ((E, L, F), False),
    f"{MOE}/MoeBlock_0/wo_bias": ((E, L, D), False),
    f"{MOE}/shared_experts/wo/kernel": ((F, L, D), True),
    f"{MHC}/res_alpha": ((S * D, L, S * S), True, None, MATRIX),
    f"{MHC}/res_alpha_scale": ((1, L), True, False, "a scale, named neither norm nor bias"),
    f"{MHC}/res_beta": ((S, L, S), True, False, "a bias that is not called one"),
    "params/decoder/hc_head/hc_fn": ((S * D, S), True, None, MATRIX),
    "params/decoder/hc_head/hc_base": ((S,), True, False, "a vector, zero at first"),
}
RUN = {
    "params/token_embedder/embedding",
    "params/decoder/dense_layers/mlp/wo/kernel",
    f"{MOE}/MoeBlock_0/wi_0",
    f"{ATTENTION}/kv_norm/scale",
}
# adamw_mask = [".*embedding.*", ".*norm.*", ".*bias"], each searched for in the path
EXCEPT = ~masks.regex(".*embedding.*", ".*norm.*", ".*bias.*")


def adamw(path, theta, gradients):
    """`opt_type: adamw` with the default `adamw_mask: []`."""
    for t, u in enumerate(reference.adam(gradients, b1=B1, b2=B2, eps=EPS)):
        theta = theta - LR[t] * (u + WD * theta)
        yield theta


def adam_pax(path, theta, gradients):
    """`opt_type: adam_pax`; t counts from 1."""
    m, v = 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (B1, B2))
        m = (1 - b1) * g + b1 * m
        v = (1 - b2) * g**2 + b2 * v
        decayed = WD * theta * LEAVES[path][1]
        theta = theta - LR[t - 1] * (m / (np.sqrt(v) + EPS) + decayed)
        yield theta


@pytest.mark.parametrize(
    ("mask", "expected"), [(None, adamw), (EXCEPT, adam_pax)], ids=["adamw", "adam_pax"]
)
def test_50_steps(mask, expected):
    ours = optwd.adamw(common.schedule(LR), B1, B2, EPS, weight_decay=WD, mask=mask)
    params = common.tree(LEAVES, RUN | {f"{MOE}/MoeBlock_0/wo_bias"})  # one leaf a pattern
    assert common.largest_difference(ours, params, expected) < 1e-12


def test_masks():
    params = common.tree(LEAVES)
    assert all(common.decisions(None, params).values())
    assert common.decisions(EXCEPT, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)


def test_the_undecided_take_a_pattern_each_family():
    params = common.tree(LEAVES)
    decided = masks.standard() | masks.path("**/*_alpha", "**/hc_fn")
    decided &= ~masks.path("**/sinks")
    family = {"res_alpha": True, "hc_fn": True, "sinks": False}
    assert common.decisions(decided, params) == {
        path: family.get(path.split("/")[-1], expected)
        for path, expected in common.standard(LEAVES).items()
    }
