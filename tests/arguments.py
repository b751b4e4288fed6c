"""Change each argument of each public function, and see whether a test notices.

    python tests/arguments.py [function …] [--seconds S] [--calls FILE]

`mutation.py` breaks the code; this breaks what it is given. A test that passes `eps=1e-3`
should fail where the function takes another number, and where it takes its default instead;
a test that leaves `eps` out should fail where the default is another. For each argument:

- *ignored*: the default takes the place of what is given;
- *changed*: its neighbour does: a number 2% less (below 1e-3 ten times as much, 0.01 for
  0), a Boolean its opposite, a word the next one, bfloat16 for a wider dtype and float32
  for a narrow one, a mask its complement, a schedule or a transformation one of which the
  result is 2% less;
- *default*: the neighbour of the default takes the place of the default.

All tests run once, to see which of them call what. Then each change is tried on those that
do, the quickest first, until one fails or S seconds have passed, and at last on the files
that make such a call when they are loaded, which are loaded again. It is one process, which
need not compile twice: a public function keeps its identity, and only its body is replaced.
`--calls` keeps the record of the first run for the next. Trees of arrays, state dicts and
names of leaves have no neighbour here; they are counted as not tried.
"""

import argparse
import collections
import contextlib
import inspect
import json
import random
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optwd
from tests.rerun import Again

MASKS = ("mask", "weight_decay_mask", "decay_var_list")
LESS = 0.98


class NoNeighbour(Exception):  # noqa: N818
    """There is nothing next to this value."""


def public() -> dict[str, types.FunctionType]:
    """Every public function, by its address below `optwd`."""
    found: dict[str, types.FunctionType] = {}

    def walk(module: types.ModuleType, prefix: str) -> None:
        for name in getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"]):
            value = getattr(module, name)
            if isinstance(value, types.FunctionType):
                found[prefix + name] = value
            elif isinstance(value, types.ModuleType):
                walk(value, f"{prefix}{name}.")

    walk(optwd, "")
    return found


def neighbour(function: Callable[..., Any], name: str, value: Any) -> Any:
    """What takes the place of `value`."""
    if name in MASKS:
        return _other_mask(value)
    if name.endswith("dtype"):
        narrow = value is not None and jnp.finfo(value).bits < 32
        return jnp.float32 if narrow else jnp.bfloat16
    words = _words(function, name)
    if isinstance(value, str) and value in words:
        return words[(words.index(value) + 1) % len(words)]
    match value:
        case bool():
            return not value
        case int() | float() if _is_integer(function, name):
            return value + 1
        case int() | float():
            return 0.01 if value == 0 else value * (LESS if abs(value) >= 1e-3 else 10)
        case str():
            return value + "_"
        case dict() if value and all(isinstance(x, int | float) for x in value.values()):
            return {k: neighbour(_nothing, k, x) for k, x in value.items()}
        case tuple() | list() if value and all(isinstance(x, str) for x in value):
            return value[:-1]
        case tuple() | list() if value and all(isinstance(x, tuple) for x in value):
            return type(value)((k, neighbour(_nothing, k, x)) for k, x in value)
    if isinstance(value, jax.Array | np.ndarray | np.generic) and jnp.ndim(value) == 0:
        if jnp.issubdtype(value.dtype, jnp.floating):
            return value * jnp.asarray(LESS, value.dtype)
        return value + jnp.ones((), value.dtype)
    if hasattr(value, "init") and hasattr(value, "update"):
        return _weaker(value)
    if callable(value):
        return lambda *args, **kwargs: _less(value(*args, **kwargs))
    raise NoNeighbour


def _nothing() -> None: ...


def _words(function: Callable[..., Any], name: str) -> list[str]:
    """The values of a Literal, or the rows of the table of conventions."""
    if name in ("source", "target"):
        return list(optwd.compat.CONVENTIONS)
    hint = _hints(function).get(name)
    return [x for x in typing.get_args(hint) if isinstance(x, str)]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    with contextlib.suppress(NameError, TypeError):
        return typing.get_type_hints(function)
    return {}


def _is_integer(function: Callable[..., Any], name: str) -> bool:
    return name == "seed" or _hints(function).get(name) in (int, int | None)


def _other_mask(mask: Any) -> Any:
    if mask is None:
        return False
    if isinstance(mask, optwd.masks.Mask):
        return ~mask
    if isinstance(mask, list | set) or (isinstance(mask, tuple) and mask):  # TF-Addons
        return list(mask)[:-1]
    if callable(mask):
        return lambda params: _other_mask(mask(params))
    return jax.tree.map(lambda x: not x if isinstance(x, bool) else 1.0 - x, mask)


def _weaker(inner: Any) -> Any:
    inner = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        new, state = inner.update(updates, state, params, **extra)
        return _less(new), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _less(result: Any) -> Any:
    if hasattr(result, "init") and hasattr(result, "update"):
        return _weaker(result)

    def less(x: Any) -> Any:
        if isinstance(x, float):
            return LESS * x
        inexact = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
        return x * jnp.asarray(LESS, x.dtype) if inexact else x

    return jax.tree.map(less, result)


class Change(typing.NamedTuple):
    """One argument of one function, and what becomes of it."""

    function: str
    argument: str
    how: str
    index: int | None = None  # of a pair such as betas

    def __str__(self) -> str:
        place = "" if self.index is None else f"[{self.index}]"
        return f"{self.function}({self.argument}{place}) {self.how}"


class Spy:
    """Stands in every public function: notes its arguments, and changes one of them."""

    def __init__(self, functions: Mapping[str, types.FunctionType]) -> None:
        self.functions: dict[str, Any] = dict(functions)
        self.originals: dict[str, Callable[..., Any]] = {}
        self.signatures: dict[str, inspect.Signature] = {}
        self.change: Change | None = None
        self.calls: set[str] = set()
        self.applied = 0
        for address, function in functions.items():
            self._enter(address, function)

    def begin(self, change: Change) -> None:
        """Let the change be, also in the signature that others read."""
        self.change, self.applied = change, 0
        if change.how != "default":
            return
        signature = self.signatures[change.function]
        bound = signature.bind_partial()
        parameter = signature.parameters[change.argument]
        self._apply(change, bound, parameter, given=False)
        new = parameter.replace(default=bound.arguments[change.argument])
        parameters = {**signature.parameters, change.argument: new}
        self.functions[change.function].__signature__ = signature.replace(
            parameters=list(parameters.values())
        )

    def end(self) -> None:
        """Let everything be as it was."""
        if self.change:
            name = self.change.function
            self.functions[name].__signature__ = self.signatures[name]
        self.change = None

    def _enter(self, address: str, function: types.FunctionType) -> None:
        code, space = function.__code__, function.__globals__
        original = types.FunctionType(code, space, function.__name__, function.__defaults__)
        original.__kwdefaults__ = function.__kwdefaults__
        original.__annotations__ = function.__annotations__
        self.originals[address] = original
        self.signatures[address] = inspect.signature(original)
        function.__signature__ = self.signatures[address]  # type: ignore[attr-defined]
        body: dict[str, Any] = {}
        exec(f"def f(*a, **k): return __spy__({address!r}, a, k)", body)
        space["__spy__"] = self
        function.__code__ = body["f"].__code__.replace(
            co_name=code.co_name,
            co_filename=code.co_filename,
            co_firstlineno=code.co_firstlineno,
        )
        function.__defaults__ = function.__kwdefaults__ = None

    def __call__(self, address: str, args: tuple, kwargs: dict) -> Any:
        original, signature = self.originals[address], self.signatures[address]
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        for name, parameter in signature.parameters.items():
            given = name in bound.arguments and not _same(
                bound.arguments[name], parameter.default
            )
            self.calls.add(f"{address} {name} {'given' if given else 'left'}")
            change = self.change
            if change and (change.function, change.argument) == (address, name):
                self._apply(change, bound, parameter, given)
        return original(*bound.args, **bound.kwargs)

    def _apply(
        self, change: Change, bound: inspect.BoundArguments, parameter: Any, given: bool
    ) -> None:
        if given == (change.how == "default"):
            return
        name, function = change.argument, self.originals[change.function]
        value = bound.arguments.get(name, parameter.default)
        if change.how == "ignored":
            new = parameter.default
        else:
            try:
                if change.index is None:
                    new = neighbour(function, name, value)
                else:
                    new = list(value)
                    new[change.index] = neighbour(_nothing, name, value[change.index])
                    new = tuple(new)
            except (NoNeighbour, TypeError):
                return
        self.applied += 1
        bound.arguments[name] = new

    def changes(self, chosen: list[str]) -> Iterator[tuple[Change, str]]:
        """Every change, and the call that must be seen in a test that may notice it."""
        for address, signature in self.signatures.items():
            if chosen and address not in chosen:
                continue
            for name, parameter in signature.parameters.items():
                called, default = f"{address} {name}", parameter.default
                pair = [0, 1] if name == "betas" else [None]
                has_default = default is not inspect.Parameter.empty
                if has_default:
                    yield Change(address, name, "ignored"), f"{called} given"
                for i in pair:
                    yield Change(address, name, "changed", i), f"{called} given"
                    if has_default and self._has_neighbour(address, name, default):
                        yield Change(address, name, "default", i), f"{called} left"

    def _has_neighbour(self, address: str, name: str, default: Any) -> bool:
        if default is None and not (name in MASKS or name.endswith("dtype")):
            return False
        with contextlib.suppress(NoNeighbour):
            neighbour(self.originals[address], name, default)
            return True
        return False


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    plain = (bool, int, float, str, tuple, type(None))
    return isinstance(value, plain) and isinstance(default, plain) and value == default


class Hunt:
    """Every change, on the tests that make such a call."""

    def __init__(self, spy: Spy, chosen: list[str], seconds: float, calls: Path | None):
        self.spy, self.chosen, self.seconds, self.calls = spy, chosen, seconds, calls
        self.record: dict[str, tuple[float, list[str]]] = {}
        self.found: collections.Counter[str] = collections.Counter()
        self.loaded: dict[str, set[str]] = {}  # what a file calls when it is loaded
        self.end = 0.0

    def pytest_collectreport(self, report: Any) -> None:
        if self.spy.change is None and report.nodeid.endswith(".py"):
            self.loaded.setdefault(report.nodeid, set()).update(self.spy.calls)
        self.spy.calls = set()

    def __call__(self, again: Again, tests: list[Any]) -> None:
        self.fails, items = again.fails, {item.nodeid: item for item in tests}
        if self.calls and self.calls.exists():
            self.record = json.loads(self.calls.read_text())
        known = {nodeid.split("::")[0] for nodeid in self.record}
        self._first({k: x for k, x in items.items() if k.split("::")[0] not in known})
        if self.calls:
            self.calls.write_text(json.dumps(self.record))
        callers: dict[str, list[str]] = {}
        for nodeid, (_, calls) in self.record.items():
            for call in calls if nodeid in items else ():
                callers.setdefault(call, []).append(nodeid)
        self._try(items, callers)

    def _first(self, items: dict[str, Any]) -> None:
        """What each test calls; a test that fails under the spy is left out."""
        for nodeid, item in items.items():
            self.spy.calls, start = set(), time.monotonic()
            if self.fails(item):
                print(f"left out, fails as it is: {nodeid}", flush=True)
            elif self.spy.calls:
                self.record[nodeid] = (time.monotonic() - start, sorted(self.spy.calls))

    def _try(self, items: dict[str, Any], callers: dict[str, list[str]]) -> None:
        count: collections.Counter[str] = collections.Counter()
        for change, call in self.spy.changes(self.chosen):
            outcome = self._outcome(change, items, callers.get(call, []))
            count[outcome] += 1
            if outcome != "noticed":
                print(f"{outcome}: {change}", flush=True)
        print(", ".join(f"{n} {outcome}" for outcome, n in sorted(count.items())))

    def _outcome(self, change: Change, items: dict[str, Any], nodeids: list[str]) -> str:
        call = f"{change.function} {change.argument} "
        call += "left" if change.how == "default" else "given"
        files = [file for file, calls in self.loaded.items() if call in calls]
        if change.how == "default":  # tests that read signatures call nothing
            nodeids = [*nodeids, *(n for n in items if "default" in n.split("::")[-1])]
        if not nodeids and not files:
            return "no test does"
        self.spy.begin(change)
        self.end = time.process_time() + self.seconds
        random.Random(0).shuffle(nodeids)
        nodeids = sorted(
            nodeids, key=lambda n: self.record.get(n, (0.1, []))[0] / (1 + self.found[n])
        )
        try:
            if any(self._notices(items[nodeid]) for nodeid in nodeids):
                return "noticed"
            self.end = time.process_time() + self.seconds
            if any(self._notices_anew(file, items) for file in files):
                return "noticed"
        finally:
            self.spy.end()
        return "UNNOTICED" if self.spy.applied else "not tried"

    def _notices(self, item: Any) -> bool:
        if time.process_time() > self.end or not self.fails(item) or not self.spy.applied:
            return False
        self.found[item.nodeid] += 1
        return True

    def _notices_anew(self, file: str, items: dict[str, Any]) -> bool:
        """Whether a test of the file fails once it is loaded with the change in place."""
        name = file.removesuffix(".py").replace("/", ".")
        before, failed = sys.modules.pop(name, None), []

        def work(again: Again, tests: list[Any]) -> None:
            change = self.spy.change
            for test in tests:
                if failed or time.process_time() > self.end:
                    return
                if again.fails(test) and test.nodeid in items:
                    self.spy.change = None  # does it pass without?
                    failed.extend([test] * (not self.fails(items[test.nodeid])))
                    self.spy.change = change

        anew = Again(work)
        anew.run([file])
        if before is not None:
            sys.modules[name] = before
        return bool(failed) or anew.unloaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("functions", nargs="*", help="such as compat.torch.adam; or all")
    parser.add_argument("--seconds", type=float, default=20, help="of tests, for a change")
    parser.add_argument("--calls", type=Path, help="where to keep which test calls what")
    parser.add_argument("--tests", nargs="*", default=["optwd", "tests"])
    arguments = parser.parse_args()
    functions = public()
    if unknown := set(arguments.functions) - functions.keys():
        parser.error(f"no public function {', '.join(unknown)}")
    calls = arguments.calls.absolute() if arguments.calls else None
    hunt = Hunt(Spy(functions), arguments.functions, arguments.seconds, calls)
    sys.exit(Again(hunt, hunt).run(arguments.tests))


if __name__ == "__main__":
    main()
