"""The benchmarks run, here on the CPU, and mean what they print.

- `gpu`: every optimizer is within its bound, and one that is not ends the script; a step's
  bytes are those of its parameters, state and gradients; every contestant has its row.
- `accuracy`: float32 weights take low-precision gradients as exactly as it says.
- `costs`: whatever has a row can take a step; the title of the picture is what was found.
"""

import accuracy
import costs
import gpu
import jax
import jax.numpy as jnp
import pytest
import step

import optwd
from tests import reference, registry
from tests.helpers import cases


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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_accuracy_with_gradients_of_low_precision(dtype):
    bounds = {what: limit for what, limit, _ in accuracy.ROWS}
    error = accuracy.narrow_gradients(jnp.dtype(dtype))["optwd"]
    assert error <= bounds[f"{dtype} gradients, float32 weights"] == 1e-6


BYTES = {
    "float32": ("float32", "optwd", 28),
    "float32, optax": ("float32", "optax", 28),
    "bfloat16": ("bfloat16", "optwd", 22),
    "bfloat16, narrow": ("bfloat16", "optwd, narrow moments", 14),
    "bfloat16, optax": ("bfloat16", "optax", 14),
}


@pytest.mark.parametrize(("dtype", "name", "each"), cases(BYTES, {"float32", "bfloat16"}))
def test_bytes_of_a_step(dtype, name, each, monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # or all compile again
    params = [jnp.zeros((64, 64), dtype), jnp.zeros(64, dtype)]
    contestant = step.Jax(gpu.CONTESTANTS[dtype][name], params, params)
    counts = [x for x in jax.tree.leaves(contestant.state) if x.ndim == 0]
    assert gpu.moved(contestant) == each * (64 * 64 + 64) + 2 * 4 * len(counts)


@pytest.mark.slow
def test_every_row_of_costs_is_a_step():
    shapes = costs.named(blocks=1, d=2)
    for optimizers, dtype in ((costs.FLOAT32, "float32"), (costs.BFLOAT16, "bfloat16")):
        params = jax.tree.map(
            lambda shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype),
            shapes,
            is_leaf=lambda x: isinstance(x, tuple),
        )
        for optimizer in optimizers.values():
            state = jax.eval_shape(optimizer.init, params)
            after = jax.eval_shape(step.jitted(optimizer), params, state, params)
            assert after == (params, state)


@pytest.mark.slow
def test_picture_of_growth(tmp_path):
    """Twice as fast to trace and lower, and as fast to compile and call."""
    times = {"trace": (1, 3), "lower": (2, 3), "compile": (4, 4), "call": (0.1, 0.1)}
    found = {
        stage: {"optwd": [9.0, mine], "optax": [9.0, theirs]}
        for stage, (mine, theirs) in times.items()
    }
    assert costs.finding([10, 300], found) == (
        "A step of 300 leaves: optwd traces and lowers it in 0.50 of Optax's time, "
        "compiles it in 1.00 and calls it in 1.00"
    )
    costs.draw([10, 300], found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
