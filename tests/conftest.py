"""Shared fixtures. Nothing may broadcast ranks silently, in any test or example."""

import os

import hypothesis
import jax
import pytest

pytest.register_assert_rewrite("tests.helpers")
from tests.helpers import enable_x64, quick  # noqa: E402

reproducible = {"derandomize": True, "deadline": None, "database": None}
hypothesis.settings.register_profile("quick", max_examples=6, **reproducible)
hypothesis.settings.register_profile("thorough", max_examples=50, **reproducible)
hypothesis.settings.load_profile("quick")


def pytest_configure(config):
    """Compile in half the time, and keep what is compiled in pytest's cache.

    Workers and the processes that tests start read both from the environment. With
    `XLA_FLAGS=` before pytest, or with -n0, XLA compiles as it does for users.
    """
    if config.getoption("numprocesses", None):
        os.environ.setdefault("XLA_FLAGS", quick(level=1))
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if not hasattr(config, "cache"):  # -p no:cacheprovider
        return
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Begin with what takes longest, where each of two workers begins."""
    first, second = [], []
    at = {"test_optax_wheel": first, "test_sharding": second, "test_train_sharded": second}
    rest = [item for item in items if item.path.stem not in at]
    for item in items:
        at.get(item.path.stem, []).append(item)
    half = len(items) // 2 - len(first)
    items[:] = [*first, *rest[:half], *second, *rest[half:]]


@pytest.fixture
def x64():
    with enable_x64():
        yield
