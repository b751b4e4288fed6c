"""Break the package on purpose, one place at a time, and see whether a test notices.

    python tests/mutation.py [module[:line] …] [--list] [--sample N] [--seconds S]

Each mutant changes one operator, comparison, number, condition or Boolean of a module in a
copy of the project, and runs that module's tests until one fails. What survives is either
a missing test or a change without effect; it is printed with its line.

It is quick because every run forks from one process that has JAX loaded, finds what others
have compiled, begins with the tests that have noticed most for their time, and stops after
S seconds' worth of tests: a second or two for what is noticed, S for a survivor. Give more
seconds to the survivors that are left. Not part of the check: run it for what you changed.
"""

import argparse
import ast
import collections
import copy
import gc
import importlib
import importlib.util
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODULES = [
    path.relative_to(ROOT / "optwd").with_suffix("").as_posix()
    for path in sorted((ROOT / "optwd").rglob("*.py"))
    if path.stem != "__init__"
]
OWN = {  # tests of each module, from the most specific to the most general
    "_audit": ["audit"],
    "_check": ["laws", "rates", "decay", "hard_cases"],
    "_dtypes": ["laws", "moments", "precision", "hard_cases"],
    "_l2": ["equations", "couplings", "laws"],
    "_leafwise": [
        "equations", "many_leaves", "moments", "decay", "precision", "laws", "hard_cases",
        "parity/carried_over",
    ],
    "_learning_rate": ["couplings", "laws", "conventions"],
    "_measure": ["decay", "stacked_layers", "monitor", "report"],
    "_moments": ["equations", "moments", "hard_cases", "laws"],
    "_monitor": ["monitor", "report"],
    "_optimizers": [
        "equations", "couplings", "with_weight_decay", "facts", "laws", "hard_cases",
    ],
    "_paths": ["laws", "masks", "decay", "report", "tabulate"],
    "_precision": ["precision", "bfloat16", "laws", "hard_cases"],
    "_rotation": ["monitor", "rotation"], "_diagnose": ["monitor", "report", "tabulate"],
    "_rounding": ["precision", "moments", "bfloat16"],
    "_rule": ["equations", "decay", "laws", "hard_cases"],
    "_serialization": ["serialization"],
    "_tabulate": ["tabulate", "report"],
    "_zeros": ["laws", "moments", "precision"],
}  # fmt: skip
RATES = ["rates", "equilibrium", "couplings", "equations", "warm_restarts"]
MASKS = ["masks", "standard_mask", "report", "laws"]
DECAY = ["equations", "decay", "norms", "stacked_layers", "facts", "laws", "hard_cases"]
COMPAT = ["compat", "compat_golden", "conventions", "conventions_rows", "known_lines"]
GROUPS = {  # of modules that have the same tests
    **dict.fromkeys(("rates", "_planners", "_equilibrium"), RATES),
    **dict.fromkeys(("masks", "_mask_tree", "_globs", "_decide", "_standard"), MASKS),
    **dict.fromkeys(("decay", "_anchors", "_norms"), DECAY),
    "_probe": ["audit"],
    "_verdict": ["audit"],
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


PRELOAD = ("jax", "optax", "pytest", "hypothesis", "flax.nnx", "equinox", "haiku", "torch")
TIMEOUT = 900  # seconds; a mutant that hangs has been noticed
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


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what was changed, and the source of each mutant."""
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

        put(ast.copy_location(new, node))
        before, after = (ast.unparse(x).split("\n")[0] for x in (node, new))
        yield (
            node.lineno,
            f"{before}  →  {after}",
            ast.unparse(ast.fix_missing_locations(tree)),
        )
        put(node)


class Tests:
    """Tests, as a plugin of pytest: those first that noticed something, up to a limit."""

    def __init__(self, files: list[str], limit: float) -> None:
        self.files, self.limit = files, limit
        self.seconds: dict[str, float] = {}
        self.found: collections.Counter[str] = collections.Counter()

    def pytest_collection_modifyitems(self, session: Any, items: list) -> None:
        self.session, seen = session, collections.Counter()
        random.Random(0).shuffle(items)  # so that first cases are not all of one kind

        def place(item: Any) -> tuple:
            file, _, name = item.nodeid.partition("::")
            seen[function := (file, name.split("[")[0])] += 1  # one case of each, then more
            seconds = self.seconds.get(item.nodeid, 0)
            if found := self.found[item.nodeid]:
                return (0, seconds / found)
            return (1, seconds > 1, self.files.index(file), seen[function])

        items.sort(key=place)

    def pytest_collectreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call":
            self.seconds[report.nodeid] = report.duration
        if report.failed:
            self.failed = report.nodeid
        self.session.shouldstop = time.process_time() > self.limit and "time is up"

    def run(self, project: Path) -> bool:
        """Whether none fails, in a process of its own."""
        fork = multiprocessing.get_context("fork")
        end, other = fork.Pipe(duplex=False)
        process = fork.Process(target=self._pytest, args=(project, other))
        process.start()
        other.close()
        try:
            if not end.poll(TIMEOUT):
                return False
            self.failed, self.seconds = end.recv()
        except EOFError:  # it crashed
            return False
        finally:
            process.kill()
            process.join()
        if isinstance(self.failed, str):
            self.found[self.failed] += 1
        return not self.failed

    def _pytest(self, project: Path, end: Any) -> None:
        import pytest

        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os.chdir(project)
        sys.path.insert(0, str(project))
        self.failed, self.session = None, None
        self.limit += time.process_time()
        options = ["-x", "-n0", "--tb=no", "-p", "no:cacheprovider"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main([*options, *self.files], plugins=[self])
        if code and not (self.session and self.session.shouldstop):
            self.failed = self.failed or True
        end.send((self.failed, self.seconds))


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
        found = [m for m in found if not lines[module] or str(m[0]) in lines[module]]
        if arguments.sample is not None and arguments.sample < len(found):
            found = random.Random(0).sample(found, arguments.sample)
        chosen[module] = found
    if arguments.list:
        for module, found in chosen.items():
            print(*(f"{module}.py:{line}: {what}" for line, what, _ in found), sep="\n")
        return

    killed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        leave = shutil.ignore_patterns(".git", "__pycache__", "out", "figures")
        shutil.copytree(ROOT, project, ignore=leave)
        os.environ |= {"PYTHONPATH": str(project), "JAX_PLATFORMS": "cpu"}
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        for name in PRELOAD:  # none of them starts JAX's threads, which a fork would lose
            if importlib.util.find_spec(name.split(".")[0]):
                importlib.import_module(name)
        gc.freeze()  # what is loaded need not be searched in every run

        files = {m: [f"optwd/{m}.py", *tests_of(m)] for m in chosen}
        for module, found in chosen.items():
            start, survivors = time.monotonic(), 0
            path = project / "optwd" / f"{module}.py"
            source = path.read_text()
            tests = Tests(files[module], arguments.seconds)
            if not tests.run(project):
                raise SystemExit(f"{module}: a test fails as it is: {tests.failed}")
            for line, what, broken in found:
                path.write_text(broken)
                # one of the same second and size would pass for the one before
                Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
                if tests.run(project):
                    survivors += 1
                    print(f"survived: {module}.py:{line}: {what}", flush=True)
            path.write_text(source)
            killed += len(found) - survivors
            print(
                f"{module}: killed {len(found) - survivors} of {len(found)} "
                f"in {time.monotonic() - start:.0f} s",
                flush=True,
            )
    total = sum(map(len, chosen.values()))
    print(f"killed {killed} of {total}: {killed / max(total, 1):.0%}")


if __name__ == "__main__":
    main()
