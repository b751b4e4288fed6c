"""Levanter: AdamW on modules of haliax, masked by the classes of the modules.

- 50 steps agree with NumPy to 1e-12, through `optax.inject_hyperparams` as there: AdamW,
  and AdamC, its `adamc_weight_decay`.
- Its default mask is `masks.standard()`, leaf by leaf, on GPT-2, Llama, Mixtral and LoRA.
  A `NamedArray` adds no segment to a path, and the class of its holder decides.
- The same with haliax's own modules, where it is installed.

From marin-community/levanter at 9263f81: src/levanter/optim/config.py (`AdamConfig`,
`build_weight_decay_mask`: no LayerNorm, RMSNorm, RmsNorm or Embedding in the class path,
no path that ends with bias, every other leaf), models/{gpt2,llama,mixtral}.py, lora.py.
haliax registers `NamedArray` as a node with one child that has no key.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import masks, rates
from tests import reference
from tests.clients import common

eqx = pytest.importorskip("equinox")
pytestmark = pytest.mark.usefixtures("x64")

PEAK, WD, B2 = 6e-4, 0.1, 0.95
LR = common.cosine(PEAK, end=PEAK * 0.1, warmup=5)


@jax.tree_util.register_pytree_node_class
class NamedArray:
    """What haliax's is to JAX."""

    def __init__(self, array, axes):
        self.array, self.axes = array, axes

    def tree_flatten(self):
        return (self.array,), self.axes

    @classmethod
    def tree_unflatten(cls, axes, children):
        return cls(children[0], axes)


class _Layer(eqx.Module):
    weight: NamedArray
    bias: NamedArray | None = None


class _Stacked(eqx.Module):
    stacked: Any


KINDS = ("Linear", "MoELinear", "LayerNorm", "RmsNorm", "Embedding")
MODULES = {kind: type(kind, (_Layer,), {}) for kind in KINDS}  # the name is what counts


def named(*shape):
    rng = np.random.default_rng(sum(shape))
    return NamedArray(jnp.asarray(rng.normal(size=shape)), "abcde"[: len(shape)])


V, D, F, E, R, LAYERS = 9, 4, 6, 3, 2, 2


def stand_in(kind, *axes, bias=False):
    """A module of haliax by the name of its class."""
    outputs = axes if "Norm" in kind else axes[:-2] + axes[-1:]
    return MODULES[kind](named(*axes), named(*outputs) if bias else None)


def model(make):
    """Nested dicts of modules; layers are stacked, as in `haliax.nn.Stacked`."""
    lora = {"lora_A": make("Linear", D, R), "lora_B": make("Linear", R, D)}
    block = {
        "ln_1": make("LayerNorm", D, bias=True),
        "c_attn": make("Linear", D, 3 * D, bias=True),
        "q_proj": {"wrapped": make("Linear", D, D), "lora": lora},
        "q_norm": make("RmsNorm", D),
        "gate": make("Linear", D, E),
        "experts": {"w1": make("MoELinear", E, D, F, bias=True)},
    }
    return {
        "embeddings": {
            "token_embeddings": make("Embedding", V, D),
            "position_embeddings": make("Embedding", 5, D),
        },
        "transformer": {
            "layers": _Stacked(jax.tree.map(lambda x: jnp.stack([x] * LAYERS), block)),
            "norm": make("RmsNorm", D),
        },
        "lm_head": make("Linear", D, V),
    }


BLOCK = "transformer/layers/stacked"
THEIRS = {
    "embeddings/position_embeddings/weight": False,
    "embeddings/token_embeddings/weight": False,
    "lm_head/weight": True,
    f"{BLOCK}/c_attn/weight": True,
    f"{BLOCK}/c_attn/bias": False,
    f"{BLOCK}/experts/w1/weight": True,
    f"{BLOCK}/experts/w1/bias": False,
    f"{BLOCK}/gate/weight": True,
    f"{BLOCK}/ln_1/weight": False,
    f"{BLOCK}/ln_1/bias": False,
    f"{BLOCK}/q_norm/weight": False,
    f"{BLOCK}/q_proj/lora/lora_A/weight": True,
    f"{BLOCK}/q_proj/lora/lora_B/weight": True,
    f"{BLOCK}/q_proj/wrapped/weight": True,
    "transformer/norm/weight": False,
}


def trajectory(weight_decay):
    def leaf(path, theta, gradients):
        for t, u in enumerate(reference.adam(gradients, b2=B2)):
            theta = theta - LR[t] * (u + weight_decay[t] * THEIRS[path] * theta)
            yield theta

    return leaf


@pytest.mark.parametrize("adamc", [False, True], ids=["adamw", "adamc"])
def test_50_steps(adamc):
    lr = common.schedule(LR)
    weight_decay = rates.by_schedule(WD, lr, PEAK) if adamc else WD
    ours = optax.chain(
        optax.clip_by_global_norm(1.0),
        optwd.adamw(lr, b2=B2, weight_decay=weight_decay, mask=masks.standard()),
    )
    params = {
        "lm_head": stand_in("Linear", D, V),
        "transformer": {"norm": stand_in("RmsNorm", D)},
    }
    expected = trajectory(WD * LR / PEAK if adamc else np.full_like(LR, WD))
    assert common.largest_difference(ours, params, expected, max_norm=1.0) < 1e-12


def test_50_steps_with_a_learning_rate_to_log():
    ours = optax.inject_hyperparams(optwd.adamw, hyperparam_dtype=jnp.float64)(
        learning_rate=common.schedule(LR), b2=B2, weight_decay=WD, mask=masks.standard()
    )
    params = {"lm_head": stand_in("Linear", D, V)}
    expected = trajectory(np.full_like(LR, WD))
    assert common.largest_difference(ours, params, expected) < 1e-12


def test_their_mask_is_standard():
    assert common.decisions(masks.standard(), model(stand_in)) == THEIRS


def test_patterns_see_no_wrapper():
    heads = common.decisions(masks.path("**/c_attn/weight", "lm_head/*"), model(stand_in))
    assert {path for path, decays in heads.items() if decays} == {
        f"{BLOCK}/c_attn/weight",
        "lm_head/weight",
    }


def test_with_haliax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own and its dependencies' imports
        hax = pytest.importorskip("haliax", exc_type=ImportError)

    def make(kind, *axes, bias=False):
        axes = tuple(hax.Axis(name, n) for name, n in zip("abc", axes, strict=False))
        key = jax.random.key(0)
        module = getattr(hax.nn, kind)
        if kind == "Embedding":
            return module.init(*axes, key=key)
        if "Norm" in kind:
            return module.init(*axes, use_bias=bias)
        return module.init(*axes, key=key, use_bias=bias)

    params = jax.eval_shape(lambda: model(make))
    assert common.decisions(masks.standard(), params) == THEIRS
