"""To whom: which leaves a decay or penalty acts on, and how strongly.

A ``mask`` is

- ``None``: every leaf;
- a `Mask`: `standard`, `path`, `regex`, `ndim`, `multipliers`, and ``&``, ``|``, ``~``;
- a tree of bools or floats like the parameters, or a prefix of one: ``True`` is 1,
  ``False`` is 0, a float multiplies the rate of its leaves;
- a callable from the parameters to such a tree.

A mask sees the parameters only, never gradients, and must not depend on their values:
who decays is settled when the step is traced.

**Paths.** A leaf's path is its keys joined by ``/``: ``params/Dense_0/kernel``,
``layers/0/weight``, ``multi_head_attention/key/w``. It is the same with and without the
boxes of Flax (``nnx.Variable``, ``nn.Partitioned``). In a glob ``*`` and ``?`` stay inside
a segment, and ``**`` is any number of segments, none included. A pattern must match the
whole path.

**Nothing is missed.** A pattern that matches no leaf is a `MaskError`. A sub-optimizer of
``optax.partition`` sees only some leaves; the others count as long as their place is
visible (``optax.MaskedNode``, ``None``), since the question is whether the model has such
a leaf, and one policy can then serve every part.
"""

import dataclasses
import difflib
import functools
import heapq
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from optwd import _mask_tree, _paths, _standard
from optwd._paths import Leaf

MaskLike = Any  # None, a Mask, a tree of bools or floats, or a callable that returns one
Decision = tuple[float | None, str]  # the multiplier, None for undecided, and what decided


class MaskError(ValueError):
    """A mask that cannot be what was meant, such as a pattern that matches no leaf."""


@dataclasses.dataclass(frozen=True)
class Mask:
    """Who decays, said without the parameters; combine with ``&``, ``|`` and ``~``.

        a & b: the product     a | b: the larger     ~a: 1 where a is 0, else 0

    It is a value: immutable, hashable, equal to another that says the same, and not
    callable, so that ``optax.inject_hyperparams`` does not take it for a schedule.

    >>> kernels = path("**/kernel") & ~path("head/**")
    >>> kernels.tree({"body": {"kernel": 1.0, "bias": 1.0}, "head": {"kernel": 1.0}})
    {'body': {'bias': False, 'kernel': True}, 'head': {'kernel': False}}
    """

    def tree(self, params: Any) -> Any:
        """The mask of these parameters as a tree, for libraries that take one.

        A multiplier of 0 or 1 is a bool there, any other a float. The bound method is a
        mask for Optax: ``optax.adamw(…, mask=mask.tree)``; but Optax takes every float
        above 0 for True, so use `multipliers` with this package's transformations only.

        Args:
          params: the parameters, or anything with their paths, shapes and dtypes.

        Returns:
          A tree like ``params``.

        Raises:
          MaskError: see the function that made the mask.
        """
        return jax.tree.map(lambda k: bool(k) if k in (0, 1) else k, resolve(self, params))

    def __and__(self, other: "Mask") -> "Mask":
        return _Both(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: "Mask") -> "Mask":
        return _Either(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> "Mask":
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Mask is neither true nor false: combine masks with &, | and ~, and give "
            "Optax mask.tree."
        )

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        raise NotImplementedError


def path(*globs: str) -> Mask:
    """The leaves whose path matches one of these globs.

    Args:
      globs: such as ``"**/kernel"`` or ``"head/**"``; see the top of `masks`.

    Returns:
      A `Mask`.

    Raises:
      MaskError: a glob that matches no leaf, once the parameters are known. It names the
        nearest paths.
      ValueError: no glob at all.

    >>> path("**/kernal").tree({"head": {"kernel": 1.0}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    optwd.masks.MaskError: the pattern '**/kernal' matches no leaf; nearest: head/kernel...

    Source: none.
    """
    return _Path(_patterns("path", globs))


def regex(*patterns: str) -> Mask:
    """The leaves whose whole path matches one of these regular expressions.

    Each pattern is evaluated once per leaf whenever a step is traced, and costs nothing
    when it runs; but a pattern with nested repetition, such as ``(a+)+b``, can take time
    exponential in the length of a path. Prefer `path`.

    Args:
      patterns: as for ``re.fullmatch``.

    Returns:
      A `Mask`.

    Raises:
      MaskError: as `path`.
      ValueError: no pattern at all, or one that does not compile.

    >>> regex(r"block_[01]/.*").tree({"block_0": {"w": 1.0}, "block_2": {"w": 1.0}})
    {'block_0': {'w': True}, 'block_2': {'w': False}}

    Source: none.
    """
    for pattern in _patterns("regex", patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"regex: {pattern!r} does not compile: {error}.") from None
    return _Regex(patterns)


def ndim(minimum: int, *, stacked: str | Iterable[str] = ()) -> Mask:
    """The leaves with at least this many axes.

    A model that stacks its layers (``nn.scan``, ``jax.vmap``) has an axis more on every
    leaf of the stack, and norm scales with two: name those leaves.

    Args:
      minimum: number of axes, ≥ 0.
      stacked: globs; each takes one axis off the leaves that it matches.

    Returns:
      A `Mask`.

    Raises:
      MaskError: a glob that matches no leaf.
      ValueError: a negative or fractional minimum.

    >>> import jax.numpy as jnp
    >>> blocks = {"blocks": {"scale": jnp.ones((12, 8)), "kernel": jnp.ones((12, 8, 8))}}
    >>> ndim(2, stacked="blocks/**").tree(blocks)
    {'blocks': {'kernel': True, 'scale': False}}

    Source: none; ``ndim ≥ 2`` is the usual rule of nanoGPT and its descendants.
    """
    if not isinstance(minimum, int) or minimum < 0:
        raise ValueError(f"ndim: minimum must be an integer ≥ 0, got {minimum!r}.")
    globs = (stacked,) if isinstance(stacked, str) else tuple(stacked)
    return _Ndim(minimum, _patterns("ndim", globs) if globs else ())


def standard() -> Mask:
    """The kernels and matrices; not biases, scales, offsets, embeddings, tokens, scalars.

    It asks, in this order, and the first answer decides:

    1. Not floating point, a scalar or a vector: no.
    2. A LoRA factor (``lora_a``, ``lora/b``): yes.
    3. The leaf's name has the word bias, scale, offset, embedding, pos, cls, token or a
       relative of these: no, however many axes it has. So for every bias, norm and
       embedding of linen, nnx and Haiku, stacked or not.
    4. The name has the word kernel, or is Haiku's ``w``: yes.
    5. The name has the word weight, which Equinox and torch give to everything. What
       decides is the class of the module that holds it (`equinox.nn.Linear`, a ``…Norm``);
       else the shape of the bias beside it, which a norm shares and a matrix does not;
       else the name of the module.

    It cannot know what a parameter of your own is: ``A_log`` with two axes, or a ``weight``
    without a bias in a module called ``mixer`` that came without its class. Such a leaf is
    an error, not a guess: whichever way a guess went wrong, nothing would show it. Say
    it: ``standard() | path("**/mixer/weight")`` decays the leaf, ``& ~path(…)`` does not.
    `optwd.tabulate` lists these leaves as undecided and does not raise.

    Tied weights are one leaf and go by where that leaf lives: in linen, nnx and Haiku, and
    with the usual `equinox.nn.Shared`, in the embedding, so they do not decay. A kernel
    whose input is the model's, such as a patch embedding's, is a kernel.

    Returns:
      A `Mask`.

    Raises:
      MaskError: leaves that it cannot classify and that no other mask decides.

    >>> import jax.numpy as jnp
    >>> stack = {"kernel": jnp.ones((12, 8, 8)), "scale": jnp.ones((12, 8))}
    >>> standard().tree({"blocks": stack})
    {'blocks': {'kernel': True, 'scale': False}}

    Source: the practice of nanoGPT, big_vision and timm, said for stacked layers too.
    """
    return _Standard()


def multipliers(factors: Mapping[str, float], default: float = 0.0) -> Mask:
    """A factor for the rate of every leaf; the first glob that matches decides.

    Args:
      factors: from globs to finite numbers ≥ 0, the more special globs first.
      default: the factor of the leaves that no glob matches, ≥ 0.

    Returns:
      A `Mask`.

    Raises:
      MaskError: a glob that matches no leaf, or only leaves that earlier globs took.
      ValueError: no glob at all, or a factor that is negative or not finite.

    >>> layers = multipliers({"head/**": 100.0, "**/kernel": 1.0, "**/embedding": 0.1})
    >>> layers.tree({"embedding": 1.0, "head": {"kernel": 1.0, "bias": 1.0}, "kernel": 1.0})
    {'embedding': 0.1, 'head': {'bias': 100.0, 'kernel': 100.0}, 'kernel': True}

    Source: none; the ``wd_mults`` of big_vision's ``optax.py`` are the same idea.
    """
    globs = _patterns("multipliers", tuple(factors))
    values = tuple(_mask_tree.multiplier(glob, factor) for glob, factor in factors.items())
    return _Multipliers(globs, values, _mask_tree.multiplier("default", default))


def resolve(mask: MaskLike, params: Any) -> Any:
    """The multiplier of every leaf of `params`, as a tree of Python floats ≥ 0."""
    if not jax.tree.leaves(params):  # nothing to decay; also Optax's placeholder at init
        return params
    if isinstance(mask, Mask):
        rows = explain(mask, params)
        undecided = [f"{leaf.path} {leaf.shape}" for leaf, k, _ in rows if k is None]
        if undecided:
            raise _undecided(undecided)
        return _paths.unflatten([factor for _, factor, _ in rows], params)
    if callable(mask) and jax.tree_util.all_leaves([mask]):  # not a module of callables
        mask = mask(params)
    return _mask_tree.broadcast(True if mask is None else mask, params)


def explain(mask: MaskLike, params: Any) -> list[tuple[Leaf, float | None, str]]:
    """The leaves that hold something, each with its multiplier and what decided."""
    leaves = _paths.leaves(params)
    if isinstance(mask, Mask):
        rows = zip(leaves, mask._decide(leaves), strict=True)
        return [(leaf, *decision) for leaf, decision in rows if leaf.shape is not None]
    why = "every leaf" if mask is None else "mask"
    held = (leaf for leaf in leaves if leaf.shape is not None)
    factors = jax.tree.leaves(resolve(mask, params))
    return [(leaf, factor, why) for leaf, factor in zip(held, factors, strict=True)]


# --- what each mask decides ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Path(Mask):
    globs: tuple[str, ...]

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        first = _first(self.globs, [_match_glob(g, leaves) for g in self.globs])
        return [(0.0, "no pattern") if g is None else (1.0, g) for g in first]


@dataclasses.dataclass(frozen=True)
class _Regex(Mask):
    patterns: tuple[str, ...]

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        first = _first(self.patterns, [_match_regex(p, leaves) for p in self.patterns])
        return [(0.0, "no pattern") if p is None else (1.0, p) for p in first]


@dataclasses.dataclass(frozen=True)
class _Ndim(Mask):
    minimum: int
    stacked: tuple[str, ...]

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        rows = [_match_glob(glob, leaves) for glob in self.stacked]
        axes = [
            len(leaf.shape or ()) - sum(row[i] for row in rows)
            for i, leaf in enumerate(leaves)
        ]
        return [
            (1.0, f"ndim ≥ {self.minimum}") if n >= self.minimum else (0.0, f"ndim = {n}")
            for n in axes
        ]


@dataclasses.dataclass(frozen=True)
class _Standard(Mask):
    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        shape_at = {leaf.path: leaf.shape for leaf in leaves}.get
        answers = (_standard.classify(leaf, shape_at) for leaf in leaves)
        return [(None if yes is None else float(yes), why) for yes, why in answers]


@dataclasses.dataclass(frozen=True)
class _Multipliers(Mask):
    globs: tuple[str, ...]
    factors: tuple[float, ...]
    default: float

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        rows = [_match_glob(glob, leaves) for glob in self.globs]
        first = _first(self.globs, rows)
        for glob, row in zip(self.globs, rows, strict=True):
            if any(row) and glob not in first:
                raise MaskError(
                    f"the pattern {glob!r} is never reached: every leaf that it matches "
                    "belongs to an earlier pattern. Put it before them, or remove it."
                )
        factors = dict(zip(self.globs, self.factors, strict=True))
        return [(self.default, "default") if g is None else (factors[g], g) for g in first]


@dataclasses.dataclass(frozen=True)
class _Both(Mask):
    a: Mask
    b: Mask

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        return list(map(_both, self.a._decide(leaves), self.b._decide(leaves)))


@dataclasses.dataclass(frozen=True)
class _Either(Mask):
    a: Mask
    b: Mask

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        return list(map(_either, self.a._decide(leaves), self.b._decide(leaves)))


@dataclasses.dataclass(frozen=True)
class _Not(Mask):
    a: Mask

    def _decide(self, leaves: list[Leaf]) -> list[Decision]:
        return [
            (k if k is None else float(k == 0.0), f"not: {why}")
            for k, why in self.a._decide(leaves)
        ]


def _both(a: Decision, b: Decision) -> Decision:
    """The product; a zero decides alone, even where the other is undecided."""
    (x, _), (y, _) = a, b
    if x == 0.0 or y == 0.0:
        return a if x == 0.0 else b
    if x is None or y is None:
        return a if x is None else b
    return x * y, f"{a[1]} & {b[1]}"


def _either(a: Decision, b: Decision) -> Decision:
    """The larger; what is undecided gives way to whatever is above zero."""
    (x, _), (y, _) = a, b
    if x and y:
        return a if x >= y else b
    if x or y:
        return a if x else b
    return a if x is None else b


def _first(patterns: tuple[str, ...], rows: list[list[bool]]) -> list[str | None]:
    """For every leaf the first of the patterns that matches it."""
    return [
        next(itertools.compress(patterns, column), None)
        for column in zip(*rows, strict=True)
    ]


# --- patterns ------------------------------------------------------------------------


def _patterns(name: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns:
        raise ValueError(f"{name}: give at least one pattern.")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name}: a pattern must be a string, got {pattern!r}.")
    return patterns


def _match_regex(pattern: str, leaves: list[Leaf]) -> list[bool]:
    compiled = re.compile(pattern)
    row = [compiled.fullmatch(leaf.path) is not None for leaf in leaves]
    if not any(row):
        raise _no_leaf(pattern, leaves)
    return row


def _match_glob(glob: str, leaves: list[Leaf]) -> list[bool]:
    compiled = _compile(glob)
    row = [compiled.fullmatch(leaf.path + "/") is not None for leaf in leaves]
    if not any(row) and not _is_below_absent(glob, leaves):
        raise _no_leaf(glob, leaves)
    return row


@functools.cache
def _compile(glob: str) -> re.Pattern[str]:
    """A regular expression for paths with a `/` at the end, so that `**` can be empty."""
    wild = {r"\*\*": ".*", r"\*": "[^/]*", r"\?": "[^/]"}

    def segment(text: str) -> str:
        if text == "**":
            return "(?:[^/]*/)*"
        pieces = re.split(r"(\\\*\\\*|\\\*|\\\?)", re.escape(text))
        return "".join(wild.get(piece, piece) for piece in pieces) + "/"

    return re.compile("".join(map(segment, glob.split("/"))))


def _is_below_absent(glob: str, leaves: list[Leaf]) -> bool:
    """Whether `glob` leads into a subtree that another sub-optimizer holds as a whole.

    `encoder/**/kernel` leads into `encoder`; `**/kernel` leads nowhere in particular.
    """
    segments = glob.split("/")
    begins = [
        _compile("/".join(segments[:n]))
        for n in range(1, len(segments))
        if segments[n - 1] != "**"
    ]
    absent = [leaf.path + "/" for leaf in leaves if leaf.shape is None]
    return any(begin.fullmatch(path) for begin in begins for path in absent)


def _no_leaf(pattern: str, leaves: list[Leaf]) -> MaskError:
    """The error that names the nearest paths, each by as many segments as the pattern."""
    wanted = pattern.replace("**/", "")
    length = wanted.count("/") + 1

    def likeness(path: str) -> float:
        end = "/".join(path.split("/")[-length:])
        return difflib.SequenceMatcher(None, wanted, end).ratio()

    nearest = heapq.nlargest(3, [leaf.path for leaf in leaves], likeness)
    return MaskError(
        f"the pattern {pattern!r} matches no leaf; nearest: {', '.join(nearest)}. Correct "
        "the pattern, or remove it; it must match the whole path."
    )


def _undecided(leaves: list[str]) -> MaskError:
    example = leaves[0].split(" (")[0]
    return MaskError(
        "standard() cannot tell by name and shape whether these leaves are matrices: "
        f"{', '.join(leaves[:5])}{', …' * (len(leaves) > 5)}. Say it: standard() | "
        f"path({example!r}) decays the first, standard() & ~path({example!r}) does not."
    )
