"""AlgoPerf: its NAdamW, on its Vision Transformer, Conformer, DeepSpeech and DLRM.

- 50 steps of `compat.algoperf.nadamw` agree with NumPy to 1e-12, without and with a mask
  and an ε inside the root, at the hyperparameters of its baseline.
- `optwd.nadamw`, which is Optax's, is more than a whole step away by then.
- The baseline gives no mask; the differences from `masks.standard()`, leaf by leaf. The
  LSTM's matrices are one flat vector, which no mask by name and shape can tell from a bias.

From mlcommons/algorithmic-efficiency at 2c90454f:
algorithms/baselines/external_tuning/jax_nadamw_full_budget.py and
tuning_search_space.json, algoperf/workloads/{imagenet_vit,librispeech_conformer,
librispeech_deepspeech,criteo1tb}/*_jax/models.py. The same optimizer: google/init2winit at
afd5a84, init2winit/optimizer_lib/kitchen_sink/_src/{alias,transform}.py.
"""

import numpy as np
import pytest

import optwd
from optwd import masks
from optwd.compat import algoperf
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD = 0.001308209823469072, 0.16375311233774334
B1, B2 = 1 - 0.02686663061, 0.9981232922116359
LR = common.cosine(PEAK, warmup=5)

SCALE = "they exclude nothing; a norm's scale is no matrix"
BIAS = "they exclude nothing; a bias is no matrix"
TOKEN = "they exclude nothing; a position or a probe is a token, no matrix"
EMBEDDING = "they exclude nothing; a rare row decays at every step and learns at few"
FLAT = "cuDNN's matrices and biases in one vector"
D, HEADS = 6, 2
BLOCK = "Transformer/encoderblock_0"
LEAVES = {
    "conv_patch_extract/kernel": ((2, 2, 3, D), True),
    "conv_patch_extract/bias": ((D,), True, False, BIAS),
    f"{BLOCK}/LayerNorm_0/scale": ((D,), True, False, SCALE),
    f"{BLOCK}/MultiHeadDotProductAttention_1/query/kernel": ((D, HEADS, 3), True),
    f"{BLOCK}/MultiHeadDotProductAttention_1/query/bias": ((HEADS, 3), True, False, BIAS),
    f"{BLOCK}/MlpBlock_3/Dense_0/kernel": ((D, 2 * D), True),
    "Transformer/encoder_layernorm/scale": ((D,), True, False, SCALE),
    "MAPHead_0/probe": ((1, 1, D), True, False, TOKEN),
    "head/kernel": ((D, 4), True),
    "Subsample_0/Conv2dSubsampling_0/kernel": ((3, 3, 1, D), True),
    "EncoderLayer_0/CudnnLSTM_0/weights": ((40,), True, False, FLAT),
    "embedding_table": ((9, D), True, False, EMBEDDING),
    "encoder/posembed_input/pos_embedding": ((1, 5, D), True, False, TOKEN),
}
RUN = {f"{BLOCK}/MlpBlock_3/Dense_0/kernel", "MAPHead_0/probe", "head/kernel"}


def trajectory(decays=lambda path: True, eps_root=0.0):
    def leaf(path, theta, gradients):
        m = v = 0.0
        for t, g in enumerate(gradients):
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * g**2
            ahead = (B1 * m + (1 - B1) * g) / (1 - B1 ** (t + 1))
            u = ahead / (np.sqrt(v / (1 - B2 ** (t + 1)) + eps_root) + 1e-8)
            theta = theta - LR[t] * (u + WD * decays(path) * theta)
            yield theta

    return leaf


def difference(optimizer, trajectory):
    return common.largest_difference(optimizer, common.tree(LEAVES, RUN), trajectory)


def test_baseline():
    ours = algoperf.nadamw(common.schedule(LR), B1, B2, weight_decay=WD)
    assert difference(ours, trajectory()) < 1e-12


def test_mask_and_eps_root():
    ours = algoperf.nadamw(
        common.schedule(LR),
        *(B1, B2, 1e-8, 1e-3, WD),
        weight_decay_mask=masks.path("**/kernel"),
    )
    expected = trajectory(lambda path: "kernel" in path, eps_root=1e-3)
    assert difference(ours, expected) < 1e-12


def test_optax_has_another():
    ours = optwd.nadamw(common.schedule(LR), B1, B2, weight_decay=WD)
    assert difference(ours, trajectory()) > PEAK


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(None, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)
