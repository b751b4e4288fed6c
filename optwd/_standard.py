"""The evidence by which `masks.standard` tells a matrix from a bias, a scale, an embedding.

The number of axes alone cannot: a stacked norm scale has two, and so has an embedding.
Names alone cannot either: Equinox and torch say ``weight`` for the scale of a norm, for an
embedding and for a kernel. So a few questions are asked in a fixed order, and the first
that has an answer decides. A name that speaks for both sides has none.
"""

import functools
import re
from collections.abc import Callable

from optwd import _dtypes
from optwd._paths import Leaf

Shape = tuple[int, ...] | None
Answer = tuple[bool | None, str]  # whether it decays, None for undecided; and why


@functools.cache
def _words(name: str) -> frozenset[str]:
    """`LayerNorm_0`, `layer_norm` and `layerNorm` are the words layer and norm."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return frozenset(word.lower() for word in words)


# what holds a `weight` that is a matrix, and what holds one that is not
_MATRIX = _words(
    "linear dense conv fc proj projection mlp attention attn query key value qkv head "
    "lstm gru rnn ih hh"
)
_NORM_OR_EMBEDDING = _words(
    "norm layernorm rmsnorm batchnorm groupnorm ln bn gn scale scales embedding embeddings "
    "embed emb wte wpe pos posemb position positional cls token tokens"
)
# what a leaf is called that is a matrix, and one that is not
_KERNEL = _words("kernel w")
_NOT_KERNEL = _NORM_OR_EMBEDDING | _words(
    "b bias biases offset shift beta gamma g slope mean var"
)


def classify(leaf: Leaf, shape_at: Callable[[str], Shape]) -> Answer:
    """`shape_at` gives the shape of the leaf with that path, None where there is none."""
    parent, _, name = leaf.path.rpartition("/")
    words, module = _words(name), _words(_module(parent))
    if leaf.shape is None or not _dtypes.is_inexact(leaf):
        return False, "not floating point"
    if len(leaf.shape) < 2:
        return False, "vector" if leaf.shape else "scalar"
    if "lora" in words | module and words <= {"lora", "a", "b"}:
        return True, "LoRA"
    if words & _NOT_KERNEL:
        return False, f"named {name}"
    if "_index/init/" in leaf.path:
        return False, "state"  # what an equinox.nn.StateIndex starts from
    if words & _KERNEL:
        return "scales" not in module, f"named {name}"  # scales/kernel: nnx.WeightNorm
    if "weight" in words:
        bias = shape_at(leaf.path.removesuffix(name) + name.replace("weight", "bias"))
        return _weight(leaf, words | module, bias)
    return None, "undecided"


def _weight(leaf: Leaf, names: frozenset[str], bias: Shape) -> Answer:
    """A `weight`: ask its module's class, then its bias, then its module's name."""
    holders = frozenset().union(*(_words(c.__name__) for c in leaf.holder.__mro__))
    if (answer := _side(holders)) is not None:
        return answer, f"in {leaf.holder.__name__}"
    if bias is not None:  # a norm has one offset per scale, a matrix one per column
        return bias != leaf.shape, f"bias {bias}"
    answer, (parent, _, _) = _side(names), leaf.path.rpartition("/")
    return answer, "undecided" if answer is None else f"in {_module(parent)}"


def _side(words: frozenset[str]) -> bool | None:
    matrix, other = bool(words & _MATRIX), bool(words & _NORM_OR_EMBEDDING)
    return None if matrix == other else matrix


def _module(parent: str) -> str:
    """The last segment that is a name and not the number of a layer."""
    return next((s for s in reversed(parent.split("/")) if not s.isdigit()), "")
