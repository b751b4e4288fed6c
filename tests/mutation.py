"""Break the package on purpose, one place at a time, and see whether a test notices.

    python tests/mutation.py [module[:line] …] [--list] [--sample N] [--seconds S]

Each mutant changes one operator, comparison, number, condition or Boolean of a module, and
runs that module's tests until one fails. What survives is either a missing test or a change
without effect; it is printed with its line.

It is quick because it is one process: a mutant's code takes the place of that of the
functions that live, and what JAX and others have cached of them is dropped. A run begins
with the tests that have noticed most for their time, and stops after S seconds' worth of
tests; give more seconds to the survivors that are left. A test that fails without a mutant
too is left out. A change of what is not a function, a default or plain data is not tried.
Not part of the check: run it for what you changed.
"""

import argparse
import ast
import collections
import copy
import functools
import gc
import importlib
import random
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from tests.rerun import ROOT, Again

MODULES = [
    path.relative_to(ROOT / "optwd").with_suffix("").as_posix()
    for path in sorted((ROOT / "optwd").rglob("*.py"))
    if path.stem != "__init__"
]
OWN = {  # tests of each module, from the most specific to the most general
    "_audit": ["audit"],
    "_check": ["laws", "rates", "decay", "hard_cases", "precision"],
    "_diagnose": ["rotation", "monitor", "tabulate"],
    "_dtypes": ["moments", "precision", "hard_cases", "laws"],
    "_eight_bits": ["eight_bits"],
    "_l2": ["equations", "couplings", "laws"],
    "_leafwise": [
        "many_leaves", "moments", "precision", "decay", "hard_cases", "equations", "laws",
        "parity/carried_over",
    ],
    "_learning_rate": ["couplings", "hard_cases", "laws", "conventions"],
    "_measure": ["norms", "rotation", "stacked_layers", "decay", "monitor"],
    "_moments": ["moments", "equations", "hard_cases", "laws"],
    "_monitor": ["monitor", "rotation"],
    "_optimizers": [
        "equations", "couplings", "with_weight_decay", "facts", "hard_cases", "laws",
    ],
    "_paths": ["masks", "decay", "tabulate", "laws"],
    "_precision": ["precision", "eight_bits", "bfloat16", "hard_cases", "laws"],
    "_rotation": ["rotation", "monitor"],
    "_rounding": ["precision", "eight_bits", "moments", "bfloat16"],
    "_rule": ["norms", "decay", "equations", "hard_cases", "laws"],
    "_serialization": ["serialization"],
    "_shards": ["norms", "monitor", "stacked_layers"],
    "_tabulate": ["tabulate", "norms"],
    "_with_weight_decay": ["with_weight_decay"],
    "_zeros": ["laws", "moments", "precision"],
}  # fmt: skip
RATES = ["rates", "equilibrium", "couplings", "equations", "warm_restarts"]
MASKS = ["masks", "standard_mask", "tabulate", "laws"]
DECAY = ["equations", "decay", "norms", "stacked_layers", "facts", "hard_cases", "laws"]
NORMS = ["norms", "stacked_layers", "decay", "equations", "hard_cases", "laws"]
COMPAT = ["compat", "compat_golden", "conventions", "conventions_rows", "known_lines"]
GROUPS = {  # of modules that have the same tests
    **dict.fromkeys(("rates", "_planners", "_equilibrium"), RATES),
    **dict.fromkeys(("masks", "_mask_tree", "_globs", "_decide", "_standard"), MASKS),
    **dict.fromkeys(("decay", "_anchors"), DECAY),
    "_norms": NORMS,
    **{module: ["audit"] for module in ("_probe", "_trial", "_verdict")},
}
TESTS = OWN | GROUPS


def tests_of(module: str) -> list[str]:
    """The files with the tests of a module, beside its doctests."""
    names = TESTS.get(module, [])
    if module.startswith("compat/"):
        frameworks = [
            f"parity/{path.stem.removeprefix('test_')}"
            for path in sorted((ROOT / "tests/parity").glob("test_compat_*.py"))
        ]
        own = [f for f in frameworks if f.removeprefix("parity/compat_") in module]
        shared = "/_" in module
        names = [*COMPAT, "equations", "parity/carried_over"]
        names += frameworks if shared and not own else own
    files = [file_of(name) for name in names]
    return [file for file in files if (ROOT / file).exists()]


SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Pow: ast.Mult, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.RShift: ast.LShift, ast.LShift: ast.RShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def file_of(test: str) -> str:
    folder, _, name = f"tests/{test}".rpartition("/")
    return f"{folder}/test_{name}.py"


def mutated(node: ast.AST) -> ast.AST | None:
    """The node with one change, or None where there is none to make."""
    new = copy.deepcopy(node)
    match new:
        case ast.BinOp() | ast.BoolOp() if type(new.op) in SWAPS:
            new.op = SWAPS[type(new.op)]()
        case ast.Compare() if type(new.ops[0]) in SWAPS:
            new.ops[0] = SWAPS[type(new.ops[0])]()
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return new.operand
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int() | float()):
            new.value += 1
        case ast.If() | ast.IfExp():
            match new.test:
                case (
                    ast.UnaryOp()
                    | ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot()])
                ):
                    return None  # the same as a change inside
            new.test = ast.UnaryOp(ast.Not(), new.test)
        case _:
            return None
    return new


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Every child that a mutant may change, by its parent, field and index."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue  # no behaviour, or only speed
        if isinstance(tree, ast.keyword) and ast.unparse(tree) == "strict=True":
            continue  # a promise to the reader: the lengths are equal
        if isinstance(value, ast.AST):
            yield tree, field, None
            yield from places(value)
        elif isinstance(value, list):
            for i, child in enumerate(value):
                if isinstance(child, ast.AST):
                    yield tree, field, i
                    yield from places(child)


class Mutant(NamedTuple):
    """A change: its line, its top-level function, what it is, and the whole module."""

    line: int
    function: str
    what: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    for parent, field, i in list(places(tree)):
        node = getattr(parent, field) if i is None else getattr(parent, field)[i]
        if (new := mutated(node)) is None:
            continue

        def put(child, parent=parent, field=field, i=i):
            if i is None:
                setattr(parent, field, child)
            else:
                getattr(parent, field)[i] = child

        before, after = (ast.unparse(x).split("\n")[0] for x in (node, new))
        put(ast.copy_location(new, node))
        broken = ast.fix_missing_locations(copy.deepcopy(tree))
        put(node)
        yield Mutant(node.lineno, around(tree, node), f"{before}  →  {after}", broken)


def around(tree: ast.Module, node: ast.AST) -> str:
    """The top-level function or class that the node is in."""
    for top in tree.body:
        if isinstance(top, ast.FunctionDef | ast.ClassDef) and any(
            x is node for x in ast.walk(top)
        ):
            return top.name
    return ""


class Live:
    """A module as it runs, whose functions take the bodies of a mutant's."""

    def __init__(self, module: str) -> None:
        name = f"optwd.{module.replace('/', '.')}"
        self.module = importlib.import_module(name)
        self.file = str(self.module.__file__)
        self.tree = ast.parse(Path(self.file).read_text())
        gc.collect()
        self.functions: dict[tuple, list[types.FunctionType]] = {}
        self.caches: list[Any] = []
        jitted = type(jax.jit(_key))
        for x in gc.get_objects():
            kind = type(x)  # `isinstance` would wake the lazy modules of torch
            if kind is types.FunctionType and x.__code__.co_filename == self.file:
                self.functions.setdefault(_key(x.__code__), []).append(x)
            elif kind is jitted and _is_own(x):
                self.caches.append(x.clear_cache)
            elif kind is functools._lru_cache_wrapper and _is_own(x):
                self.caches.append(x.cache_clear)

    def swap(self, tree: ast.Module) -> bool:
        """Let the module be that of `tree`; False where nothing that lives would change."""
        for clear in self.caches:
            clear()
        changed = False
        new = types.ModuleType(self.module.__name__)
        new.__dict__.update(__file__=self.file, __package__=self.module.__package__)
        code = compile(tree, self.file, "exec")
        exec(code, new.__dict__)
        made = {_key(c): c for c in _codes(code)}
        for key, functions in self.functions.items():
            twin = _attribute(new, key[0])
            for f in functions:
                defaults = (f.__defaults__, f.__kwdefaults__)
                if key in made and not _equal(f.__code__, made[key]):
                    f.__code__, changed = made[key], True
                if isinstance(twin, types.FunctionType):
                    others = (twin.__defaults__, twin.__kwdefaults__)
                    if _is_data(others) and others != defaults:
                        f.__defaults__, f.__kwdefaults__ = others
                        changed = True
        for name, value in vars(new).items():
            old = vars(self.module).get(name)
            if name[:2] != "__" and _is_data(value) and _is_data(old) and value != old:
                changed = True
                for module in list(sys.modules.values()):
                    if _is_ours(module.__name__) and vars(module).get(name) is old:
                        setattr(module, name, value)
        return changed


def _key(code: types.CodeType) -> tuple:
    return code.co_qualname, code.co_firstlineno


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _equal(a: types.CodeType, b: types.CodeType) -> bool:
    """Equal codes may differ in their columns."""
    same = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars")
    pairs = list(zip(a.co_consts, b.co_consts, strict=False))
    return (
        all(getattr(a, field) == getattr(b, field) for field in same)
        and len(a.co_consts) == len(b.co_consts)
        and all(
            _equal(x, y) if isinstance(x, types.CodeType) and isinstance(y, types.CodeType)
            else (type(x), repr(x)) == (type(y), repr(y))
            for x, y in pairs
        )
    )  # fmt: skip


def _attribute(module: Any, qualname: str) -> Any:
    """What has that name; None for what is inside of a function."""
    for name in qualname.split("."):
        module = getattr(module, name, None)
    return module


def _is_data(x: Any) -> bool:
    if isinstance(x, tuple | list | set | frozenset):
        return all(map(_is_data, x))
    if isinstance(x, dict):
        return all(map(_is_data, x.items()))
    return isinstance(x, bool | int | float | str | None)


def _is_own(jitted: Any) -> bool:
    inner = jitted.__wrapped__
    return _is_ours(getattr(getattr(inner, "func", inner), "__module__", ""))


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in ("optwd", "tests")


class Hunt:
    """Every mutant, on the tests of its module; those first that noticed most."""

    def __init__(self, chosen: dict[str, list[Mutant]], limit: float) -> None:
        self.chosen, self.limit = chosen, limit
        self.seconds: dict[str, float] = {}
        self.sound: dict[str, bool] = {}  # whether it passes as the code is
        self.found: collections.Counter[tuple[str, str]] = collections.Counter()

    def __call__(self, again: Again, items: list[Any]) -> None:
        self.again, killed, tried = again, 0, 0
        for module, mutants in self.chosen.items():
            start, live = time.monotonic(), Live(module)
            counts = collections.Counter(
                self.outcome(live, module, mutant, items) for mutant in mutants
            )
            killed += counts["noticed"]
            tried += counts["noticed"] + counts["survived"]
            print(
                f"{module}: killed {counts['noticed']} of "
                f"{counts['noticed'] + counts['survived']}, {counts['not tried']} not "
                f"tried, in {time.monotonic() - start:.0f} s",
                flush=True,
            )
        print(f"killed {killed} of {tried}: {killed / max(tried, 1):.0%}")

    def outcome(self, live: Live, module: str, mutant: Mutant, items: list[Any]) -> str:
        try:
            if not live.swap(mutant.tree):
                outcome = "not tried"
            else:
                outcome = (
                    "noticed" if self.noticed(live, mutant, module, items) else "survived"
                )
        except Exception:  # it cannot be imported
            outcome = "noticed"
        live.swap(live.tree)
        if outcome != "noticed":
            print(f"{outcome}: {module}.py:{mutant.line}: {mutant.what}", flush=True)
        return outcome

    def noticed(self, live: Live, mutant: Mutant, module: str, items: list) -> bool:
        start = time.process_time()
        for item in self.in_order(mutant, module, items):
            begun = time.process_time()
            fails = self.again.fails(item)
            self.seconds[item.nodeid] = time.process_time() - begun
            if fails:
                if item.nodeid not in self.sound:
                    live.swap(live.tree)
                    self.sound[item.nodeid] = not self.again.fails(item)
                    live.swap(mutant.tree)
                if self.sound[item.nodeid]:
                    self.found[item.nodeid, module] += 1
                    self.found[item.nodeid, mutant.function] += 10
                    return True
            if time.process_time() - start > self.limit:
                return False
        return False

    def in_order(self, mutant: Mutant, module: str, items: list) -> list:
        files = [f"optwd/{module}.py", *tests_of(module)]
        rank = {file: i for i, file in enumerate(files)}
        seen: collections.Counter[str] = collections.Counter()
        placed = []
        for item in items:
            file, name = item.nodeid.split("::", 1)
            if file not in rank or not self.sound.get(item.nodeid, True):
                continue
            seen[function := f"{file}::{name.split('[')[0]}"] += 1
            seconds = self.seconds.get(item.nodeid, 0.0)
            found = self.found[item.nodeid, mutant.function]
            found += self.found[item.nodeid, module]
            if found:
                placed.append(((0, seconds / found), item))
            else:  # quick ones first; one case of each function, then more
                late = seconds > 1 or item.get_closest_marker("slow") is not None
                placed.append(((1 + late, seen[function], rank[file]), item))
        return [item for _, item in sorted(placed, key=lambda pair: pair[0])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "modules",
        nargs="*",
        metavar="module[:line]",
        help="all by default",
    )
    parser.add_argument("--list", action="store_true", help="print the mutants only")
    parser.add_argument("--sample", type=int, help="so many of each module, drawn randomly")
    parser.add_argument("--seconds", type=float, default=20, help="of tests, for a mutant")
    arguments = parser.parse_args()
    lines: dict[str, set[str]] = {}
    for argument in arguments.modules or filter(tests_of, MODULES):
        module, _, line = argument.partition(":")
        lines.setdefault(module, set()).update([line] if line else [])
    if unknown := set(lines) - set(MODULES):
        parser.error(f"no module {', '.join(unknown)}; there are {', '.join(MODULES)}")
    if untested := [module for module in lines if not tests_of(module)]:
        parser.error(f"say in this file which tests {', '.join(untested)} has")

    chosen = {}
    for module in lines:
        found = list(mutants((ROOT / "optwd" / f"{module}.py").read_text()))
        found = [m for m in found if not lines[module] or str(m.line) in lines[module]]
        if arguments.sample is not None and arguments.sample < len(found):
            found = random.Random(0).sample(found, arguments.sample)
        chosen[module] = found
    if arguments.list:
        for module, found in chosen.items():
            print(*(f"{module}.py:{m.line}: {m.what}" for m in found), sep="\n")
        return
    files = [file for m in chosen for file in (f"optwd/{m}.py", *tests_of(m))]
    every = ["-m", "slow or not slow", *dict.fromkeys(files)]
    sys.exit(Again(Hunt(chosen, arguments.seconds)).run(every))


if __name__ == "__main__":
    main()
