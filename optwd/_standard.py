"""How `masks.standard` tells a matrix from a bias, a scale or an embedding.

The number of axes alone cannot: a stacked norm scale has two, and so has an embedding.
Names alone cannot either: Equinox and torch call the scale of a norm, an embedding and a
matrix all ``weight``. So a few questions are asked in a fixed order, and the first that
has an answer decides.

A name says what a thing is with its last word, and the words before it say whose or which:
``attention_norm`` is a norm, ``g_kernel`` a kernel, ``TokenMixer`` a mixer, of which
nothing is known. Numbers, single letters and *in* or *out* at the end are subscripts.
"""

import functools
import re
from collections.abc import Callable, Iterable

from optwd import _dtypes
from optwd._paths import Leaf

Shape = tuple[int, ...] | None
Answer = tuple[bool | None, str]  # whether it decays, None for undecided; and why


@functools.cache
def _words(name: str) -> tuple[str, ...]:
    """`LayerNorm_0`, `layer_norm` and `layerNorm` are the words layer and norm.

    A single letter keeps its case: Haiku's `b` is a bias, and `B` a state-space matrix.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return tuple(word.lower() if len(word) > 1 else word for word in words)


# what holds a `weight` that is a matrix, and what holds one that is not
_MATRIX = _words(
    "linear dense conv transpose fc proj projection einsum mlp attention attn query key "
    "value qkv q k v wq wk wv wi wo w gate head lstm gru rnn hh ih"
)
_NORM_OR_EMBEDDING = _words(
    "norm normalization layernorm rmsnorm batchnorm groupnorm ln bn gn scale scales "
    "embedding embeddings embed embeds emb wte wpe pos posemb position positional cls "
    "token tokens probe g"
)
# what a parameter is called that is a matrix, and one that is not
_KERNEL = _words("kernel linear einsum proj projection wi wo w W")
_NOT_KERNEL = _NORM_OR_EMBEDDING + _words(
    "b bias biases offset shift beta gamma slope mean var variance"
)
# what a parameter is wherever the word stands: bias_ih, kernel_q, embedding_table
_NOUNS = _words("kernel weight bias biases embedding embeddings embed emb")


def classify(leaf: Leaf, shape_at: Callable[[str], Shape]) -> Answer:
    """`shape_at` gives the shape of the leaf with that path, None where there is none."""
    parent, _, name = leaf.path.rpartition("/")
    module = _module(parent)
    if leaf.shape is None or not _dtypes.is_inexact(leaf):
        return False, "not floating point"
    if len(leaf.shape) < 2:
        return False, "vector" if leaf.shape else "scalar"
    if _is_lora_factor(_words(module) + _words(name)):
        return True, "LoRA"
    if "_index/init/" in leaf.path:
        return False, "state"  # what an equinox.nn.StateIndex starts from
    noun = _noun(_words(name))
    if noun in _NOT_KERNEL:
        return False, f"named {name}"
    if noun in _KERNEL:
        return module != "scales", f"named {name}"  # scales/kernel: nnx.WeightNorm
    if noun == "weight":
        bias = shape_at(leaf.path.removesuffix(name) + name.replace("weight", "bias"))
        return _weight(leaf, module, bias)
    return None, "undecided"


def _is_lora_factor(words: tuple[str, ...]) -> bool:
    """`lora_a`, `lora/b`, `kernel_lora_a`, `lora_A/weight`; not `lora_scale`."""
    last = words[::-1].index("lora") if "lora" in words else 0
    after = set(words[len(words) - last :])
    return bool(after & set("aAbB")) and after <= {*"aAbB", "kernel", "weight", "w"}


def _noun(words: tuple[str, ...]) -> str | None:
    """The word that says what a parameter is, if it is known.

    That is the last one (`pos_embedding`, `rel_pos_h`); else the one noun among them
    (`bias_ih`); else the one letter (`w_q`, `fc1_b`), if there are not two.
    """
    known = (*_KERNEL, *_NOT_KERNEL, "weight")
    if (last := _last(words)) in known:
        return last
    letters = {word for word in words if len(word) == 1}
    nouns = set(words).intersection(_NOUNS) or letters.intersection(known)
    return nouns.pop() if len(nouns) == 1 else None


def _weight(leaf: Leaf, module: str, bias: Shape) -> Answer:
    """A `weight`: ask the word beside it, its module's class, its bias, its module."""
    name = leaf.path.rpartition("/")[2]
    words = _words(name)
    at = words.index("weight")
    beside = words[at - 1 : at] if at else words[1:2]
    if (answer := _side(beside)) is not None:
        return answer, f"named {name}"
    for holder in leaf.holder.__mro__:
        if (answer := _side(_words(holder.__name__))) is not None:
            return answer, f"in {leaf.holder.__name__}"
    if bias is not None:  # a norm has one offset per scale, a matrix one per column
        return bias != leaf.shape, f"bias {bias}"
    answer = _side(_words(module))
    return answer, "undecided" if answer is None else f"in {module}"


def _side(words: tuple[str, ...]) -> bool | None:
    """Whether what is so named is, or holds, a matrix."""
    last = _last(words) or (words[-1] if words else "")
    matrix, other = last in _MATRIX, last in _NORM_OR_EMBEDDING
    return None if matrix == other else matrix


def _last(words: Iterable[str]) -> str | None:
    """The last word that is not a subscript."""
    named = [word for word in words if len(word) > 1 and word not in ("in", "out")]
    return named[-1] if named else None


def _module(parent: str) -> str:
    """The last segment that is a name and not the number of a layer."""
    return next((s for s in reversed(parent.split("/")) if not s.isdigit()), "")
