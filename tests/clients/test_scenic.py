"""Scenic: AdamW and SGD, with a mask that plain dicts switch off.

- 50 steps of its AdamW, and of its SGD whose decay goes through the momentum, agree with
  NumPy to 1e-12.
- `skip_scale_and_bias_regularization` skips nothing where parameters are plain dicts: every
  scale and bias decays, without a word. The same mask raises here.
- Its rule ("not one axis") and `masks.standard()`, leaf by leaf.

From google-research/scenic at 4a38d47: scenic/train_lib/optimizers.py (`get_optimizer`),
scenic/projects/baselines/vit.py; logit_scale: scenic/projects/owl_vit/clip/layers.py.
`get_optimizer` assigns the mask to a field of a `ConfigDict`, which turns a dict into a
`ConfigDict`; that is no pytree, so Optax sees one leaf, and it is true. A FrozenDict stays
what it is, and Scenic's own `initialize_model` makes one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

WD = 0.1
LR = common.cosine(1e-2)
SKIP_SCALE_AND_BIAS = masks.ndim(2) | masks.path("**/logit_scale")  # all but one axis

TOKEN = "theirs asks for the axes alone; a token or a position is no matrix"
BIAS = "theirs asks for the axes alone; a bias per head has two"
SCALAR = "theirs asks for the axes alone; a scalar has none"
D, HEADS = 6, 2
BLOCK = "Transformer/encoderblock_0"
LEAVES = {
    "embedding/kernel": ((2, 2, 3, D), True),  # a convolution of this name
    "embedding/bias": ((D,), False),
    "cls": ((1, 1, D), True, False, TOKEN),
    "Transformer/posembed_input/pos_embedding": ((1, 5, D), True, False, TOKEN),
    f"{BLOCK}/LayerNorm_0/scale": ((D,), False),
    f"{BLOCK}/LayerNorm_0/bias": ((D,), False),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel": ((D, HEADS, 3), True),
    f"{BLOCK}/MultiHeadDotProductAttention_0/query/bias": ((HEADS, 3), True, False, BIAS),
    f"{BLOCK}/MultiHeadDotProductAttention_0/out/kernel": ((HEADS, 3, D), True),
    f"{BLOCK}/MlpBlock_0/Dense_0/kernel": ((D, 2 * D), True),
    f"{BLOCK}/MlpBlock_0/Dense_0/bias": ((2 * D,), False),
    "Transformer/encoder_norm/scale": ((D,), False),
    "MAPHead_0/probe": ((1, 1, D), True, False, TOKEN),
    "output_projection/kernel": ((D, 4), True),
    "output_projection/bias": ((4,), False),
    "logit_scale": ((), True, False, SCALAR),
}
RUN = {f"{BLOCK}/MlpBlock_0/Dense_0/kernel", "embedding/bias", "cls", "logit_scale"}
RATE = {path: WD * decays for path, decays in common.theirs(LEAVES).items()}


def test_adamw():
    def trajectory(path, theta, gradients):
        for t, u in enumerate(reference.adam(gradients)):
            theta = theta - LR[t] * (u + RATE[path] * theta)
            yield theta

    ours = optwd.adamw(common.schedule(LR), weight_decay=WD, mask=SKIP_SCALE_AND_BIAS)
    params = common.tree(LEAVES, RUN)
    assert common.largest_difference(ours, params, trajectory) < 1e-12


def test_sgd_decays_through_its_momentum():
    def trajectory(path, theta, gradients):
        m = 0.0
        for t, g in enumerate(gradients):
            m = g + RATE[path] * theta + 0.9 * m
            theta = theta - LR[t] * m
            yield theta

    ours = optwd.sgd_l2(common.schedule(LR), 0.9, l2=WD, mask=SKIP_SCALE_AND_BIAS)
    params = common.tree(LEAVES, RUN)
    assert common.largest_difference(ours, params, trajectory) < 1e-12


def test_their_mask_misses_plain_dicts_and_ours_raises():
    ml_collections = pytest.importorskip("ml_collections")
    params = jax.tree.map(jnp.ones_like, common.tree(LEAVES))
    config = ml_collections.ConfigDict({"weight_decay": WD})
    config.mask = jax.tree.map(lambda p: p.ndim != 1, params)  # their line

    theirs = optax.adamw(1.0, **config)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = theirs.update(zero, theirs.init(params), params)
    for update in jax.tree.leaves(updates):  # scales and biases too
        np.testing.assert_allclose(update, np.full(update.shape, -WD))

    with pytest.raises(ValueError, match="a mask leaf must be True, False"):
        optwd.adamw(1.0, **config).init(params)


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(SKIP_SCALE_AND_BIAS, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)
