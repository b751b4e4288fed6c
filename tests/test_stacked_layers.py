"""A transformer of 4 layers is the same model as 4 blocks and as one scanned stack.

- the same policy decays the same layers, and 20 steps end at the same parameters;
- a policy that counts axes has to be told of the stack.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import masks

LAYERS, WIDTH, WORDS = 4, 16, 11


class Block(nn.Module):  # noqa: D101
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        h = nn.Dense(2 * WIDTH)(nn.LayerNorm()(x := x + h))
        return x + nn.Dense(WIDTH)(nn.gelu(h)), None


class Transformer(nn.Module):  # noqa: D101
    scanned: bool

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(WORDS, WIDTH)(words)
        if self.scanned:
            options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=LAYERS, **options)(name="blocks")(x, None)
        else:
            for i in range(LAYERS):
                x, _ = Block(name=f"block_{i}")(x)
        return nn.Dense(WORDS)(nn.LayerNorm()(x))


def separated(params):
    blocks = {
        f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        for i in range(LAYERS)
    }
    return {name: p for name, p in params.items() if name != "blocks"} | blocks


def train(optimizer, gradients, params):
    @jax.jit
    def apply(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(20):
        params, state = apply(params, state, gradients(params))
    return params


@pytest.mark.slow
def test_separate_blocks_equal_a_scanned_stack(x64):
    # In float64: in float32 the rounding of a gradient near 0, which is not the same in
    # both programs, would be as large as that gradient, and Adam takes its sign.
    words = jnp.asarray(np.random.default_rng(0).integers(WORDS, size=(4, 9)))

    def gradients(scanned):
        def loss(params):
            logits = Transformer(scanned).apply({"params": params}, words[:, :-1])
            each = optax.softmax_cross_entropy_with_integer_labels(logits, words[:, 1:])
            return each.mean()

        return jax.jit(jax.grad(loss))

    start = Transformer(True).init(jax.random.key(0), words)["params"]
    start = jax.tree.map(lambda x: x.astype(jnp.float64), start)
    for_blocks, for_stack = gradients(False), gradients(True)
    by_axes = masks.ndim(2, stacked="blocks/**")
    blocks = train(optimizer(masks.ndim(2)), for_blocks, separated(start))
    stack = train(optimizer(by_axes), for_stack, start)
    # Adam makes up to 1e-8 of the rounding in the gradient of a key's bias, which is 0
    assert distance(separated(stack), blocks) < 1e-9
    assert distance(stack, start) > 0.1
    unaware, aware = (m.tree(start)["blocks"] for m in (masks.ndim(2), by_axes))
    assert unaware["LayerNorm_0"]["scale"] != aware["LayerNorm_0"]["scale"]


def optimizer(by_axes):
    return optax.chain(
        optwd.scale_by_adam(),
        optwd.decay.linear(0.5, masks.standard()),
        optwd.decay.cautious(0.5, by_axes),
        optax.scale_by_learning_rate(1e-2),
    )


def distance(a, b):
    each = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
    return max(jax.tree.leaves(each))
