"""Masks: which leaves a decay or penalty acts on, and how strongly.

A ``mask`` is one of

- ``None``: every leaf;
- a `Mask`, made by `standard`, `path`, `regex`, `ndim` or `multipliers`, or combined from
  these with ``&``, ``|`` and ``~``;
- a tree of bools or floats like the parameters, or a prefix of one: ``True`` is 1,
  ``False`` is 0, a float multiplies the rate of its leaves;
- a callable from the parameters to such a tree.

A mask sees the parameters only, never gradients, and must not depend on their values:
which leaves decay is settled when the step is traced.

**Paths.** A leaf's path is its keys joined by ``/``: ``params/Dense_0/kernel``,
``layers/0/weight``, ``multi_head_attention/key/w``. A wrapper around one array adds
nothing to it: the boxes of Flax (``nnx.Variable``, ``nn.Partitioned``), and any pytree node
that holds one array without a key (haliax's ``NamedArray``). In a glob ``*`` and ``?`` stay
inside a segment, and ``**`` is any number of segments, none included. A pattern must match
the whole path.

**Nothing is missed.** A pattern that matches no leaf is a `MaskError`. A sub-optimizer of
``optax.partition`` sees only some leaves; the others count as long as their place is
visible (``optax.MaskedNode``, ``None``), since the question is whether the model has such
a leaf, and one policy can then serve every part. A part in which the policy chooses none
of the leaves says so once, as a warning; ``mask=False`` says that this is meant.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from optwd import _decide, _dtypes, _globs, _mask_tree, _paths
from optwd._decide import Decision, Rule
from optwd._decide import MaskError as MaskError
from optwd._paths import Leaf, PyTree

__all__ = [
    "Mask",
    "MaskError",
    "MaskLike",
    "multipliers",
    "ndim",
    "path",
    "regex",
    "standard",
]


def __dir__() -> list[str]:
    return __all__


@dataclasses.dataclass(frozen=True, repr=False)
class Mask:
    """Which leaves decay, said without the parameters; combine with ``&``, ``|``, ``~``.

        a & b: the product     a | b: the larger     ~a: 1 where a is 0, else 0

    It is a value: immutable, hashable, equal to another that says the same, and not
    callable, so that ``optax.inject_hyperparams`` does not take it for a schedule.

    >>> kernels = path("**/kernel") & ~path("head/**")
    >>> kernels.tree({"body": {"kernel": 1.0, "bias": 1.0}, "head": {"kernel": 1.0}})
    {'body': {'bias': False, 'kernel': True}, 'head': {'kernel': False}}
    """

    _said: str  # the code that makes it; all there is to compare
    _rule: Rule = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return self._said

    def tree(self, params: PyTree) -> PyTree:
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

    def __and__(self, other: Mask) -> Mask:
        return _combined(_decide.both, "({} & {})", self, other)

    def __or__(self, other: Mask) -> Mask:
        return _combined(_decide.either, "({} | {})", self, other)

    def __invert__(self) -> Mask:
        return _combined(_decide.negated, "~{}", self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a Mask is neither true nor false: combine masks with &, | and ~, and give "
            "Optax mask.tree."
        )


def _combined(by: Callable[..., Decision], said: str, *masks: Mask) -> Mask:
    if not all(isinstance(mask, Mask) for mask in masks):
        return NotImplemented
    rules = [mask._rule for mask in masks]
    return Mask(said.format(*masks), functools.partial(_decide.combined, by, rules))


def path(*globs: str) -> Mask:
    """The leaves whose path matches one of these globs.

    Args:
      globs: such as ``"**/kernel"`` or ``"head/**"``; see the top of `masks`.

    Returns:
      A `Mask`.

    Raises:
      MaskError: a glob that matches no leaf, once the parameters are known. It names the
        nearest paths.
      ValueError: no glob at all, or a ``**`` that is not a whole segment.

    >>> path("**/kernal").tree({"head": {"kernel": 1.0}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    optwd.masks.MaskError: the pattern '**/kernal' matches no leaf; nearest: head/kernel...
    """
    said = f"path({', '.join(map(repr, globs))})"
    return Mask(said, functools.partial(_decide.path, _globs.checked("path", globs)))


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
    """
    for pattern in _globs.checked_strings("regex", patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"regex: {pattern!r} does not compile: {error}.") from None
    said = f"regex({', '.join(map(repr, patterns))})"
    return Mask(said, functools.partial(_decide.regex, patterns))


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

    ``ndim ≥ 2`` is the rule of nanoGPT and its descendants.
    """
    try:
        axes = operator.index(minimum)
    except TypeError:
        axes = -1
    if axes < 0:
        raise ValueError(f"ndim: minimum must be an integer ≥ 0, got {minimum!r}.")
    globs = (stacked,) if isinstance(stacked, str) else tuple(stacked)
    if globs:
        _globs.checked("ndim", globs)
    said = f"ndim({axes}, stacked={globs})" if globs else f"ndim({axes})"
    return Mask(said, functools.partial(_decide.ndim, axes, globs))


def standard() -> Mask:
    """The kernels and matrices; not biases, scales, offsets, embeddings, tokens, scalars.

    These questions are asked in this order, and the first answer decides:

    1. Is it not floating point, a scalar or a vector? Then no.
    2. Is it a LoRA factor (``lora_a``, ``kernel_lora_b``, ``lora/b``)? Then yes.
    3. What does its name say it is? Its last word decides, for the words before it only
       say whose: a ``q_bias``, ``layer_scale`` or ``pos_embedding`` does not decay, however
       many axes it has; a ``kernel``, ``w``, ``wi_0`` or ``gating_einsum`` does. This
       settles every parameter of linen, nnx and Haiku, stacked or not.
    4. Is it a ``weight``, as Equinox and torch call everything? Then the word beside it
       decides (``in_proj_weight``); else the class of the module that holds it
       (`equinox.nn.Linear`, a ``…Norm``); else the shape of its bias, which a norm shares
       and a matrix does not; else the name of the module (``attention_norm/weight``).

    It cannot know what a parameter of your own is: ``A_log`` with two axes, or the
    ``weight`` of a ``TokenMixer``. Such leaves are an error, not a guess: whichever way a
    guess went wrong, nothing would show it. The error lists them all, and the patterns
    that settle them: ``standard() | path("**/mixer/weight")`` decays the leaf,
    ``standard() & ~path("**/mixer/weight")`` does not. `optwd.tabulate` lists these leaves
    as undecided and does not raise.

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

    It is the practice of nanoGPT, big_vision and timm, said for stacked layers too.
    """
    return Mask("standard()", _decide.standard)


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

    The ``wd_mults`` of big_vision's ``optax.py`` are the same idea.
    """
    _globs.checked("multipliers", tuple(factors))
    checked = {glob: _mask_tree.multiplier(glob, k) for glob, k in factors.items()}
    default = _mask_tree.multiplier("default", default)
    said = f"multipliers({checked}, default={default})"
    return Mask(said, functools.partial(_decide.multipliers, checked, default))


# --- a mask and its parameters -------------------------------------------------------


class _Dataclass(Protocol):
    """A dataclass registered as a pytree: `equinox.Module`, `flax.struct.dataclass`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class _Node(Protocol):
    """Any other class for ``jax.tree_util.register_pytree_node_class``."""

    def tree_flatten(self) -> Any: ...


MaskTree = ArrayLike | Mapping[Any, Any] | list[Any] | tuple[Any, ...] | _Dataclass | _Node
MaskLike = Mask | MaskTree | Callable[[Any], MaskTree] | None


def resolve(mask: MaskLike, params: PyTree) -> PyTree:
    """The multiplier of every leaf of `params`, as a tree of Python floats ≥ 0."""
    if not jax.tree.leaves(params):  # nothing to decay; also Optax's placeholder at init
        return params
    if not isinstance(mask, Mask):
        return _paths.unflatten(_given(mask, params), params)
    rows = _decisions(mask, params)
    undecided = [leaf for leaf, (factor, _) in rows if factor is None]
    if undecided:
        others = [leaf.path for leaf, (factor, _) in rows if factor is not None]
        raise _decide.undecided(undecided, others)
    return _paths.unflatten([factor for _, (factor, _) in rows], params)


def explain(mask: MaskLike, params: PyTree) -> list[tuple[Leaf, float | None, str]]:
    """The leaves that hold something, each with its multiplier and what decided."""
    if isinstance(mask, Mask):
        return [(leaf, *decision) for leaf, decision in _decisions(mask, params)]
    held = [leaf for leaf in _paths.leaves(params) if leaf.shape is not None]
    why = "every leaf" if mask is None else "mask"
    factors = _given(mask, params) if held else []
    return [(leaf, factor, why) for leaf, factor in zip(held, factors, strict=True)]


def check(mask: MaskLike) -> None:
    """Raise if this is no mask, whatever the parameters."""
    makers = (path, regex, ndim, standard, multipliers)
    if isinstance(mask, str):
        raise TypeError(f"a mask must not be a string: say masks.path({mask!r}).")
    if any(mask is maker for maker in makers):
        name = getattr(mask, "__name__", mask)
        example = "" if mask is standard else "…"
        raise TypeError(f"masks.{name} makes a mask: call it, masks.{name}({example}).")


def warn_if_idle(name: str, mask: MaskLike, params: PyTree, resolved: PyTree) -> None:
    """Warn if a policy chooses none of the leaves that a transformation holds.

    A tree of bools says for each leaf what is meant; a `Mask` or a callable does not.
    """
    if isinstance(mask, Mask) or _is_function(mask):
        held = [leaf for leaf in _paths.leaves(params) if leaf.shape is not None]
        rows = zip(held, jax.tree.leaves(resolved), strict=True)
        factors = {leaf.path: k for leaf, k in rows if _dtypes.is_inexact(leaf)}
        if factors and not any(factors.values()):
            warnings.warn(
                f"{name}: the mask {mask!r} chooses none of the leaves here: "
                f"{', '.join([*factors][:3])}{', …' * (len(factors) > 3)}. Correct it; or "
                "give mask=False if that is meant, as for one part of an optax.partition.",
                stacklevel=2,
            )


def _decisions(mask: Mask, params: PyTree) -> list[tuple[Leaf, Decision]]:
    leaves = _paths.leaves(params)
    rows = zip(leaves, mask._rule(leaves), strict=True)
    return [(leaf, decision) for leaf, decision in rows if leaf.shape is not None]


def _given(mask: Any, params: PyTree) -> list[float]:
    """The multiplier of every leaf by a mask that is a tree, a callable or None."""
    check(mask)
    if _is_function(mask):
        mask = _called(mask, params)
    return _mask_tree.factors(True if mask is None else mask, params)


def _is_function(mask: Any) -> bool:
    """Whether it is to be called: a module that is a tree of bools is callable, too."""
    return callable(mask) and jax.tree_util.all_leaves([mask])


def _called(mask: Callable[[Any], Any], params: PyTree) -> Any:
    hint = (
        "A callable mask takes the parameters and gives a tree of bools or floats; a "
        "schedule belongs to the rate, and patterns to masks.path."
    )
    try:
        tree = mask(params)
    except MaskError:
        raise
    except Exception as error:
        raise MaskError(
            f"the mask {mask!r} raised {type(error).__name__} when called with the "
            f"parameters: {error}. {hint}"
        ) from error
    number = jax.tree_util.all_leaves([tree]) and not isinstance(tree, (bool, np.bool_))
    if number and not jax.tree_util.all_leaves([params]):
        raise MaskError(
            f"the mask {mask!r} gives {tree!r} when called with the parameters. {hint} "
            "Give one number for all leaves as it is: mask=0.5."
        )
    return tree
