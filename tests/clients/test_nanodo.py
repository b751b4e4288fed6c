"""nanodo: AdamW with either of its two couplings, on its decoder-only transformer.

- 50 steps of its default, of `independent_weight_decay` and of
  `layerwise_lr_multiplier` agree with NumPy to 1e-12.
- The default decays every leaf; the differences from `masks.standard()`, leaf by leaf.

From google-deepmind/nanodo at 10aefde: nanodo/optimizer.py (`_get_base_optimizer`,
`_params_mask`, `_scale_by_dict`), nanodo/model.py, nanodo/configs/default.py.
"""

import optax
import pytest

import optwd
from optwd import masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD = 0.0016, 0.1
LR = common.cosine(PEAK, start=0.00016, end=0.00016)
ADAM = {"b1": 0.9, "b2": 0.98, "eps": 1e-9}

NORM = "they exclude nothing; a norm's scale is no matrix, decay pulls it to 0 and not to 1"
EMBEDDING = "they exclude nothing; a rare row decays at every step and learns at few"
D, HEADS, HEAD, F = 4, 2, 3, 6  # model, heads, per head, feed-forward
LEAVES = {
    "embed/embedding": ((9, D), True, False, EMBEDDING),
    "pos_embed/embedding": ((5, D), True, False, EMBEDDING),
    "blocks_0/LayerNorm_0/scale": ((D,), True, False, NORM),
    "blocks_0/CausalAttn_0/query/kernel": ((D, HEADS, HEAD), True),
    "blocks_0/CausalAttn_0/key/kernel": ((D, HEADS, HEAD), True),
    "blocks_0/CausalAttn_0/value/kernel": ((D, HEADS, HEAD), True),
    "blocks_0/CausalAttn_0/attn_out_proj/kernel": ((HEADS, HEAD, D), True),
    "blocks_0/LayerNorm_1/scale": ((D,), True, False, NORM),
    "blocks_0/Mlp_0/Dense_0/kernel": ((D, F), True),
    "blocks_0/Mlp_0/Dense_1/kernel": ((F, D), True),
    "out_ln/scale": ((D,), True, False, NORM),
}
RUN = {"embed/embedding", "blocks_0/Mlp_0/Dense_0/kernel", "out_ln/scale"}


def trajectory(weight_decay, multiplier=1.0):
    def leaf(path, theta, gradients):
        k = multiplier if "kernel" in path else 1.0
        for t, u in enumerate(reference.adam(gradients, **ADAM)):
            theta = theta - k * LR[t] * (u + weight_decay * theta)
            yield theta

    return leaf


def difference(optimizer, expected):
    return common.largest_difference(optimizer, common.tree(LEAVES, RUN), expected)


def test_default():
    ours = optwd.adamw(common.schedule(LR), **ADAM, weight_decay=WD)
    assert difference(ours, trajectory(WD)) < 1e-12


def test_independent_weight_decay_is_the_coupling_of_the_paper():
    ours = optwd.adamw(
        common.schedule(LR),
        **ADAM,
        weight_decay=WD,
        scaled_by="schedule",
        peak_learning_rate=PEAK,
    )
    assert difference(ours, trajectory(WD / PEAK)) < 1e-12  # they divide by the peak


def test_layerwise_multipliers_scale_the_decay_too():
    adamw = optwd.adamw(common.schedule(LR), **ADAM, weight_decay=WD)
    ours = optax.chain(adamw, optax.masked(optax.scale(3.0), masks.path("**/kernel").tree))
    assert difference(ours, trajectory(WD, multiplier=3.0)) < 1e-12


def test_masks():
    params = common.tree(LEAVES)
    assert common.decisions(None, params) == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)
    # weight_decay_exclusion_names=("scale",): every path that has the word in it
    without = {path: "scale" not in path for path in LEAVES}
    assert common.decisions(~masks.regex(".*scale.*"), params) == without
