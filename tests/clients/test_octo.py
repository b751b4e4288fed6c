"""Octo: AdamW behind a clip, with the first moment in bfloat16, on its robot transformer.

- 50 steps agree with NumPy to 1e-12: with moments in float64, and, for those who keep their
  Adam and take only the decay from here, with theirs in bfloat16.
- In bfloat16 our Adam ends nearer to the exact weights than theirs, whose b1·m is a product
  in bfloat16: its b1 = .9 is .8984.
- `masks.standard()` decides every leaf as they do, and as ``masks.path("**/kernel")``.

From octo-models/octo at 241fb35: octo/utils/train_utils.py (`create_optimizer`: a leaf
decays whose path contains "kernel"), scripts/configs/config.py,
octo/model/octo_module.py, octo/model/components/{transformer,vit_encoders,diffusion}.py.
"""

import jax
import numpy as np
import optax
import pytest
from jax.numpy import bfloat16

import optwd
from optwd import decay, masks, rates
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD, WARMUP, TIMESCALE = 3e-4, 0.1, 10, 20
_T = np.arange(common.STEPS)
LR = np.where(  # the square root counts from the end of the warm-up
    _T < WARMUP, PEAK * _T / WARMUP, PEAK / np.sqrt((_T - WARMUP) / TIMESCALE + 1)
)
KERNELS = masks.path("**/kernel")

D, HEADS, T = 8, 2, 3  # width, heads, time steps
STEM = "octo_transformer/observation_tokenizers_primary/SmallStem16_0"
BLOCK = "octo_transformer/BlockTransformer_0/Transformer_0"
ATTENTION = f"{BLOCK}/encoderblock_0/MultiHeadDotProductAttention_0"
HEAD = "heads_action"
LEAVES = {
    f"{STEM}/StdConv_0/kernel": ((3, 3, 3, 4), True),
    f"{STEM}/StdConv_0/bias": ((4,), False),
    f"{STEM}/GroupNorm_0/scale": ((4,), False),
    f"{STEM}/GroupNorm_0/bias": ((4,), False),
    f"{STEM}/embedding/kernel": ((1, 1, 4, 6), True),  # a convolution of this name
    f"{STEM}/embedding/bias": ((6,), False),
    "octo_transformer/obs_primary_projection/kernel": ((6, D), True),
    "octo_transformer/obs_primary_projection/bias": ((D,), False),
    "octo_transformer/obs_primary_pos_embedding": ((1, T, 4, D), False),
    "octo_transformer/task_language_pos_embedding": ((1, 4, D), False),
    "octo_transformer/readout_action_pos_embedding": ((1, T, 1, D), False),
    f"{BLOCK}/encoderblock_0/LayerNorm_0/scale": ((D,), False),
    f"{BLOCK}/encoderblock_0/LayerNorm_0/bias": ((D,), False),
    f"{ATTENTION}/query/kernel": ((D, HEADS, 4), True),
    f"{ATTENTION}/query/bias": ((HEADS, 4), False),
    f"{ATTENTION}/out/kernel": ((HEADS, 4, D), True),
    f"{ATTENTION}/out/bias": ((D,), False),
    f"{BLOCK}/encoderblock_0/MlpBlock_0/Dense_0/kernel": ((D, 2 * D), True),
    f"{BLOCK}/encoderblock_0/MlpBlock_0/Dense_0/bias": ((2 * D,), False),
    f"{BLOCK}/encoder_norm/scale": ((D,), False),
    f"{HEAD}/map_head/probe": ((1, 1, D), False),  # a learned token
    f"{HEAD}/map_head/MlpBlock_0/Dense_0/kernel": ((D, 4 * D), True),
    f"{HEAD}/diffusion_model/time_preprocess/kernel": ((4, 1), True),  # frequencies
}
RUN = {
    f"{ATTENTION}/query/kernel",
    f"{ATTENTION}/query/bias",
    "octo_transformer/obs_primary_pos_embedding",
}


def trajectory(path, theta, gradients):
    for t, u in enumerate(reference.adam(gradients)):
        theta = theta - LR[t] * (u + WD * ("kernel" in path) * theta)
        yield theta


def in_bfloat16(path, theta, gradients):
    m = v = 0.0
    for t, g in enumerate(gradients):
        m = _rounded(_rounded(0.9) * m) + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        u = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        theta = theta - LR[t] * (u + WD * ("kernel" in path) * theta)
        m = _rounded(m)  # Optax rounds it after use
        yield theta


def _rounded(x):
    return np.asarray(x).astype(bfloat16).astype(np.float64)


def clipped(optimizer):
    return optax.chain(optax.clip_by_global_norm(1.0), optimizer)


def difference(optimizer, trajectory):
    params = common.tree(LEAVES, RUN)
    return common.largest_difference(optimizer, params, trajectory, max_norm=1.0)


def test_default_with_wide_moments():
    ours = optwd.adamw(common.schedule(LR), weight_decay=WD, mask=KERNELS)
    assert difference(clipped(ours), trajectory) < 1e-12


def test_decay_beside_their_own_adam():
    lr = common.schedule(LR)
    adam = clipped(optax.adam(lr, mu_dtype=bfloat16))
    rate = rates.by_learning_rate(WD, lr)
    ours = optwd.with_weight_decay(adam, decay.linear(rate, KERNELS))
    assert difference(ours, in_bfloat16) < 1e-12


def test_our_bfloat16_moment_is_nearer_to_exact():
    lr, low = common.schedule(LR), {"mu_dtype": bfloat16, "weight_decay": WD}
    ours = difference(clipped(optwd.adamw(lr, **low, mask=KERNELS)), trajectory)
    theirs = difference(clipped(optax.adamw(lr, **low, mask=KERNELS.tree)), trajectory)
    assert ours < 0.7 * theirs, (ours, theirs)


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(masks.standard(), params) == common.theirs(LEAVES)
    assert common.decisions(KERNELS, params) == common.theirs(LEAVES)
    words = jax.tree_util.tree_map_with_path(  # their line
        lambda path, x: "kernel" in jax.tree_util.keystr(path), params
    )
    assert common.decisions(words, params) == common.theirs(LEAVES)
