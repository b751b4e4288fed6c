"""How long `import optwd` takes, without what it imports.

    python tests/benchmarks/importing.py [--rounds N]

The sum of the modules' own times, as ``python -X importtime`` gives them, in a new process
for each round; compiled files are made in a first one. 50 ms are the aim.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile


def own_time(cache: str) -> float:
    """Milliseconds in modules of optwd."""
    command = [sys.executable, "-X", "importtime", "-c", "import optwd"]
    # compiled once, even where the environment forbids that: it is what users have
    environment = os.environ | {"PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True
    )
    times = re.findall(r"import time: +(\d+) \|[ \d]+\| +optwd", run.stderr)
    return sum(map(int, times)) / 1000


def main(argv: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="processes; 7")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as cache:
        own_time(cache)
        times = [own_time(cache) for _ in range(arguments.rounds)]
    print(f"import optwd: {statistics.median(times):.1f} ms ({min(times):.1f} at best)")
    return times


if __name__ == "__main__":
    main()
