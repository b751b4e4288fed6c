"""The runs behind `audit`: an optimizer on weights that are held still.

Two runs on the same weights and gradients, one with the decay and one without: the
difference of their updates is the decay. Everything is in float64 and on the CPU, so that
a rate of 1e-8 is seen as clearly as one of 0.1.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax

from optwd import _dtypes, _paths

Arrays = list[np.ndarray]  # one per leaf
Numbers = tuple[float, ...]  # learning rate and weight decay, or the latter alone

# XLA's passes and its fusion emitters take longer than these small programs.
_QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
_SMALL = 4096  # elements in all, up to which no axis is cut
_SHORT = 8  # axes that are never cut


class Loop(NamedTuple):
    """A training loop that is not Optax's, as something that `audit` can run.

    It is called with NumPy arrays and never traced, so that PyTorch, Keras or a loop
    written by hand runs as it always does.

    Attributes:
      init: from the parameters to whatever ``step`` keeps.
      step: ``step(params, gradients, state)`` returns the new parameters and the new state.
        ``params`` need not be what the last step returned: `audit` holds the weights still.
    """

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], tuple[Any, Any]]


class Feed(NamedTuple):
    """What an optimizer is given: weights at ``init``, weights and gradients per step."""

    start: Arrays
    weights: list[Arrays]
    gradients: list[Arrays]

    def first(self, steps: int) -> "Feed":
        """Its first steps."""
        return Feed(self.start, self.weights[:steps], self.gradients[:steps])


class Seen(NamedTuple):
    """What was seen of one leaf; every list has one entry per step."""

    decay: Arrays  # the update with the decay, less the one without
    step: Arrays  # the update without it
    weights: Arrays
    start: np.ndarray
    noise: list[float]  # how far rounding can move a difference


@contextlib.contextmanager
def exactly() -> Iterator[None]:
    """float64 on the CPU, whatever the session has."""
    module: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    with module.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield


@dataclasses.dataclass(frozen=True)
class Tree:
    """The leaves that the optimizer is run on."""

    structure: Any
    paths: list[str]
    shapes: list[tuple[int, ...]]
    dtypes: list[Any]

    @classmethod
    def like(cls, params: Any) -> "Tree":
        """The leaves of `params`, with long axes cut where there are many elements."""
        leaves = _paths.by_path(params)
        shapes = [tuple(np.shape(x)) for x in leaves.values()]
        if sum(map(math.prod, shapes)) > _SMALL:
            # Equal axes stay equal, and a longer one stays longer.
            long = sorted({n for shape in shapes for n in shape if n > _SHORT})
            cut = {n: min(n, 3 + i) for i, n in enumerate(long)}
            shapes = [tuple(cut.get(n, n) for n in shape) for shape in shapes]
        dtypes = [np.dtype(_dtypes.dtype_of(x)) for x in leaves.values()]
        return cls(jax.tree.structure(params), list(leaves), shapes, dtypes)

    def pack(self, arrays: Iterable[Any]) -> Any:
        """The tree of these arrays."""
        return self.structure.unflatten(arrays)

    def unpack(self, tree: Any) -> Arrays:
        """The arrays of this tree, in double precision."""
        held = self.structure.flatten_up_to(tree)
        return [
            np.zeros(shape) if x is None else np.asarray(x).astype(_double(np.asarray(x)))
            for x, shape in zip(held, self.shapes, strict=True)
        ]

    def draw(self, seed: int) -> Arrays:
        """Numbers of any sign and of a size from ½ to 1½; small integers if integer."""
        rng, drawn = np.random.default_rng(seed), []
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            size = rng.uniform(0.5, 1.5, shape)
            if not jnp.issubdtype(dtype, jnp.inexact):
                drawn.append(np.asarray(4 * size + 1).astype(dtype))
            elif jnp.issubdtype(dtype, jnp.complexfloating):
                drawn.append(np.asarray(size * np.exp(2j * np.pi * rng.random(shape))))
            else:
                drawn.append(np.asarray(size * rng.choice([-1.0, 1.0], shape)))
        return drawn

    def is_floating(self, leaf: int) -> bool:
        """Whether that leaf is real or complex floating."""
        return jnp.issubdtype(self.dtypes[leaf], jnp.inexact)


def feed(tree: Tree, steps: int) -> Feed:
    """Weights at rest, a little away from where they began, and new gradients per step."""
    weights, other = tree.draw(0), tree.draw(1)
    start = [
        (0.9 * w + 0.1 * o).astype(w.dtype) for w, o in zip(weights, other, strict=True)
    ]
    gradients = [tree.draw(10 + t) for t in range(steps)]
    for g in gradients:
        for i, x in enumerate(g):
            g[i] = x if tree.is_floating(i) else np.zeros_like(x)
    return Feed(start, [weights] * steps, gradients)


def scaled(f: Feed, tree: Tree, leaves: Iterable[int], *, weights: float, gradients: float):
    """The same, with the weights and gradients of some leaves multiplied."""
    chosen = {i for i in leaves if tree.is_floating(i)}

    def times(arrays: Arrays, factor: float) -> Arrays:
        return [factor * x if i in chosen else x for i, x in enumerate(arrays)]

    return Feed(
        times(f.start, weights),
        [times(w, weights) for w in f.weights],
        [times(g, gradients) for g in f.gradients],
    )


def moved(f: Feed, tree: Tree) -> Feed:
    """The same, with other weights in the last step."""
    return f._replace(weights=[*f.weights[:-1], tree.draw(2)])


def penalised(f: Feed, factors: list[float]) -> Feed:
    """The same, with each gradient plus a multiple of its weights."""
    return f._replace(
        gradients=[
            [x + k * y if k else x for x, y, k in zip(g, w, factors, strict=True)]
            for g, w in zip(f.gradients, f.weights, strict=True)
        ]
    )


class Program:
    """What `build` makes of some numbers, traced and compiled once for all of them."""

    def __init__(self, build: Callable[..., Any]):
        def init(numbers: Numbers, params: Any) -> Any:
            return build(*numbers).init(params)

        def update(numbers: Numbers, gradients: Any, state: Any, params: Any) -> Any:
            return build(*numbers).update(gradients, state, params)

        def first(numbers: Numbers, start: Any, gradients: Any, params: Any) -> Any:
            made = build(*numbers)
            return made.update(gradients, made.init(start), params)[0]

        def step(numbers: Numbers, gradients: Any, state: Any, params: Any) -> Any:
            updates, state = update(numbers, gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.init, self.update, self.first, self.step = (
            jax.jit(f, compiler_options=_quick()) for f in (init, update, first, step)
        )


class Runner:
    """An optimizer or a loop, ready to run on any feed.

    `program` takes `numbers` and returns the optimizer; by default it is `made` itself.
    """

    def __init__(
        self,
        tree: Tree,
        made: Any,
        name: str,
        program: Program | None = None,
        numbers: Numbers = (),
    ):
        if not isinstance(made, Loop) and not (
            callable(getattr(made, "init", None))
            and callable(getattr(made, "update", None))
        ):
            raise TypeError(
                f"audit: {name} returned {made!r}. It must return an Optax transformation, "
                "with `init` and `update`, or an `optwd.Loop`."
            )
        self.tree, self.name, self.made = tree, name, made
        self.numbers = numbers if program else ()
        self.program = program or Program(lambda: made)
        self.single = [True] * len(tree.paths)  # nothing returned that float32 cannot hold

    def __call__(self, f: Feed, *, free: bool = False) -> list[Arrays]:
        """The updates of every step; or, set free, the weights that they lead to."""
        seen, weights = [], f.start
        with self._named():
            state = self._init(self._tree(weights))
            for held, gradients in zip(f.weights, f.gradients, strict=True):
                weights = weights if free else held
                updates, state = self._step(gradients, state, weights)
                if free:
                    weights = [w + u for w, u in zip(weights, updates, strict=True)]
                seen.append(weights if free else updates)
        return seen

    def first(self, f: Feed) -> Arrays:
        """The updates of the first step alone, which takes less to compile."""
        with self._named():
            trees = map(self._tree, (f.start, f.gradients[0], f.weights[0]))
            return self.tree.unpack(self.program.first(self.numbers, *trees))

    def eps(self, leaf: int) -> float:
        """Sixteen roundings in the dtype of what was returned, relative to it."""
        return 16 * float(np.finfo(np.float32 if self.single[leaf] else np.float64).eps)

    def decay_only(self, start: Arrays, steps: int) -> Arrays:
        """Where zero gradients lead in that many steps, in the dtypes of `start`."""
        with self._named():
            params = self.tree.pack(start)
            zeros = jax.tree.map(np.zeros_like, params)
            state = self._init(params)
            for _ in range(steps):
                params, state = self.program.step(self.numbers, zeros, state, params)
            return self.tree.unpack(params)

    def _init(self, params: Any) -> Any:
        if isinstance(self.made, Loop):
            return self.made.init(params)
        return self.program.init(self.numbers, params)

    def _step(self, gradients: Arrays, state: Any, weights: Arrays) -> tuple[Arrays, Any]:
        g, w = self._tree(gradients), self._tree(weights)
        if isinstance(self.made, Loop):
            new, state = self.made.step(w, g, state)
            return [x - y for x, y in zip(self._returned(new), weights, strict=True)], state
        updates, state = self.program.update(self.numbers, g, state, w)
        return self._returned(updates), state

    def _tree(self, arrays: Arrays) -> Any:
        # A loop gets copies, since it may write into them.
        return self.tree.pack(
            map(np.copy, arrays) if isinstance(self.made, Loop) else arrays
        )

    def _returned(self, tree: Any) -> Arrays:
        arrays = self.tree.unpack(tree)
        for i, x in enumerate(arrays):
            narrow = np.complex64 if np.iscomplexobj(x) else np.float32
            with np.errstate(over="ignore", invalid="ignore"):
                self.single[i] &= bool(np.all(x.astype(narrow) == x))
        return arrays

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            leaves = zip(self.tree.paths, self.tree.shapes, strict=True)
            shapes = ", ".join(f"{path} {shape}" for path, shape in leaves)
            raise ValueError(
                f"audit: what {self.name} returned raised {type(error).__name__}: {error}\n"
                f"It was given float64 leaves: {shapes}. Give `params` of shapes that it "
                f"takes; below {_SMALL} elements in all, none is cut."
            ) from error


def compare(with_decay: Runner, without: Runner, f: Feed) -> list[Seen]:
    """What the decay does to each leaf."""
    one, zero = with_decay(f), without(f)
    seen = []
    for i, start in enumerate(f.start):
        a, b, weights = ([arrays[i] for arrays in x] for x in (one, zero, f.weights))
        eps = max(with_decay.eps(i), without.eps(i))
        whole = isinstance(without.made, Loop)
        noise = [
            eps * (max(largest(x), largest(y)) + whole * largest(w))
            for x, y, w in zip(a, b, weights, strict=True)
        ]
        decay = [x - y for x, y in zip(a, b, strict=True)]
        seen.append(Seen(decay, b, weights, start, noise))
    return seen


def largest(x: Any) -> float:
    """The largest absolute value; 0 of nothing."""
    return float(np.max(np.abs(x), initial=0.0))


def _double(x: np.ndarray) -> Any:
    return np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64


@functools.cache
def _quick() -> dict[str, Any]:
    """The options that this version of XLA has."""
    known = {}
    for name, value in _QUICK.items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
            known[name] = value
    return known
