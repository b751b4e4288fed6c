"""big_vision: one base rate, decay that follows the schedule only, and patterns.

- 50 steps agree with NumPy to 1e-12: the default, the multipliers of ViT-g, a frozen
  image tower, and learning rates by pattern, which do not scale the decay.
- Its default pattern against `masks.standard()`, leaf by leaf. On PaliGemma the pattern
  says `kernel` and Gemma's matrices are called otherwise: its language model never decays.

From google-research/big_vision at 0127fb6: big_vision/optax.py (`make`), models/vit.py,
models/ppp/gemma.py, models/proj/image_text/two_towers.py; configs vit_s16_i1k.py (1e-3,
1e-4), proj/scaling_laws/train_vit_g.py (multipliers), proj/image_text/siglip_lit_coco.py
(freezing), proj/givt/givt_coco_panoptic.py (learning rates by pattern).
"""

import optax
import pytest

import optwd
from optwd import decay, masks, rates
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD = 1e-3, 1e-4
S = common.cosine(1.0)  # the schedule, 1 at its peak
LR = PEAK * S
KERNELS = masks.path("**/kernel")  # their `.*/kernel$`

D, HEADS, HEAD, F, LAYERS = 4, 2, 3, 6, 2
BLOCK, MAP = "img/Transformer/encoderblock", "img/MAPHead_0"
VIT = {
    "img/embedding/kernel": ((2, 2, 3, D), True),  # a convolution of that name
    "img/embedding/bias": ((D,), False),
    "img/pos_embedding": ((1, 5, D), False),
    "img/cls": ((1, 1, D), False),
    f"{BLOCK}/LayerNorm_0/scale": ((LAYERS, D), False),
    f"{BLOCK}/LayerNorm_0/bias": ((LAYERS, D), False),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel": (
        (LAYERS, D, HEADS, HEAD),
        True,
    ),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/bias": ((LAYERS, HEADS, HEAD), False),
    f"{BLOCK}/MultiHeadDotProductAttention_0/out/kernel": ((LAYERS, HEADS, HEAD, D), True),
    f"{BLOCK}/MultiHeadDotProductAttention_0/out/bias": ((LAYERS, D), False),
    f"{BLOCK}/MlpBlock_0/Dense_0/kernel": ((LAYERS, D, F), True),
    f"{BLOCK}/MlpBlock_0/Dense_0/bias": ((LAYERS, F), False),
    "img/Transformer/encoder_norm/scale": ((D,), False),
    f"{MAP}/probe": ((1, 1, D), False),
    f"{MAP}/MlpBlock_0/Dense_0/kernel": ((D, F), True),
    "img/head/kernel": ((D, 3), True),
    "img/head/bias": ((3,), False),
    "t": ((1,), False),
    "b": ((1,), False),
}
MISSED = "a matrix that their pattern misses, since no name of Gemma's has kernel in it"
GEMMA = {
    "llm/embedder/input_embedding": ((9, D), False),
    "llm/layers/pre_attention_norm/scale": ((LAYERS, D), False),
    "llm/layers/attn/q_einsum/w": ((LAYERS, HEADS, D, HEAD), False, True, MISSED),
    "llm/layers/attn/kv_einsum/w": ((LAYERS, 2, 1, D, HEAD), False, True, MISSED),
    "llm/layers/attn/attn_vec_einsum/w": ((LAYERS, HEADS, HEAD, D), False, True, MISSED),
    "llm/layers/mlp/gating_einsum": ((LAYERS, 2, D, F), False, True, MISSED),
    "llm/layers/mlp/linear": ((LAYERS, F, D), False, True, MISSED),
    "llm/final_norm/scale": ((D,), False),
}
LEAVES = VIT | GEMMA
RUN = {
    "img/pos_embedding",
    f"{BLOCK}/MlpBlock_0/Dense_0/kernel",
    f"{BLOCK}/MlpBlock_0/Dense_0/bias",
    "img/head/kernel",
    "llm/layers/mlp/linear",
}


def trajectory(lr_mult=lambda path: 1.0, wd_mult=None, frozen=()):
    wd_mult = wd_mult or (lambda path: float(LEAVES[path][1]))

    def leaf(path, theta, gradients):
        for s, u in zip(S, reference.adam(gradients), strict=False):
            if not path.startswith(frozen):
                theta = theta - s * (PEAK * lr_mult(path) * u + WD * wd_mult(path) * theta)
            yield theta

    return leaf


def adamw(mask):
    return optwd.adamw(
        common.schedule(LR),
        weight_decay=WD,
        mask=mask,
        scaled_by="schedule",
        peak_learning_rate=PEAK,
    )


def difference(optimizer, expected, **kwargs):
    return common.largest_difference(
        optimizer, common.tree(LEAVES, RUN), expected, **kwargs
    )


def test_default():
    ours = optax.chain(optax.clip_by_global_norm(1.0), adamw(KERNELS))
    assert difference(ours, trajectory(), max_norm=1.0) < 1e-12


def test_multipliers_of_weight_decay():
    # wd_mults = [(".*head/kernel", 100.0), (".*/kernel", 1.0)]
    ours = adamw(masks.multipliers({"img/head/kernel": 100.0, "**/kernel": 1.0}))

    def factor(path):
        return 100.0 if path == "img/head/kernel" else float(path.endswith("/kernel"))

    assert difference(ours, trajectory(wd_mult=factor)) < 1e-12


def test_a_frozen_tower():
    # schedule = [("img/.*", None), (".*", …)]: nothing moves there, neither does it decay
    frozen = masks.path("img/**").tree
    mask = KERNELS | masks.path("llm/**/linear")  # or nothing would be left to decay
    ours = optax.partition({True: optax.set_to_zero(), False: adamw(mask)}, frozen)

    def factor(path):
        return float(path.endswith(("kernel", "linear")))

    assert difference(ours, trajectory(wd_mult=factor, frozen=("img/",))) < 1e-12


def test_learning_rates_by_pattern_leave_the_decay_alone():
    # lr_mults = [("img/.*", 0.1), (".*", 1.0)]
    slow = optax.masked(optax.scale(0.1), masks.path("img/**").tree)
    ours = optwd.with_weight_decay(
        optax.chain(optwd.adam(common.schedule(LR)), slow),
        decay.linear(rates.by_schedule(WD, common.schedule(LR), PEAK), KERNELS),
    )
    expected = trajectory(lr_mult=lambda path: 0.1 if path.startswith("img/") else 1.0)
    assert difference(ours, expected) < 1e-12


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(KERNELS, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)
