"""Which leaves decay.

- Globs and regular expressions match whole paths, as a slow matcher says, and at once; one
  that matches nothing is an error that names the nearest paths and what would match; so is
  a multiplier that is never reached.
- A leaf has the same path in every container and wrapper in which an optimizer may meet it.
- Masks combine, are values, and cannot be mistaken for schedules, bools or trees.
- What is no mask is an error that says what to write, and pyright finds it before.
- A policy that chooses none of a transformation's leaves says so; `False` does not.
- Every optimizer decays exactly the masked leaves, by the multiplier, in every wrapper.
- Resolution needs paths and shapes only, happens once per trace, and costs little of it.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys
import time
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze, unfreeze
from flax.training.train_state import TrainState

import optwd
from optwd import _decide, _globs, _mask_tree, _paths, masks
from optwd.compat import _carry
from optwd.masks import MaskError, multipliers, ndim, path, regex

PARAMS = {
    "Dense_0": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
    "Dense_1": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    "scale": jnp.ones(4),
}


def chosen(mask, params=PARAMS):
    """The paths of the leaves that the mask decays."""
    factors = jax.tree.leaves(masks.resolve(mask, params))
    paths = [leaf.path for leaf in _paths.leaves(params) if leaf.shape is not None]
    return [p for p, k in zip(paths, factors, strict=True) if k]


def decay_of(optimizer, params):
    """What one step with zero gradients takes off each leaf, as a share of it."""
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    taken = lambda u, p: round(float(np.max(-np.asarray(u) / p)), 6)  # noqa: E731
    return jax.tree.map(taken, updates, params)


# --- patterns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "matching", "other"),
    [
        ("kernel", ["kernel"], ["a/kernel", "kernels", "kerne"]),
        ("**/kernel", ["kernel", "a/kernel", "a/b/kernel"], ["a/kernel/b", "mykernel"]),
        ("*/kernel", ["a/kernel"], ["kernel", "a/b/kernel"]),
        ("head/**", ["head/kernel", "head/a/b"], ["ahead/kernel", "head2/kernel"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("Dense_*/kernel", ["Dense_0/kernel", "Dense_/kernel"], ["Dense_0/a/kernel"]),
        ("layers/?/w", ["layers/3/w"], ["layers/12/w", "layers//w"]),
        ("**/lora_*", ["lora_a", "x/lora_b"], ["lora_/x"]),
        ("a.b/(c", ["a.b/(c"], ["axb/(c"]),
        ("[0]", ["[0]"], ["0"]),
    ],
)
def test_globs_match_whole_paths(glob, matching, other):
    for p in matching:
        assert _globs.matches(glob, p), p
    for p in other:
        assert not _globs.matches(glob, p), p


def slowly_matches(glob, path):
    """Every way to split is tried: segment by segment, letter by letter."""

    def fit(pattern, items, wild, one):
        if not pattern:
            return not items
        if pattern[0] == wild:
            return any(
                fit(pattern[1:], items[n:], wild, one) for n in range(len(items) + 1)
            )
        return (
            bool(items)
            and one(pattern[0], items[0])
            and fit(pattern[1:], items[1:], wild, one)
        )

    def letters(pattern, text):
        return fit(pattern, text, "*", lambda p, x: p in ("?", x))

    return fit(glob.split("/"), path.split("/"), "**", letters)


def test_globs_match_what_a_slow_matcher_matches():
    rng = np.random.default_rng(0)
    pieces = ("a", "b", "*", "?", "*", "a*", "*ab", "*a*b", "?a*")
    seen = {True: 0, False: 0}
    for _ in range(4000):
        glob = "/".join(
            "**" if rng.random() < 0.4 else pieces[rng.integers(len(pieces))]
            for _ in range(rng.integers(1, 6))
        )
        path = "/".join(
            "".join(rng.choice(list("ab"), rng.integers(1, 5)))
            for _ in range(rng.integers(1, 6))
        )
        expected = slowly_matches(glob, path)
        assert _globs.matches(glob, path) == expected, (glob, path)
        seen[expected] += 1
    assert min(seen.values()) > 500


@pytest.mark.parametrize(
    ("glob", "path"),
    [
        ("*a*a*a*a*a*a*a*b", "a" * 60),  # with backtracking: 30 s
        ("**/*a*a*a*a*a*a*b/**", "/".join(["a" * 60] * 3)),
        ("**/a/**/a/**/a/**/a/**/a/**/b", "/".join("a" * 60)),  # with backtracking: 6 s
    ],
)
def test_globs_match_at_once(glob, path):
    start = time.perf_counter()
    assert not _globs.matches(glob, path)
    assert time.perf_counter() - start < 0.5  # it takes .001


def test_path_and_regex_choose_the_leaves_they_name():
    assert chosen(path("**/kernel")) == ["Dense_0/kernel", "Dense_1/kernel"]
    assert chosen(path("Dense_0/*", "scale")) == ["Dense_0/bias", "Dense_0/kernel", "scale"]
    assert chosen(regex(r"Dense_[1-9]/.*")) == ["Dense_1/bias", "Dense_1/kernel"]
    with pytest.raises(MaskError, match=r"'Dense_\[1-9\]' matches no leaf"):
        masks.resolve(regex(r"Dense_[1-9]"), PARAMS)  # a full match, not a search


@pytest.mark.parametrize("glob", ["**/kernal", "**/Kernel", "Dense_0", "kernel", "head/**"])
def test_a_pattern_that_matches_nothing_is_an_error(glob):
    for mask in (path(glob), path("**/bias", glob), ~path(glob), ndim(2, stacked=glob)):
        with pytest.raises(MaskError, match=r"matches no leaf; nearest: \w+"):
            optwd.adamw(1e-3, mask=mask).init(PARAMS)
    with pytest.raises(ValueError, match="matches no leaf"):
        masks.resolve(multipliers({glob: 1.0}), PARAMS)


def test_the_error_names_the_nearest_paths():
    params = {f"block_{i}": {"attention": {"kernel": 1.0}, "mlp": 1.0} for i in range(9)}
    with pytest.raises(MaskError, match="nearest: block_7/attention/kernel, "):
        masks.resolve(path("block_7/atention/kernel"), params)
    three = r"nearest: block_\d/attention/kernel(, [\w/]+){2}\. Correct"
    with pytest.raises(MaskError, match=three):
        masks.resolve(path("**/kernal"), params)
    with pytest.raises(MaskError, match="nearest: a_long_name/kernel, keal"):
        masks.resolve(path("**/kernal"), {"keal": 1.0, "a_long_name": {"kernel": 1.0}})


@pytest.mark.parametrize(
    ("make", "given", "meant"),
    [
        (path, "kernel", "**/kernel"),
        (path, "/bias/", "**/bias"),
        (path, "Dense_0", "**/Dense_0/**"),
        (path, "kernel/", "**/kernel"),
        (regex, "kernel", ".*kernel.*"),
    ],
)
def test_the_error_says_the_pattern_that_would_match(make, given, meant):
    with pytest.raises(MaskError, match=re.escape(f". Say {meant!r}; it must match")):
        masks.resolve(make(given), {"a": PARAMS})
    assert chosen(make(meant), {"a": PARAMS})


def test_bad_patterns_are_refused_when_they_are_written():
    for make in (path, regex):
        with pytest.raises(ValueError, match="at least one pattern"):
            make()
        with pytest.raises(TypeError, match="must be a string, got 3"):
            make(3)
    with pytest.raises(ValueError, match=r"'\(' does not compile"):
        regex("(")
    for make in (path, lambda glob: ndim(2, stacked=glob), lambda g: multipliers({g: 1.0})):
        for bad in ("**kernel", "a/b**/c", "a/***"):
            with pytest.raises(ValueError, match=r"`\*\*` is only a part of a segment"):
                make(bad)
    for bad in (-1, 1.5, "2", np.float64(2)):
        with pytest.raises(ValueError, match="integer ≥ 0, got"):
            ndim(bad)


def test_ndim_can_discount_stacked_axes():
    params = {
        "blocks": {"scale": jnp.ones((12, 8)), "kernel": jnp.ones((12, 8, 8))},
        "twice": {"scale": jnp.ones((2, 3, 8)), "kernel": jnp.ones((2, 3, 8, 8))},
        "head": jnp.ones((8, 8)),
    }
    assert chosen(ndim(2, stacked="blocks/**"), params) == [
        "blocks/kernel",
        "head",
        "twice/kernel",
        "twice/scale",
    ]
    both = ndim(2, stacked=("blocks/**", "twice/**", "twice/*"))
    assert chosen(both, params) == ["blocks/kernel", "head", "twice/kernel"]
    assert chosen(ndim(0), {"scalar": 1.0}) == ["scalar"]
    assert ndim(np.int64(2)) == ndim(2)
    assert chosen(ndim(np.int64(2))) == chosen(ndim(2))


def test_the_first_multiplier_wins():
    mask = multipliers({"Dense_1/**": 100.0, "**/kernel": 0.5}, default=0.25)
    assert masks.resolve(mask, PARAMS) == {
        "Dense_0": {"kernel": 0.5, "bias": 0.25},
        "Dense_1": {"kernel": 100.0, "bias": 100.0},
        "scale": 0.25,
    }


def test_a_multiplier_that_is_never_reached_is_an_error():
    with pytest.raises(MaskError, match="'Dense_1/kernel' is never reached"):
        masks.resolve(multipliers({"**/kernel": 1.0, "Dense_1/kernel": 2.0}), PARAMS)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, "no", None])
def test_bad_multipliers_name_their_pattern(bad):
    with pytest.raises(ValueError, match=r"\*\*/kernel: .* ≥ 0, got"):
        multipliers({"**/kernel": bad})
    with pytest.raises(ValueError, match="default: "):
        multipliers({"**/kernel": 1.0}, default=bad)
    with pytest.raises(ValueError, match="at least one pattern"):
        multipliers({})


# --- combining -----------------------------------------------------------------------


def test_masks_combine():
    kernels, first = path("**/kernel"), path("Dense_0/*")
    assert chosen(kernels & first) == ["Dense_0/kernel"]
    assert chosen(kernels | first) == ["Dense_0/bias", "Dense_0/kernel", "Dense_1/kernel"]
    assert chosen(~kernels) == ["Dense_0/bias", "Dense_1/bias", "scale"]
    assert chosen(~(kernels | first)) == chosen(~kernels & ~first)


def test_multipliers_combine_as_product_and_maximum():
    half = multipliers({"**/kernel": 0.5})
    kernels, first = path("**/kernel"), path("Dense_0/*")
    assert masks.resolve(half & first, PARAMS)["Dense_0"] == {"kernel": 0.5, "bias": 0.0}
    assert masks.resolve(half & half, PARAMS)["Dense_0"]["kernel"] == 0.25
    assert masks.resolve(half | first, PARAMS)["Dense_0"] == {"kernel": 1.0, "bias": 1.0}
    assert masks.resolve(half | first, PARAMS)["Dense_1"] == {"kernel": 0.5, "bias": 0.0}
    assert masks.resolve(~half, PARAMS) == masks.resolve(~kernels, PARAMS)


def test_a_mask_is_a_value():
    a, b = path("**/kernel") & ~regex("x"), path("**/kernel") & ~regex("x")
    assert a == b
    assert hash(a) == hash(b)
    assert a != path("**/kernel")
    assert hash(multipliers({"a": 1.0})) == hash(multipliers({"a": 1}))
    assert not callable(a)
    with pytest.raises(AttributeError):
        a._said = b
    with pytest.raises(AttributeError):
        a.name = b


def test_a_mask_is_written_as_it_is_made():
    names = {name: getattr(masks, name) for name in masks.__all__}
    for mask in (
        path("**/kernel", "a"),
        regex(r"a\d"),
        ndim(2),
        ndim(2, stacked="a/**"),
        masks.standard(),
        multipliers({"a": 1, "b/*": 0.5}, 2),
        ~(path("a") | ndim(1)) & ~masks.standard(),
    ):
        assert eval(repr(mask), names) == mask  # our own text
    assert repr(path("a") & ~ndim(1)) == "(path('a') & ~ndim(1))"
    assert dir(masks) == sorted(masks.__all__)


def test_a_mask_is_neither_a_bool_nor_a_tree():
    with pytest.raises(TypeError, match="combine masks with &"):
        path("a") and path("b")
    with pytest.raises(TypeError, match=r"mask\.tree"):  # Optax would decay every leaf
        optax.adamw(1e-3, mask=path("**/kernel")).init(PARAMS)
    with pytest.raises(TypeError):
        path("a") & {"a": True}
    with pytest.raises(TypeError):
        path("a") | True


# --- paths ---------------------------------------------------------------------------


class Boxed(nn.Module):
    """Attention whose kernels are boxed, in a submodule of which one is called `value`."""

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
        return nn.MultiHeadDotProductAttention(2, kernel_init=init, name="attention")(x)


ATTENTION = sorted(
    f"attention/{part}/{name}"
    for part in ("key", "out", "query", "value")
    for name in ("bias", "kernel")
)


def test_linen_paths_with_and_without_boxes_and_frozen():
    variables = jax.eval_shape(Boxed().init, jax.random.key(0), jnp.ones((1, 3, 4)))
    boxed = variables["params"]
    for params in (boxed, nn.unbox(boxed), freeze(nn.unbox(boxed))):
        assert _paths.paths(params) == ATTENTION
    kernels = masks.resolve(path("**/kernel"), boxed)
    assert jax.tree.structure(kernels) == jax.tree.structure(boxed)
    assert chosen(path("**/value/kernel"), boxed) == ["attention/value/kernel"]


def test_nnx_paths_as_module_state_and_arrays():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
            self.value = nnx.Param(jnp.ones(2))

    model = Model(nnx.Rngs(0))
    expected = [f"layers/{i}/{name}" for i in range(2) for name in ("bias", "kernel")]
    state = nnx.state(model, nnx.Param)
    arrays = nnx.as_pure(state) if hasattr(nnx, "as_pure") else nnx.pure(state)
    for params in (state, nnx.to_pure_dict(state), arrays, model):
        assert _paths.paths(params) == [*expected, "value"]


def test_haiku_paths_split_at_slashes():
    params = {"mlp/~/linear_0": {"w": 1.0}, "layer_norm": {"scale": 1.0}}
    assert chosen(path("mlp/**/w"), params) == ["mlp/~/linear_0/w"]
    assert chosen(path("**/linear_*/w"), params) == ["mlp/~/linear_0/w"]


def test_equinox_paths_are_attributes_and_digits():
    eqx = pytest.importorskip("equinox")
    mlp = eqx.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    for model in (eqx.filter(mlp, eqx.is_array), mlp):  # the latter holds functions too
        tree = path("layers/*/weight").tree(model)
        assert [layer.weight for layer in tree.layers] == [True, True]
        assert [layer.bias for layer in tree.layers] == [False, False]

    class Attention(eqx.Module):  # its `value` is an attribute, not a box
        query: jax.Array
        value: jax.Array

    assert _paths.paths(Attention(jnp.ones(2), jnp.ones(2))) == ["query", "value"]


def test_tuple_keys_and_bare_arrays_have_paths():
    assert _paths.paths({"scales": {("kernel",): 1.0, ("a", "b"): 1.0}}) == [
        "scales/a/b",
        "scales/kernel",
    ]
    assert _paths.paths([1.0, (2.0, None)]) == ["0", "1/0", "1/1"]
    assert masks.resolve(path("**"), jnp.ones(2)) == 1.0


class Wrapper:
    """An array without a key, as haliax's `NamedArray` and simply's `AnnotatedArray`."""

    def __init__(self, *arrays):
        self.arrays = arrays


jax.tree_util.register_pytree_node(
    Wrapper, lambda w: (w.arrays, None), lambda _, x: Wrapper(*x)
)


def test_a_wrapper_around_one_array_adds_nothing_to_its_path():
    eqx = pytest.importorskip("equinox")

    class Holder(eqx.Module):
        weight: Wrapper

    wrapped = {"w": Wrapper(jnp.ones(2)), "h": Holder(Wrapper(Wrapper(jnp.ones((2, 2)))))}
    assert _paths.paths(wrapped) == ["h/weight", "w"]
    assert [leaf.holder for leaf in _paths.leaves(wrapped)] == [Holder, dict]
    assert chosen(path("**/weight"), wrapped) == ["h/weight"]
    absent = {"w": Wrapper(optax.MaskedNode()), "v": Wrapper(None)}
    assert [leaf.path for leaf in _paths.leaves(absent)] == ["v", "w"]
    assert _paths.unboxed(absent) == {"w": optax.MaskedNode(), "v": None}
    two = {"w": Wrapper(1.0, 2.0), "list": [1.0], "in": Wrapper({"a": 1.0})}
    assert _paths.paths(two) == ["in/0/a", "list/0", "w/0", "w/1"]


@pytest.mark.parametrize("wrap", [Wrapper, lambda x: nn.Partitioned(x, (None, None))])
@pytest.mark.parametrize(
    "make",
    [
        lambda m: optwd.adamw(0.1, weight_decay=0.5, mask=m),
        lambda m: optwd.decay.toward_init(0.5, m),
        lambda m: optwd.decay.constrained(0.01, mask=m),
        lambda m: optax.partition(
            {"a": optwd.decay.toward_init(0.5, m), "b": optwd.decay.constrained(0.1)},
            {"w": "a", "v": "b"},
        ),
    ],
)
def test_wrapped_parameters_step_as_bare_ones(make, wrap):
    bare = {"w": jnp.arange(4.0).reshape(2, 2), "v": jnp.ones((2, 2))}
    optimizer, steps = make(path("w")), []
    for params in (bare, {k: wrap(x) for k, x in bare.items()}):
        grads, state = jax.tree.map(jnp.cos, params), optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        steps.append(params)
    for one, other in zip(*map(jax.tree.leaves, steps), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(jax.tree.leaves(steps[0])[1], bare["w"])


def test_keys_of_any_class_are_segments():
    class Key:
        def __str__(self):
            return "odd"

    class Odd:
        def __init__(self, *children):
            self.children = children

    jax.tree_util.register_pytree_with_keys(
        Odd,
        lambda node: (zip((Key(), "plain"), node.children, strict=True), None),
        lambda _, children: Odd(*children),
    )
    tree = {"a": Odd(jnp.ones(2), jnp.ones(3))}
    assert _paths.paths(tree) == ["a/odd", "a/plain"]
    assert chosen(path("a/plain"), tree) == ["a/plain"]
    with pytest.raises(MaskError, match="nearest: a/odd, a/plain"):
        masks.resolve(path("a/od"), tree)


# --- mask trees ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["no", np.nan, -1.0, np.inf, jnp.ones(2)])
def test_bad_leaves_of_a_mask_tree_name_their_path(bad):
    tree = {"Dense_0": True, "Dense_1": {"kernel": bad, "bias": False}, "scale": 1.0}
    with pytest.raises(ValueError, match="Dense_1/kernel: a mask leaf must be True, False"):
        masks.resolve(tree, PARAMS)


def test_none_one_number_and_a_callable_are_masks():
    for mask, factor in ((None, 1.0), (True, 1.0), (False, 0.0), (0.5, 0.5)):
        assert set(jax.tree.leaves(masks.resolve(mask, PARAMS))) == {factor}
    for mask, factor in ((True, 1.0), (False, 0.0), (np.bool_(True), 1.0)):
        assert set(jax.tree.leaves(masks.resolve(lambda _, k=mask: k, PARAMS))) == {factor}
    halves = masks.resolve(lambda p: jax.tree.map(lambda _: 0.5, p), PARAMS)
    assert set(jax.tree.leaves(halves)) == {0.5}
    assert masks.resolve(lambda p: 0.5, jnp.ones(2)) == 0.5


# --- what is no mask -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "fix"),
    [
        ("**/kernel", r"say masks\.path\('\*\*/kernel'\)"),
        (masks.standard, r"masks\.standard makes a mask: call it, masks\.standard\(\)"),
        (masks.path, r"call it, masks\.path\(…\)"),
        (masks.multipliers, r"call it, masks\.multipliers\(…\)"),
    ],
)
def test_what_is_no_mask_is_an_error_at_once(mask, fix):
    for make in (optwd.adamw, optwd.sgdw, optwd.decay.linear, optwd.add_l2):
        with pytest.raises(TypeError, match=fix):
            make(0.1, mask=mask)
    with pytest.raises(TypeError, match=fix):
        optwd.tabulate(PARAMS, mask)


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (lambda p: p["x"], r"<lambda>.* raised KeyError .*: 'x'\. A callable mask takes"),
        (lambda: True, r"raised TypeError .* takes the parameters and gives a tree"),
        (optax.linear_schedule(1.0, 0.0, 9), "a schedule belongs to the rate"),
        (optax.constant_schedule(0.1), r"gives 0\.1 .* a schedule belongs to the rate"),
        (lambda p: jnp.float32(0.1), "gives Array.* a schedule belongs to the rate"),
        (["**/kernel"], r"0: .* got '\*\*/kernel'\. For patterns say masks\.path\."),
        ([-1.0], r"0: .* got -1\.0\.$"),
        ({"**/kernel": True}, r"only in the mask: .*globs as keys say masks\.multipliers"),
        (lambda p: "**/kernel", r"gives '\*\*/kernel' .* patterns to masks\.path"),
    ],
)
def test_a_mask_that_fails_says_what_to_write(mask, error):
    with pytest.raises(ValueError, match=error):
        optwd.adamw(1e-3, mask=mask).init(PARAMS)


def test_a_mask_error_within_a_callable_is_left_as_it_is():
    with pytest.raises(MaskError, match=r"^the pattern '\*\*/kernal' matches no leaf"):
        optwd.adamw(1e-3, mask=path("**/kernal").tree).init(PARAMS)


CHECKED = """
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from optwd import adamw, add_l2, compat, decay, masks, sgdw, tabulate

@dataclasses.dataclass
class Node:
    w: bool

class Registered:
    def tree_flatten(self) -> tuple[tuple[()], None]:
        return (), None

def kernels(params: Any) -> dict[str, bool]:
    return {"w": True}

def typed(params: dict[str, jax.Array]) -> Mapping[str, bool]:
    return {"w": True}

listed: list[bool] = [True]
named: dict[str, dict[str, float]] = {"a": {"w": 0.5}}

adamw(1e-3, mask=None)
adamw(1e-3, mask=masks.standard() & ~masks.path("**/w"))
adamw(1e-3, mask=masks.standard().tree)
adamw(1e-3, mask=True)
adamw(1e-3, mask=0.5)
adamw(1e-3, mask={"w": True, "b": [False, (0.5, None)]})
adamw(1e-3, mask=named)
adamw(1e-3, mask=listed)
adamw(1e-3, mask=(True, False))
adamw(1e-3, mask=Node(True))
adamw(1e-3, mask=Registered())
adamw(1e-3, mask=np.array(True))
adamw(1e-3, mask=np.bool_(True))
adamw(1e-3, mask=jnp.array(True))
adamw(1e-3, mask=kernels)
adamw(1e-3, mask=typed)
adamw(1e-3, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params))

adamw(1e-3, mask="**/kernel")  # wrong
adamw(1e-3, mask=masks.standard)  # wrong
adamw(1e-3, mask=lambda: True)  # wrong
adamw(1e-3, mask={"**/kernel"})  # wrong
sgdw(1e-3, mask=masks.standard)  # wrong
add_l2(0.1, "**/kernel")  # wrong
decay.linear(0.1, "**/kernel")  # wrong
decay.linear(0.1, masks.standard)  # wrong
decay.constrained(0.1, mask="**/kernel")  # wrong
tabulate({}, "**/kernel")  # wrong
compat.torch.adamw(1e-3, mask="**/kernel")  # wrong
"""


@pytest.mark.slow
def test_pyright_finds_what_is_no_mask(tmp_path):
    pytest.importorskip("pyright")
    file = tmp_path / "checked.py"
    file.write_text(CHECKED)
    command = (sys.executable, "-m", "pyright", "--outputjson", "--pythonpath")
    done = subprocess.run(
        [*command, sys.executable, str(file)],
        cwd=pathlib.Path(optwd.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = CHECKED.splitlines()
    wrong = [i for i, line in enumerate(lines) if line.endswith("# wrong")]
    assert [error["range"]["start"]["line"] for error in found] == wrong


def test_explain_says_what_decided():
    params = {"a": jnp.ones(2), "b": None, "c": jnp.ones(3)}
    for mask, *expected in (
        (None, (1.0, "every leaf"), (1.0, "every leaf")),
        ({"a": 0.5, "b": None, "c": True}, (0.5, "mask"), (1.0, "mask")),
        (path("a"), (1.0, "a"), (0.0, "no pattern")),
        (path("a") | ndim(0), (1.0, "a"), (1.0, "ndim ≥ 0")),  # the first of equals
    ):
        rows = masks.explain(mask, params)
        assert [leaf.path for leaf, *_ in rows] == ["a", "c"]
        assert [(factor, why) for _, factor, why in rows] == expected


def test_missing_and_extra_keys_are_named():
    whole = {"Dense_0": True, "Dense_1": {"kernel": True, "bias": True}, "scale": True}
    assert set(jax.tree.leaves(masks.resolve(whole, PARAMS))) == {1.0}
    with pytest.raises(ValueError, match=r"only in the parameters: scale\."):
        masks.resolve({k: v for k, v in whole.items() if k != "scale"}, PARAMS)
    with pytest.raises(
        ValueError, match=r"only in the mask: Dense_1/w\..*: Dense_1/kernel\."
    ):
        masks.resolve({**whole, "Dense_1": {"w": True, "bias": True}}, PARAMS)


@pytest.mark.parametrize(("number", "more"), [(5, ""), (6, ", …")])
def test_five_missing_keys_are_named(number, more):
    params = {f"w{i}": 1.0 for i in range(number)}
    with pytest.raises(ValueError, match=rf"in the parameters: w0, w1, w2, w3, w4{more}\."):
        masks.resolve({"x": True}, params)


@pytest.mark.parametrize("make", [lambda: freeze(SLASHES), lambda: SLASHES])
def test_two_leaves_with_one_path(make):
    """By paths they cannot be told apart, in the same containers they can."""
    params = make()
    mask = jax.tree.map(lambda p: p.ndim == 2, params)
    assert jax.tree.leaves(masks.resolve(mask, params)) == [0.0, 1.0]
    assert jax.tree.leaves(masks.resolve(path("a/b"), params)) == [1.0, 1.0]
    other = freeze if type(params) is dict else unfreeze
    with pytest.raises(ValueError, match="a/b: 2 leaves of the mask have this path"):
        masks.resolve(other(mask), params)
    with pytest.raises(ValueError, match="a/b: 2 leaves of the parameters have this path"):
        masks.resolve(other(freeze({"a": {"b": True}})), params)


SLASHES = {"a": {"b": jnp.ones(2)}, "a/b": jnp.ones((2, 2))}


def test_the_error_for_a_wrong_structure_is_linear():
    class Path(str):
        __slots__ = ()
        compared = 0

        def __eq__(self, other):
            Path.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    here, there = ([Path(f"{name}{i}") for i in range(1000)] for name in "ab")
    shared = [Path(f"c{i}") for i in range(1000)]
    said = _paths.difference("mask", [*shared, *here], "parameters", [*shared, *there])
    assert said.startswith("only in the mask: a0, a1, a2, a3, a4, …. only in the param")
    leaves = [_paths.Leaf(path, (), None, dict) for path in (*shared, *there)]
    with pytest.raises(ValueError, match="only in the mask: a0"):
        _mask_tree._by_path([(path, 1.0) for path in (*shared, *here)], leaves)
    params = dict.fromkeys(map(str, there), 0.0)
    with pytest.raises(ValueError, match="b0, b1, b10, b100, b101, …: no mu in the source"):
        _carry.like("mu", params, dict.fromkeys(here), "source")
    assert Path.compared < 10_000  # a search of the list each time: 1 000 000


def test_a_mask_that_depends_on_values_under_jit_is_explained():
    def step(params):
        return masks.resolve(jax.tree.map(lambda p: p.sum() > 0, params), params)

    with pytest.raises(
        ValueError, match="Dense_0/bias: the mask depends on a traced value"
    ):
        jax.jit(step)(PARAMS)


# --- what is not there ---------------------------------------------------------------


def test_none_and_shape_structs_and_traced_leaves():
    with_none = {**PARAMS, "Dense_1": {"kernel": None, "bias": jnp.ones(2)}}
    assert chosen(path("**/kernel"), with_none) == ["Dense_0/kernel"]
    assert chosen(path("**/kernel") | ndim(2), jax.eval_shape(lambda: PARAMS)) == [
        "Dense_0/kernel",
        "Dense_1/kernel",
    ]
    jax.jit(lambda p: chosen(ndim(2), p) and 0)(PARAMS)


def test_nothing_to_decay_is_fine():
    for empty in ({}, [], None, optax.MaskedNode()):
        assert masks.resolve(path("**/kernel"), empty) == empty


def test_one_policy_serves_every_part_of_a_partition():
    """A pattern may match another's leaves only, but still not nothing."""
    labels = {"Dense_0": "body", "Dense_1": "head", "scale": "body"}
    per_leaf = jax.tree.map(
        lambda label, sub: jax.tree.map(lambda _: label, sub), labels, PARAMS
    )

    def optimizer(mask, labels):
        parts = {
            "body": optwd.sgdw(1.0, weight_decay=0.1, mask=mask),
            "head": optwd.sgdw(1.0, weight_decay=0.2, mask=mask),
        }
        return optax.partition(parts, labels)

    policy = multipliers({"Dense_1/kernel": 3.0, "Dense_0/kernel": 1.0})
    for tree in (labels, per_leaf):
        assert decay_of(optimizer(policy, tree), PARAMS) == {
            "Dense_0": {"kernel": 0.1, "bias": 0.0},
            "Dense_1": {"kernel": 0.6, "bias": 0.0},
            "scale": 0.0,
        }
        assert decay_of(optimizer(PARAMS_KERNELS, tree), PARAMS)["Dense_1"]["kernel"] == 0.2
        for typo in (path("**/kernal"), path("Dense_2/**"), regex("Dense_1/kernal")):
            with pytest.raises(MaskError, match="matches no leaf"):
                optimizer(typo, tree).init(PARAMS)


PARAMS_KERNELS = jax.tree.map(lambda p: p.ndim == 2, PARAMS)


def test_a_regex_can_match_what_another_part_holds():
    tree = {"a": {"w": jnp.ones(2)}, "b": {"w": optax.MaskedNode()}}
    assert masks.resolve(regex("b/w"), tree)["a"] == {"w": 0.0}


def test_map_params_calls_init_with_a_placeholder():
    optimizer = optwd.adamw(1e-3, mask=path("**/kernel"))
    doubled = optax.tree.map_params(optimizer, lambda x: x + 2, optimizer.init(PARAMS))
    assert float(doubled[0].mu["scale"][0]) == 2.0


# --- a policy that chooses nothing ---------------------------------------------------


KERNEL_ONLY = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "count": jnp.ones(2, int)}


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (regex(".*kernel") & ndim(3), r"\(regex\('\.\*kernel'\) & ndim\(3\)\)"),
        (multipliers({"**/kernel": 0.0}), r"multipliers\({'\*\*/kernel': 0\.0}"),
        ((~path("**/kernel")).tree, r"Mask\.tree of ~path\('\*\*/kernel'\)"),
        (lambda p: jax.tree.map(lambda x: x.ndim > 5, p), "<lambda>"),
    ],
)
def test_a_policy_that_chooses_nothing_warns_once(mask, said):
    text = rf"{said}.* chooses none of the leaves here: Dense_0/kernel\. .*mask=False"
    for make in (
        functools.partial(optwd.adamw, 0.1),
        functools.partial(optwd.add_l2, 0.1),
        functools.partial(optwd.decay.toward_init, 0.1),
        optwd.scale_by_weight_norm,
    ):
        optimizer = make(mask=mask)
        with pytest.warns(UserWarning, match=text) as caught:
            state = optimizer.init(KERNEL_ONLY)
        assert len(caught) == 1
        optimizer.update(KERNEL_ONLY, state, KERNEL_ONLY)  # not again: it would raise


def test_a_part_of_a_partition_without_decay_warns_and_names_the_pattern():
    parts = {"body": optwd.sgdw(1.0, mask=path("**/scale")), "rest": optax.sgd(1.0)}
    labels = {"Dense_0": "body", "Dense_1": "body", "scale": "rest"}
    with pytest.warns(UserWarning, match=r"path\('\*\*/scale'\) .*Dense_0/bias, .*, …\. "):
        optax.partition(parts, labels).init(PARAMS)


@pytest.mark.parametrize(
    ("mask", "params"),
    [
        (False, KERNEL_ONLY),
        ({"Dense_0": False, "count": True}, KERNEL_ONLY),
        (path("**/kernel"), KERNEL_ONLY),
        (path("**/kernel"), {}),
        (lambda p: False, {"a": None}),
        (masks.standard(), {"count": jnp.ones((2, 2), int)}),
        (path("b"), {"a": optax.MaskedNode(), "b": optax.MaskedNode()}),
    ],
)
def test_what_is_meant_does_not_warn(mask, params):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optwd.adamw(1e-3, mask=mask).init(params)


# --- in use --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda m: optwd.adamw(0.1, weight_decay=0.5, mask=m),
        lambda m: optwd.amsgradw(0.1, weight_decay=0.5, mask=m),
        lambda m: optwd.nadamw(0.1, weight_decay=0.5, mask=m),
        lambda m: optwd.sgdw(0.1, weight_decay=0.5, mask=m),
        lambda m: optwd.sgd_l2(0.1, l2=0.5, mask=m),
        lambda m: optwd.with_weight_decay(optax.adam(0.1), optwd.decay.linear(0.05, m)),
        lambda m: optwd.with_weight_decay(optax.adam(0.1), optwd.decay.cautious(0.05, m)),
        lambda m: optwd.with_weight_decay(
            optax.adam(0.1),
            optwd.decay.toward(jax.tree.map(jnp.zeros_like, PARAMS), 0.05, m),
        ),
        lambda m: optax.MultiSteps(optwd.adamw(0.1, weight_decay=0.5, mask=m), 1),
        lambda m: optax.inject_hyperparams(optwd.adamw)(0.1, weight_decay=0.5, mask=m),
        lambda m: optax.inject_hyperparams(optwd.adamw)(
            learning_rate=optax.constant_schedule(0.1), weight_decay=0.5, mask=m
        ),
    ],
)
def test_exactly_the_masked_leaves_decay_by_their_multiplier(make):
    mask = multipliers({"Dense_1/kernel": 2.0, "**/kernel": 1.0})
    assert decay_of(make(mask), PARAMS) == {
        "Dense_0": {"kernel": 0.05, "bias": 0.0},
        "Dense_1": {"kernel": 0.1, "bias": 0.0},
        "scale": 0.0,
    }


def test_the_bound_method_is_a_mask_for_optax():
    mask = path("**/kernel")
    tree = mask.tree(PARAMS)
    assert tree == PARAMS_KERNELS
    assert all(type(k) is bool for k in jax.tree.leaves(tree))
    optimizer = optax.adamw(0.1, weight_decay=0.5, mask=mask.tree)
    assert decay_of(optimizer, PARAMS) == decay_of(
        optwd.adamw(0.1, weight_decay=0.5, mask=mask), PARAMS
    )
    assert decay_of(optwd.adamw(0.1, weight_decay=0.5, mask=mask.tree), PARAMS) == decay_of(
        optimizer, PARAMS
    )


def test_mask_trees_and_parameters_may_differ_in_container():
    by_path = {"Dense_0": {"kernel": 2.0, "bias": False}, "Dense_1": True, "scale": False}
    expected = {
        "Dense_0": {"kernel": 2.0, "bias": 0.0},
        "Dense_1": {"kernel": 1.0, "bias": 1.0},
        "scale": 0.0,
    }
    frozen = freeze(PARAMS)
    for mask, params in ((freeze(by_path), PARAMS), (by_path, frozen), (by_path, PARAMS)):
        resolved = masks.resolve(mask, params)
        assert type(resolved) is type(params)
        assert (
            unfreeze(resolved) if isinstance(resolved, FrozenDict) else resolved
        ) == expected
        optimizer = optwd.adamw(0.1, weight_decay=0.5, mask=mask)
        assert decay_of(optimizer, params)["Dense_0"] == {"kernel": 0.1, "bias": 0.0}
    wrong = {"Dense_0": True, "Dense_1": True, "tail": True}
    with pytest.raises(ValueError, match=r"only in the mask: tail\..*parameters: scale\."):
        masks.resolve(wrong, frozen)
    hidden = {**frozen, "scale": optax.MaskedNode(), "Dense_1": None}
    assert masks.resolve(freeze(by_path), hidden)["Dense_0"] == expected["Dense_0"]


@pytest.mark.parametrize("mask", [path("**/kernel"), path("**/kernel").tree, "tree"])
def test_nnx_optimizer(mask):
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    model.bias[...] = jnp.ones(2)
    before = nnx.to_pure_dict(nnx.state(model))
    if mask == "tree":
        mask = path("**/kernel").tree(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(
        model, optwd.adamw(0.1, weight_decay=0.5, mask=mask), wrt=nnx.Param
    )
    grads = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    optimizer.update(model, grads)
    np.testing.assert_allclose(model.kernel[...], 0.95 * before["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(model.bias[...], before["bias"])


@pytest.mark.parametrize("mask", [path("**/kernel"), path("**/kernel").tree, None])
@pytest.mark.parametrize("rule", ["toward_init", "constrained", "proximal"])
def test_nnx_optimizer_with_other_rules(rule, mask):
    """`init` sees Variables, `update` plain arrays; a rule with a state keeps it."""
    make = {
        "toward_init": lambda: optwd.decay.toward_init(0.5, mask),
        "constrained": lambda: optwd.decay.constrained(1e-3, mask=mask),
        "proximal": lambda: optwd.decay.proximal(0.5, mask),
    }[rule]
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tx = optax.chain(optwd.scale_by_adam(), make(), optax.scale(-1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    state = tx.init(params)
    grads = jax.tree.map(lambda p: jnp.cos(p + 1), nnx.state(model, nnx.Param))
    for _ in range(3):  # as on a dict of arrays
        optimizer.update(model, grads)
        updates, state = tx.update(nnx.to_pure_dict(grads), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(model.kernel[...], params["kernel"])
    np.testing.assert_array_equal(model.bias[...], params["bias"])


def test_train_state_and_linen():
    model = nn.Dense(2, bias_init=nn.initializers.ones)
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))
    tx = optwd.adamw(0.1, weight_decay=0.5, mask=path("params/kernel"))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    new = state.apply_gradients(grads=jax.tree.map(jnp.zeros_like, params)).params["params"]
    np.testing.assert_allclose(new["kernel"], 0.95 * params["params"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(new["bias"], params["params"]["bias"])


# --- cost ----------------------------------------------------------------------------


def test_resolved_once_per_trace(monkeypatch):
    seen = []
    decide = _decide.path
    monkeypatch.setattr(_decide, "path", lambda *x: seen.append(1) or decide(*x))
    optimizer = optwd.adamw(1e-3, mask=path("**/kernel"))
    state = optimizer.init(PARAMS)
    seen.clear()
    step = jax.jit(optimizer.update)
    for _ in range(3):
        _, state = step(PARAMS, state, PARAMS)
    assert len(seen) == 1


def test_a_masked_step_has_no_more_fusions():
    def fusions(mask):
        optimizer = optwd.adamw(1e-3, mask=mask)
        state = optimizer.init(PARAMS)
        compiled = jax.jit(optimizer.update).lower(PARAMS, state, PARAMS).compile()
        return compiled.as_text().count(" fusion(")

    assert 0 < fusions(path("**/kernel")) <= fusions(None)
    assert fusions(multipliers({"**/kernel": 0.5})) <= fusions(None)
