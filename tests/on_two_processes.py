"""What test_train_sharded.py proves of two processes: each of them runs this file.

First the example, then three steps of all that measures leaves, on leaves that lie in both
processes. Process 0 writes parameters and states beside the example's checkpoints, and
what the compiled program sends.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import train_sharded
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.on_eight_devices import MEASURING, collectives, program, tree

ENTRIES = [e for e in MEASURING if "[" not in e.name or e.name == "decay.to_norm[stacked]"]
SPECS = {
    "kernel": P("data"),
    "joint": P("data"),
    "bias": P("data"),
    "scale": P(),
    "stack": [P(None, "data"), P()],
}


def steps(place):
    """Parameters and states after three steps, and the program."""
    init, step = program(ENTRIES)

    def trees(seed):
        return [place(tree(seed, entry)) for entry in ENTRIES]

    end = trees(0), jax.jit(init)(trees(0))
    compiled = jax.jit(step).lower(*end, trees(1)).compile()
    for t in range(3):
        end = compiled(*end, trees(t + 1))
    return end, compiled


def main():
    train_sharded.main(sys.argv[1:])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    where = {k: jax.tree.map(lambda s: NamedSharding(mesh, s), v) for k, v in SPECS.items()}

    def placed(x, sharding):
        return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    end, compiled = steps(lambda params: jax.tree.map(placed, params, where))
    whole = jax.jit(lambda end: end, out_shardings=NamedSharding(mesh, P()))(end)
    if jax.process_index() == 0:
        out = Path(sys.argv[sys.argv.index("--out") + 1])
        np.savez(out / "measuring.npz", *map(np.asarray, jax.tree.leaves(whole)))
        (out / "collectives.txt").write_text("\n".join(collectives(compiled.as_text())))


if __name__ == "__main__":
    main()
