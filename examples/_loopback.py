"""Virtual devices and several processes on one machine, in place of a cluster.

On a cluster none of this is needed: its launcher starts the processes, and
`jax.distributed.initialize()` finds out by itself what it is told here.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time

import _common as common
import jax


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--devices`, `--processes` and, for the processes alone, `--join ADDRESS RANK`."""
    for name, what in (
        ("--devices", "virtual CPU devices per process; those that are there, or 1"),
        ("--processes", "processes on this machine, on the CPU; 1"),
    ):
        parser.add_argument(name, type=common.positive, metavar="N", help=what)
    parser.add_argument("--join", nargs=2, help=argparse.SUPPRESS)


def start(script: str, argv: list[str] | None, args: argparse.Namespace) -> None:
    """Set up the devices of this process, or run the script in several and exit."""
    several = (args.processes or 1) > 1
    if several and not args.join:
        sys.exit(run(script, sys.argv[1:] if argv is None else argv, args.processes))
    if several or args.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.devices or 1)
    if args.join:
        address, rank = args.join
        threading.Thread(target=_end_with_parent, daemon=True).start()
        jax.distributed.initialize(address, args.processes, int(rank))


def run(script: str, options: list[str], processes: int) -> int:
    """The first exit status that is not 0; nothing is left running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, script, *options, "--join", address]
    children = [
        subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE)
        for rank in range(processes)
    ]
    try:
        while True:
            statuses = [child.poll() for child in children]
            if any(statuses) or None not in statuses:  # one has failed, or all are done
                return next(filter(None, statuses), 0)
            time.sleep(0.05)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _end_with_parent() -> None:
    """Nothing is written to this pipe; it closes when the parent ends, even by SIGKILL."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
