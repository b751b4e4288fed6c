"""Drop-in means drop-in: the tests inside the Optax wheel pass with our parts in its place.

`drop_in` replaces them before those tests are imported. What fails must be in the list
below, each for a reason that is a promise of this package.
"""

import os
import pathlib
import re
import subprocess
import sys

import optax
import pytest

from tests.helpers import quick
from tests.parity.drop_in import NAMES

BY_DESIGN = {
    # compare Adam with Optax's own RMS, whose bias correction is 7e-6 off
    "TransformTest::test_rms_match_adam",
    "ScheduleFreeTest::test_schedule_free_adamw",
    # gives an int as the state
    "AddingTest::test_none_argument",
    # asks for moments in the bfloat16 of the parameters; ours are float32 at least
    "GaLoreTest::test_mu_dtype_controls_moment_dtype",
    "AliasTest::test_explicit_dtype10",
    "AliasTest::test_explicit_dtype11",
    # asks for real first moments of complex parameters, which lose the imaginary part
    "AliasTest::test_explicit_dtype25",
    "AliasTest::test_explicit_dtype26",
    "AliasTest::test_explicit_dtype28",
    "AliasTest::test_explicit_dtype29",
}

WHEEL = pathlib.Path(optax.__file__).parent
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_optax_own_tests(tmp_path):
    files = [f for f in sorted(WHEEL.rglob("*_test.py")) if NAMES.search(f.read_text())]
    if not files:
        pytest.skip(f"this build of Optax, {optax.__version__}, ships no tests")
    flags = f"--xla_force_host_platform_device_count=8 {quick()}"  # one test needs eight
    plugin = ["-p", "tests.parity.drop_in", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", *plugin, *files],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = done.stdout.splitlines()[-1]
    print(f"Optax {optax.__version__}, its own tests on our parts: {summary}")
    failed = set(re.findall(r"^(?:SUB)?FAILED.*?::(\w+::\w+)", done.stdout, re.MULTILINE))
    assert failed <= BY_DESIGN, done.stdout[-5000:]
    assert not re.search(r"^ERROR|errors? in", done.stdout, re.MULTILINE), done.stdout[
        -5000:
    ]
    assert int(re.search(r"(\d+) passed", summary)[1]) > 400, summary
