"""Tests that run again and again in one process, for `mutation.py` and `arguments.py`.

What is loaded, collected and compiled stays; a test costs what its body costs.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ONE_TEST = 120  # seconds; a test that takes longer than this fails
OPTIONS = [
    *("-o", "addopts=--doctest-modules -m 'not slow'", "-p", "no:terminal"),
    *("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
]


class Again:
    """A plugin of pytest that collects, and hands the tests to a function."""

    def __init__(self, work: Callable[["Again", list[Any]], None], *more: Any) -> None:
        self.work, self.more, self.failed = work, more, False
        self.unloaded = False  # whether a file could not be loaded
        self.names: dict[str, dict[str, Any]] = {}  # in which a doctest runs

    def pytest_runtestloop(self, session: Any) -> bool:
        self.work(self, session.items)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed

    def pytest_collectreport(self, report: Any) -> None:
        self.unloaded = self.unloaded or report.failed

    def fails(self, item: Any) -> bool:
        """Whether the test fails now."""
        item._initrequest()  # as pytest does before the first run
        if isinstance(item, pytest.DoctestItem):
            names = self.names.setdefault(item.nodeid, dict(item.dtest.globs))
            item.dtest.globs.update(names)  # a run empties them
        self.failed = False
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(ONE_TEST)
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
        except TimeoutError:
            return True
        finally:
            signal.alarm(0)
        return self.failed

    def run(self, tests: list[str]) -> int:
        """Collect those files or folders, with options of pytest, and do the work."""
        os.chdir(ROOT)
        options = {
            "JAX_PLATFORMS": "cpu",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        os.environ |= options | {"PYTHONPATH": str(ROOT)}
        sys.path.insert(0, str(ROOT))
        return pytest.main([*OPTIONS, *tests], plugins=[self, *self.more])


def _late(*_: Any) -> None:
    raise TimeoutError
