"""Python's own manual, and a network that reads it byte by byte."""

from functools import partial
from pydoc_data.topics import topics

import jax.numpy as jnp
import numpy as np
from flax import nnx


def text() -> tuple[np.ndarray, np.ndarray]:
    """What `help()` says on every topic, for training; each tenth topic is kept back."""
    pages = [topics[name].encode() for name in sorted(topics)]
    test = pages[::10]
    del pages[::10]
    train, test = (np.frombuffer(b"".join(part), np.uint8) for part in (pages, test))
    return train, test


def windows(data: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """The bytes from each start on, and the one after them: (*starts.shape, length + 1)."""
    return data[starts[..., None] + np.arange(length + 1)].astype(np.int32)


def batch(data: np.ndarray, shape: tuple[int, int], length: int, *seed: int) -> np.ndarray:
    """Windows at random places, a function of the seed alone."""
    starts = np.random.default_rng(seed).integers(len(data) - length, size=shape)
    return windows(data, starts, length)


def spaced(data: np.ndarray, shape: tuple[int, int], length: int) -> np.ndarray:
    """Windows at even distances."""
    starts = np.linspace(0, len(data) - length - 1, shape[0] * shape[1], dtype=int)
    return windows(data, starts.reshape(shape), length)


class Block(nnx.Module):
    """Attention, then a hidden layer, each added to what came in."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.norm_1, self.norm_2 = (nnx.RMSNorm(width, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(
            4, width, use_bias=False, decode=False, rngs=rngs
        )
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x):
        """From and to (rows, length, width)."""
        past = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norm_1(x), mask=past)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class Transformer(nnx.Module):
    """Logits of the next byte, (rows, length, 256)."""

    def __init__(self, layers: int, width: int, length: int, rngs: nnx.Rngs):
        self.byte = nnx.Embed(256, width, rngs=rngs)
        self.position = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        """Tokens of shape (rows, length)."""
        x = self.byte(tokens) + self.position(jnp.arange(tokens.shape[-1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
