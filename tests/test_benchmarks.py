"""The benchmarks run, here on the CPU, and mean what they print.

- `gpu`: every optimizer is within its bound, and one that is not ends the script; a step's
  bytes are those of its parameters, state and gradients; every contestant has its row.
"""

import gpu
import jax
import jax.numpy as jnp
import pytest
import step

import optwd
from tests import reference, registry


@pytest.fixture
def tables(monkeypatch):
    """The rows of what is shown, by title; with one more tree, and a small one."""
    shown = {}
    monkeypatch.setattr(
        gpu, "show", lambda title, header, rows: shown.update({title: rows})
    )
    monkeypatch.setitem(gpu.TREES, "tiny", [(64, 64), (64,)])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return shown


@pytest.mark.slow
def test_gpu(tables):
    gpu.main(["--quick", "--trees", "tiny", "--rounds", "1"])
    errors, *timed = tables.values()
    assert [row[0] for row in errors[:-1]] == [str(e) for e in registry.OPTIMIZERS]
    for rows, dtype in zip(timed, gpu.CONTESTANTS, strict=True):
        names = [row[0] for row in rows if row[0] != "torch"]
        assert names == ["copy", *gpu.CONTESTANTS[dtype]]
        speeds = {row[0]: (float(row[2].replace(",", "")), row[5]) for row in rows}
        assert all(microseconds > 0 for microseconds, _ in speeds.values())
        assert speeds["copy"][1] == "1.000 (1.00–1.00)"


def test_gpu_ends_with_an_optimizer_that_is_wrong(tables, monkeypatch):
    right, wrong = (e for e in registry.OPTIMIZERS if str(e) in ("adam", "nadam"))
    monkeypatch.setattr(registry, "OPTIMIZERS", [right, wrong])
    monkeypatch.setitem(gpu.DIRECTIONS, optwd.nadam, reference.adam)
    monkeypatch.setattr(gpu, "time_tree", lambda *_: [])
    with pytest.raises(SystemExit, match="further from float64 than allowed: nadam"):
        gpu.main(["--quick", "--trees", "tiny"])


@pytest.mark.parametrize(
    ("dtype", "name", "each"),
    [
        ("float32", "optwd", 28),
        ("float32", "optax", 28),
        ("bfloat16", "optwd", 22),
        ("bfloat16", "optwd, narrow moments", 14),
        ("bfloat16", "optax", 14),
    ],
)
def test_bytes_of_a_step(dtype, name, each):
    params = [jnp.zeros((64, 64), dtype), jnp.zeros(64, dtype)]
    contestant = step.Jax(gpu.CONTESTANTS[dtype][name], params, params)
    counts = [x for x in jax.tree.leaves(contestant.state) if x.ndim == 0]
    assert gpu.moved(contestant) == each * (64 * 64 + 64) + 2 * 4 * len(counts)
