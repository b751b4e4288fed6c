"""axlearn: the paper's AdamW, Adam with L2 and SGD with L2, each with its own mask.

- 50 steps agree with NumPy to 1e-12: the language models (decoupled and scaled by the
  schedule), the conformer (Adam + L2), ResNet (momentum + L2). Its schedules count from 1.
- The three masks against `masks.standard()`, leaf by leaf, with repeated layers stacked.

From apple/axlearn at 34aed43: axlearn/common/optimizers.py (`adamw_decoupled_optimizer`,
`adam_optimizer`, `sgd_optimizer`, `l2_regularizer`, `per_param_scale_by_path`,
`scale_by_schedule`), axlearn/common/mixture_of_experts.py; names, shapes and decisions are
those of axlearn/experiments/testdata: envy-test, conformer-test-ctc and ResNet-Test.
"""

import numpy as np
import optax
import pytest

import optwd
from optwd import masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

D, F, E, H, K, L = 4, 6, 3, 2, 2, 2  # model, feed-forward, experts, heads, per head, layers

NORM = "nothing is excluded; a norm's scale is no matrix, decay pulls it to 0 and not to 1"
EMBEDDING = "nothing is excluded; a rare row decays at every step and learns at few"
_LAYER = "decoder/transformer/repeat/layer"
ENVY = {
    "decoder/emb/token_emb/weight": ((9, D), True, False, EMBEDDING),
    "decoder/lm_head/weight": ((9, D), True),
    "decoder/output_norm/scale": ((D,), True, False, NORM),
    f"{_LAYER}/layer0/feed_forward/linear1_0/weight": ((L, D, F), True),
    f"{_LAYER}/layer0/feed_forward/linear2/weight": ((L, F, D), True),
    f"{_LAYER}/layer0/feed_forward/norm/scale": ((L, D), True, False, NORM),
    f"{_LAYER}/layer0/self_attention/attention/i_proj/i_proj/qkv_proj/weight": (
        (L, D, 3 * H, K),
        True,
    ),
    f"{_LAYER}/layer0/self_attention/attention/o_proj/weight": ((L, D, H, K), True),
    f"{_LAYER}/layer0/self_attention/attention/scale_key/norm/scale": (
        (L, K),
        True,
        False,
        NORM,
    ),
    f"{_LAYER}/layer1/feed_forward/gate_weight": ((L, D, E), True),
    f"{_LAYER}/layer1/feed_forward/wi_0_weight": ((L, E, D, F), True),
    f"{_LAYER}/layer1/feed_forward/wi_1_weight": ((L, E, D, F), True),
    f"{_LAYER}/layer1/feed_forward/wo_weight": ((L, E, F, D), True),
}

MISSED = "a bias that their pattern (.*/)?bias does not match, nor means to spare"
PARAM = "a scale, but only the name of its module says so"
_LAYER = "encoder/context/context/repeat/layer"
_ATTENTION = f"{_LAYER}/self_attention/attention"
CONFORMER = {
    f"{_LAYER}/ff_start/linear1/weight": ((L, D, F), True),
    f"{_LAYER}/ff_start/linear1/bias": ((L, F), False),
    f"{_LAYER}/ff_start/norm/scale": ((L, D), False),
    f"{_LAYER}/lconv/conv/weight": ((L, 5, 1, D), True),
    f"{_LAYER}/lconv/conv_norm/bias": ((L, D), False),
    f"{_LAYER}/lconv/conv_norm/moving_mean": ((L, D), False),
    f"{_LAYER}/lconv/conv_norm/moving_variance": ((L, D), False),
    f"{_ATTENTION}/i_proj/qkv_proj/weight": ((L, D, H, K), True),
    f"{_ATTENTION}/i_proj/qkv_proj/bias": ((L, H, K), False),
    f"{_ATTENTION}/r_proj/weight": ((L, D, H, K), True),
    f"{_ATTENTION}/u_bias": ((L, H, K), True, False, MISSED),
    f"{_ATTENTION}/v_bias": ((L, H, K), True, False, MISSED),
    f"{_ATTENTION}/scale_query/per_dim_scale/param": ((L, K), False, None, PARAM),
    "encoder/context/input_linear/weight": ((8, D), True),
    "encoder/feature/subsampler/conv1/weight": ((3, 3, 1, 4), True),
    "decoder/lm_head/weight": ((9, D), True),
    "decoder/lm_head/bias": ((9,), False),
}
# l2_regularizer_per_param_scale: the norms, biases, scales and statistics are 0
PENALISED = ~masks.regex(".*norm/.*", "(.*/)?bias", "(.*/)?per_dim_scale/param")

RESNET = {
    "backbone/stem/conv1/weight": ((3, 3, 3, D), True),
    "backbone/stem/norm1/scale": ((D,), False),
    "backbone/stem/norm1/bias": ((D,), False),
    "backbone/stem/norm1/moving_mean": ((D,), False),
    "classifier/weight": ((D, 9), True),
    "classifier/bias": (
        (9,),
        True,
        False,
        "they spare the norms alone, as torch's recipes",
    ),
}


def test_language_models():
    peak, weight_decay = 0.01, 3.16e-4
    s = common.cosine(1.0, end=0.005)[1:]  # step 1 is the first
    ours = optax.chain(
        optax.clip_by_global_norm(1.0),
        optwd.adamw(
            common.schedule(peak * s),
            b2=0.95,
            weight_decay=weight_decay,
            scaled_by="schedule",
            peak_learning_rate=peak,
        ),
    )

    def expected(path, theta, gradients):
        for scale, u in zip(s, reference.adam(gradients, b2=0.95), strict=True):
            theta = theta - scale * (peak * u + weight_decay * theta)
            yield theta

    run = common.tree(ENVY, {path for path in ENVY if "layer1" in path})
    assert common.largest_difference(ours, run, expected, max_norm=1.0) < 1e-12


def test_conformer():
    l2, adam = 1e-6, {"b1": 0.9, "b2": 0.98, "eps": 1e-9}
    lr = 0.1 * np.arange(1, common.STEPS + 2) ** -0.5  # without its warm-up
    ours = optax.chain(
        optax.clip_by_global_norm(1.0),  # of the loss alone: the penalty joins afterwards
        optwd.adam_l2(common.schedule(lr), **adam, l2=l2, mask=PENALISED),
    )

    def expected(path, theta, gradients):
        m, v = 0.0, 0.0
        for t, g in enumerate(gradients, start=1):
            g = g + l2 * CONFORMER[path][1] * theta
            m = adam["b1"] * m + (1 - adam["b1"]) * g
            v = adam["b2"] * v + (1 - adam["b2"]) * g**2
            u = (
                m
                / (1 - adam["b1"] ** t)
                / (np.sqrt(v / (1 - adam["b2"] ** t)) + adam["eps"])
            )
            theta = theta - lr[t - 1] * u
            yield theta

    few = {"u_bias", "param", "conv1", "lm_head", "conv_norm"}
    run = common.tree(CONFORMER, {path for path in CONFORMER if few & set(path.split("/"))})
    assert common.largest_difference(ours, run, expected, max_norm=1.0) < 1e-12


def test_resnet():
    weight_decay, momentum = 1e-4, 0.9
    lr = common.cosine(0.1)[1:]
    mask = ~masks.regex(".*norm.*")
    ours = optwd.sgd_l2(common.schedule(lr), momentum, l2=weight_decay, mask=mask)

    def expected(path, theta, gradients):
        m = 0.0
        for eta, g in zip(lr, gradients, strict=True):
            m = momentum * m + g + weight_decay * RESNET[path][1] * theta
            theta = theta - eta * m
            yield theta

    assert common.largest_difference(ours, common.tree(RESNET), expected) < 1e-12
    assert common.decisions(mask, common.tree(RESNET)) == common.theirs(RESNET)


@pytest.mark.parametrize(
    ("leaves", "mask"),
    [(ENVY, None), (CONFORMER, PENALISED), (RESNET, ~masks.regex(".*norm.*"))],
    ids=["envy", "conformer", "resnet"],
)
def test_masks(leaves, mask):
    params = common.tree(leaves)
    assert common.decisions(mask, params) == common.theirs(leaves)
    assert common.decisions(masks.standard(), params) == common.standard(leaves)
