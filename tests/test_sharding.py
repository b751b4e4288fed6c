"""On many devices: 8 virtual ones, on a mesh of data, FSDP and tensor axes.

- every leaf of every state lives where its parameter lives, and numbers live everywhere,
  from an eager `init`, from `jit(init)` and with `out_shardings`, under Auto and Explicit
  axes; a step keeps them there, and is traced once;
- results equal those of one device, and stochastic rounding the very same bits;
- what is elementwise compiles to no collective at all; what measures, such as `monitor`,
  reduces numbers of each sharded leaf, and nothing larger;
- inside `shard_map` what measures refuses shards; all others are right.
"""

import re
from pathlib import Path

import pytest

from tests.helpers import python, quick
from tests.registry import ALL

HERE = Path(__file__).parent


@pytest.mark.slow
def test_on_eight_devices():
    flags = f"--xla_force_host_platform_device_count=8 {quick()}"
    options = ["-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
    file = str(HERE / "on_eight_devices.py")
    run = python(*options, file, cwd=HERE.parent, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    passed = re.search(r"\n(\d+) passed in .*\Z", run.stdout.strip())  # nothing but passed
    assert passed, run.stdout + run.stderr
    assert int(passed[1]) > 2 * len(ALL)
