"""What several test files need."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import optwd
from optwd import _probe
from tests.registry import KINDS, Entry

PLATFORMS = ("cpu", "cuda", "tpu")


def enable_x64(on: bool = True) -> contextlib.AbstractContextManager:
    """float64, under the name that this version of JAX has for it."""
    module = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(on)


def pictures(monkeypatch: pytest.MonkeyPatch, example: Any) -> list[Any]:
    """Takes every picture that the example draws from here on."""
    drawn, draw = [], example.draw
    monkeypatch.setattr(example, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    return drawn


def named(picture: Any) -> set[str]:
    """What the legends of a picture and of its panels name."""
    legends = [*picture.legends, *(panel.get_legend() for panel in picture.axes)]
    return {text.get_text() for x in legends if x for text in x.get_texts()}


def stepper(transformation: optax.GradientTransformation) -> Callable[..., Any]:
    """One step on (params, state, gradients); the updates are added, whatever they mean."""

    def step(params, state, gradients):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def path_of(
    optimizer: optax.GradientTransformation,
    start: Any,
    noise: Any,
    gradient: Callable[[Any, Any], Any] = lambda params, noise: noise,
) -> Any:
    """The parameters after each step, stacked; one step for each row of `noise`."""

    def body(carry, n):
        params, state = carry
        carry = stepper(optimizer)(params, state, gradient(params, n))
        return carry, carry[0]

    @jax.jit
    def path(start, noise):
        return jax.lax.scan(body, (start, optimizer.init(start)), noise)[1]

    return jax.device_get(path(start, noise))


def random_tree(shapes: Any, seed: int, dtype: Any = jnp.float32) -> Any:
    """Normal numbers in a tree of `shapes`, which are tuples."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        x = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape)
        return jax.device_put(np.asarray(x, dtype))  # jnp.asarray would compile

    return jax.tree.map(leaf, shapes, is_leaf=lambda x: isinstance(x, tuple))


def stack(*trees: Any) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def assert_same_signature(*trees: Any) -> None:
    """Structure, shapes, dtypes and weak types are equal."""
    chex.assert_trees_all_equal_shapes_and_dtypes(*trees)
    weak = [
        [getattr(x, "weak_type", False) for x in jax.tree.leaves(tree)] for tree in trees
    ]
    assert all(w == weak[0] for w in weak)


def written_and_read(function: Callable[..., Any], *args: Any) -> export.Exported:
    """The function, exported for every platform, serialized and deserialized."""
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    restored = export.deserialize(exported.serialize())
    assert restored.platforms == PLATFORMS
    return restored


def quick(level: int = 0) -> str:
    """XLA's flags, in a process of many programs, to compile rather than to run quickly.

    With LLVM's optimizations of level 1 they also run quickly. What is computed, where it
    lives and what is sent are the same.
    """
    options = _probe._quick().items()
    chosen = {"xla_backend_optimization_level": level}
    return " ".join(f"--{name}={chosen.get(name, x)}".lower() for name, x in options)


def python(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Another Python, in another directory, with the package that is tested here."""
    own = {"PYTHONPATH": str(Path(optwd.__file__).parents[1]), "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=os.environ | own | environment,
        capture_output=True,
        encoding="utf-8",
    )


def cases(each: Mapping[str, Any], quick: Collection[str]) -> list[Any]:
    """A parameter for each case, a tuple for several; by default the quick ones run."""
    assert set(quick) <= set(each)
    return [
        pytest.param(
            *(values if isinstance(values, tuple) else (values,)),
            id=name,
            marks=[] if name in quick else pytest.mark.slow,
        )
        for name, values in each.items()
    ]


def each(entries: list[Entry]) -> pytest.MarkDecorator:
    """Run a test for each entry; by default for one of each kind."""
    named = {str(entry): entry for entry in entries}
    return pytest.mark.parametrize("entry", cases(named, named.keys() & KINDS))
