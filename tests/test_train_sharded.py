"""`examples/train_sharded.py` keeps its promises.

- It learns: from ln 256 = 5.5 nats a byte to below 3 in 40 small steps, on topics that it
  has not seen too; the decay is measured; the picture is there.
- The gradient of a step is the mean over its microbatches.
- Moments are sharded over the mesh as their weights are.
- On 8 devices, and in two processes, it ends at the weights that one device ends at,
  as closely as sums agree that are added up in another order.
- In two processes what measures leaves (`decay.to_norm`, `decay.constrained`,
  `scale_by_weight_norm`, monitors) gives what it gives in one, and sends numbers only.
- Killed by SIGKILL between checkpoints and started again it ends at the same weights bit
  for bit; two processes, too, end with the command that started them.
- A finished run is taken over by another number of devices, bit for bit; it says that it
  had finished, and how to start anew; `--fresh` does.
- `--interrupted` trains again, stops between checkpoints, resumes, and compares weights.
- The status of a process that fails is returned, and the others end.
- What cannot be is refused in one line.
"""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import _loopback as loopback
import jax
import numpy as np
import pytest
import train_sharded
from jax.sharding import AxisType

import optwd
from tests import helpers, on_two_processes
from tests.on_eight_devices import REDUCED_NUMBERS

STEPS = 40
RUN = "--quick", "--steps", str(STEPS)
SIZE = train_sharded.QUICK._replace(steps=STEPS)


def start(out, *options):
    """The example in another process and working directory."""
    root = str(Path(optwd.__file__).parents[1])
    command = [sys.executable, train_sharded.__file__, *RUN, *options, "--out", out.name]
    return subprocess.Popen(
        command,
        cwd=out.parent,
        env=os.environ | {"PYTHONPATH": root, "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finished(out, *options):
    """What it printed."""
    run = start(out, *options)
    printed, errors = run.communicate()
    assert run.returncode == 0, errors
    return printed


def killed(out, *options):
    """Kill it after the first of four checkpoints."""
    run = start(out, *options)
    while run.poll() is None and not (checkpoints(out) / "10").exists():
        time.sleep(0.02)
    run.kill()
    run.communicate()  # until everyone has closed the pipes: its children, too
    assert run.returncode == -signal.SIGKILL
    assert not (checkpoints(out) / str(STEPS)).exists()


def checkpoints(out):
    return out / "train_sharded" / f"quick-{STEPS}-0"


def weights(out):
    """Of a run that is finished, on one device."""
    log, params = train_sharded.train(SIZE, 0, checkpoints(out), lambda *_: None)
    assert log[-1]["step"] == STEPS
    return jax.tree.leaves(params)


def digest(printed):
    return re.findall(r"Digest of the weights: (\w{16})\n", printed)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """On one device: where it is, what was measured, what was printed."""
    out = tmp_path_factory.mktemp("one")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        log = train_sharded.main([*RUN, "--out", str(out)])
    return out, log, printed.getvalue()


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """On eight devices: where it is, what was printed."""
    out = tmp_path_factory.mktemp("eight")
    return out, finished(out, "--devices", "8")


@pytest.mark.slow
def test_it_learns(one):
    out, log, printed = one
    assert [row["step"] for row in log] == [10, 20, 30, 40]
    assert 3 < log[0]["loss"] < np.log(256)
    assert log[-1]["loss"] < 3
    assert log[-1]["unseen"] < 3
    for row in log:
        assert 0.1 < row["decay/ratio"] < 0.5  # λ = 1 on weights as small as Adam's step
        added = row["decay/norm_added"]
        np.testing.assert_allclose(added, row["decay/ratio"] * row["decay/norm_in"], 1e-6)
    assert log[-1]["rate"] < log[1]["rate"] < train_sharded.PEAK

    assert "decayed: 13 leaves, 114,688 elements; not decayed: 7 leaves" in printed
    assert (out / "train_sharded.png").stat().st_size > 20_000


@pytest.mark.slow
def test_eight_devices_are_one(one, eight):
    assert_close(weights(one[0]), weights(eight[0]))


@pytest.mark.slow
def test_killed_and_resumed_is_the_same_bit_for_bit(eight, tmp_path):
    killed(tmp_path / "killed", "--devices", "8")
    printed = finished(tmp_path / "killed", "--devices", "8")
    assert "Resuming from step" in printed
    assert digest(printed) == digest(eight[1]) != []


@pytest.mark.slow
def test_one_device_takes_over_from_eight(eight, capsys):
    train_sharded.main([*RUN, "--out", str(eight[0])])
    printed = capsys.readouterr().out
    assert digest(printed) == digest(eight[1])
    assert "Finished before; to start anew, add --fresh" in printed


@pytest.mark.slow
def test_it_starts_anew_and_shows_a_resume(tmp_path, capsys, monkeypatch):
    drawn = helpers.pictures(monkeypatch, train_sharded)
    run = [*RUN, "--out", str(tmp_path)]  # the steps of the other tests: compiled by now
    train_sharded.main(run)
    log = train_sharded.main([*run, "--fresh", "--interrupted"])
    printed = capsys.readouterr().out
    assert {row["start"] for row in log} == {0}
    assert "Finished before" not in printed
    assert "Stopped after step 25\nResuming from step 20 of 40" in printed
    assert "resumed, it ends at the same weights bit for bit" in printed
    assert len(set(digest(printed))) == 1
    before, after = map(helpers.named, drawn)
    both = {"unseen topics, resumed", "AdamW, resumed", "resumed from a checkpoint"}
    assert both <= after
    assert not both & before
    assert "Stopped after step 25 and resumed" in drawn[1].get_suptitle()


def test_it_stops_between_checkpoints():
    for size in (train_sharded.FULL, train_sharded.QUICK):
        assert train_sharded.half_way(size) % size.every
        assert size.every < train_sharded.half_way(size) < size.steps - size.every


@pytest.mark.slow
def test_two_processes_are_one_even_if_killed(one, tmp_path, monkeypatch, capfd):
    out, options = tmp_path / "two", ("--processes", "2")
    killed(out, *options)
    root = Path(optwd.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (root, root / "examples"))))
    arguments = [*RUN, *options, "--out", str(out)]
    assert loopback.run(on_two_processes.__file__, arguments, 2) == 0, capfd.readouterr()
    assert "Devices: 2; processes: 2" in capfd.readouterr().out
    assert_close(weights(one[0]), weights(out))

    # Norms, bounds and rotations of leaves that lie in both, and what is sent for them
    alone, _ = on_two_processes.steps(lambda params: params)
    with np.load(out / "measuring.npz") as both:
        for x, y in zip(jax.tree.leaves(alone), both.values(), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    sent = (out / "collectives.txt").read_text().splitlines()
    assert sent
    assert all(map(REDUCED_NUMBERS.fullmatch, sent)), sent


def assert_close(left, right):
    # Weights up to 1; 4e-7 was the most. Another order of adding up moves a loss by 1e-7.
    for x, y in zip(left, right, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=5e-6)


def test_moments_lie_where_their_weights_lie():
    mesh = jax.sharding.AbstractMesh((8,), ("data",), (AxisType.Auto,))
    tx = train_sharded.optimizer(lambda step: 0.1)
    state = jax.eval_shape(lambda: train_sharded.initial(train_sharded.QUICK, 0, tx))
    params, opt_state = jax.tree.map(lambda x: train_sharded.spread(mesh, x), state)
    whole = [p for p in jax.tree.leaves(params) if p.sharding.is_fully_replicated]
    assert {p.shape for p in whole} == {(64,)}  # the scales of norms
    for p in jax.tree.leaves(params):
        part = p.sharding.shard_shape(p.shape)
        assert np.prod(part) * (1 if p in whole else 8) == np.prod(p.shape)
    adam = opt_state[1]
    assert adam.mu == params
    assert adam.nu == params


def test_microbatches_add_up_to_their_mean():
    batch = np.float32([[1, 2], [3, 4], [8, 6]])
    total, parts = train_sharded.mean(lambda row: (row.sum(), {"square": row**2}), batch)
    assert total == 8
    np.testing.assert_allclose(parts["square"], [74 / 3, 56 / 3], rtol=1e-6)


def test_the_first_failure_ends_all(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys, time; sys.argv[-1] == '1' and sys.exit(3); time.sleep(99)"
    )
    begin = time.perf_counter()
    assert loopback.run(str(script), [], 2) == 3
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("option", ["--steps", "--devices", "--processes"])
def test_options_that_cannot_be_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        train_sharded.main([option, "0"])
    assert f"argument {option}: 0 is less than 1" in capsys.readouterr().err
