"""One policy for weight decay on four frameworks: which leaves decay, printed as tables.

The policy is `masks.standard()`: kernels and matrices decay; biases, the scales of norms
and embeddings do not. It reads the names that each framework gives to its parameters, so
one line serves linen, nnx, Haiku and Equinox. The last table weighs the leaves instead.

    python examples/masks_tour.py
"""

import _common as common  # isort: skip  # first: it says which extra is missing
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from optwd import masks, tabulate

with common.extras():
    import equinox as eqx
    import haiku as hk

VOCABULARY, WIDTH = 100, 8
KEY, TOKENS = jax.random.key(0), jnp.zeros((1, 5), int)


class LinenModel(nn.Module):
    """Embed, normalize, attend, project."""

    @nn.compact
    def __call__(self, tokens):
        """Logits of shape (batch, length, vocabulary)."""
        x = nn.LayerNorm()(nn.Embed(VOCABULARY, WIDTH)(tokens))
        x = nn.MultiHeadDotProductAttention(2)(x)
        return nn.Dense(VOCABULARY)(x)


class NnxModel(nnx.Module):
    """The same in nnx."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)


def haiku_model(tokens):
    """The same in Haiku."""
    x = hk.LayerNorm(-1, create_scale=True, create_offset=True)(
        hk.Embed(VOCABULARY, WIDTH)(tokens)
    )
    attention = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling())
    return hk.Linear(VOCABULARY)(attention(x, x, x))


class EquinoxModel(eqx.Module):
    """The same in Equinox, which calls a kernel, a scale and an embedding `weight`."""

    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(2, WIDTH, key=keys[1])
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, key=keys[2])


def main(argv: list[str] | None = None) -> dict[str, str]:
    """Print a table for each framework and one with multipliers; returns them."""
    common.parser(__doc__).parse_args(argv)  # there is nothing to shorten or to draw
    linen = jax.eval_shape(LinenModel().init, KEY, TOKENS)["params"]
    equinox = eqx.filter_eval_shape(lambda: eqx.filter(EquinoxModel(KEY), eqx.is_array))
    standard = masks.standard()
    weights = masks.multipliers(
        {"Dense_0/kernel": 10.0, "**/kernel": 1.0, "**/embedding": 0.1}
    )
    policies = {
        "linen": (linen, standard),
        "nnx": (
            nnx.state(nnx.eval_shape(lambda: NnxModel(nnx.Rngs(0))), nnx.Param),
            standard,
        ),
        "Haiku": (jax.eval_shape(hk.transform(haiku_model).init, KEY, TOKENS), standard),
        "Equinox": (equinox, standard),
        "linen, the head ten times as fast, embeddings a tenth": (linen, weights),
    }
    tables = {
        name: tabulate(params, mask, weight_decay=0.1, learning_rate=1e-3)
        for name, (params, mask) in policies.items()
    }
    for name, table in tables.items():
        print(f"{name}\n\n{table}\n")
    return tables


if __name__ == "__main__":
    main()
