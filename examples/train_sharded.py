"""Train a language model on a mesh; kill it at any step, and end at the same weights.

A Flax nnx transformer learns to predict the next byte of Python's own manual. What a run
at scale needs is here once: weights and optimizer state sharded over all devices (FSDP),
gradients accumulated over microbatches and clipped, a mask, a monitor around the decay,
and checkpoints of all that the next step depends on. Started again with the same options
it resumes from the last of them, and ends with the same digest of the weights, bit for bit.

    python examples/train_sharded.py                # on the devices that are there
    python examples/train_sharded.py --devices 8    # on 8 virtual ones of the CPU
    python examples/train_sharded.py --processes 2  # in 2 processes of one each
    python examples/train_sharded.py --interrupted  # and again, stopped half way, resumed

A run that has finished is only drawn again; with --fresh it starts anew.
"""

import hashlib
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _loopback as loopback
import _manual as manual
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optwd
from optwd import decay, masks

with common.extras():
    from orbax import checkpoint
    from orbax.checkpoint import args as item

PEAK, WEIGHT_DECAY, CLIP, MICROBATCHES = 5e-3, 1.0, 1.0, 2
POLICY = masks.standard()  # kernels decay; biases, scales and embeddings do not
SHOWN = "loss", "unseen", "rate", "decay/ratio"


class Size(NamedTuple):
    """What `--quick` makes smaller."""

    steps: int
    layers: int
    width: int
    length: int  # bytes that the model sees at once
    rows: int  # in a microbatch
    every: int  # steps from one checkpoint to the next

    def model(self, seed: int) -> manual.Transformer:
        return manual.Transformer(self.layers, self.width, self.length, nnx.Rngs(seed))


FULL = Size(steps=500, layers=3, width=128, length=128, rows=16, every=20)
QUICK = Size(steps=120, layers=2, width=64, length=64, rows=16, every=10)


def optimizer(rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW after a clip, with a monitor of the decay."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP),
        optwd.scale_by_adam(b2=0.95),
        optwd.monitor(decay.linear(WEIGHT_DECAY, POLICY), "decay"),
        optax.scale_by_learning_rate(rate),
    )


def initial(size: Size, seed: int, tx) -> tuple[Any, Any]:
    """Weights, and the optimizer's state: in this order they can be donated in place."""
    params = nnx.state(size.model(seed), nnx.Param)
    return params, tx.init(params)


def spread(mesh, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A leaf with its longest axis sharded over the mesh; a small one is replicated.

    The shape alone decides, so moments are sharded as their weights are.
    """
    spec = [None] * len(x.shape)
    fits = [n for n in x.shape if n % mesh.size == 0]
    if math.prod(x.shape) >= 4096 and fits:
        spec[x.shape.index(max(fits))] = "data"
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P(*spec)))


def mean(function, microbatches):
    """The mean of a function's results over microbatches, one in memory at a time."""

    def add(total, tokens):
        return jax.tree.map(jnp.add, total, function(tokens)), None

    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, microbatches[0]))
    total, _ = jax.lax.scan(add, zeros, microbatches)
    return jax.tree.map(lambda x: x / len(microbatches), total)


def compiled(size: Size, tx, shardings, whole):
    """A step, and the loss without one: functions on the mesh."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: size.model(0)))

    def loss(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    @partial(jax.jit, donate_argnums=0, out_shardings=(shardings, whole))
    def advance(state, batch):
        params, opt_state = state
        value, gradients = mean(partial(jax.value_and_grad(loss), params), batch)
        updates, opt_state = tx.update(gradients, opt_state, params)
        measured = {"loss": value, **optwd.metrics(opt_state)}
        return (optax.apply_updates(params, updates), opt_state), measured

    @partial(jax.jit, out_shardings=whole)
    def evaluate(params, batch):
        return mean(partial(loss, params), batch)

    return advance, evaluate


def half_way(size: Size) -> int:
    """A step between two checkpoints."""
    last = size.steps // 2 // size.every * size.every
    return min(last + size.every // 2, size.steps - 1)


def train(
    size: Size, seed: int, folder: Path, say, stop: int | None = None
) -> tuple[list[dict[str, float]], Any]:
    """What was measured at every checkpoint, and the weights at the end.

    After the step ``stop`` it returns without a checkpoint, as if it had been killed there.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    whole, by_rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "data"))
    rate = optax.warmup_cosine_decay_schedule(0, PEAK, size.steps // 10, size.steps)
    tx = optimizer(rate)
    begin = partial(initial, size, seed, tx)
    abstract = jax.tree.map(partial(spread, mesh), jax.eval_shape(begin))
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    advance, evaluate = compiled(size, tx, shardings, whole)

    def on_mesh(batch):  # each process takes the rows of its own devices
        return jax.make_array_from_callback(batch.shape, by_rows, batch.__getitem__)

    shape = MICROBATCHES, size.rows
    text, unseen = manual.text()
    unseen = on_mesh(manual.spaced(unseen, shape, size.length))
    keep = checkpoint.CheckpointManagerOptions(max_to_keep=2)
    with checkpoint.CheckpointManager(folder, options=keep) as disk:
        if start := disk.latest_step() or 0:
            done = start == size.steps
            say(
                f"Finished before; to start anew, add --fresh or remove {folder}"
                if done
                else f"Resuming from step {start} of {size.steps}, in {folder}"
            )
            items = {"state": item.StandardRestore(abstract), "log": item.JsonRestore()}
            found = disk.restore(start, args=item.Composite(**items))
            state, log = found["state"], found["log"]
        else:
            state, log = jax.jit(begin, out_shardings=shardings)(), []
        say(f"Devices: {mesh.size}; processes: {jax.process_count()}; seed: {seed}")
        say(optwd.tabulate(state[0], POLICY).splitlines()[-1])
        with common.progress(size.steps, start, show=jax.process_index() == 0) as bar:
            for step in range(start, size.steps if stop is None else stop):
                # A batch is a function of seed and step: the step is the place in the data.
                batch = manual.batch(text, shape, size.length, seed, step)
                state, measured = advance(state, on_mesh(batch))
                bar.update()
                if (step + 1) % size.every and step + 1 < size.steps:
                    continue
                measured |= {"unseen": evaluate(state[0], unseen), "rate": rate(step)}
                log.append(
                    {"step": step + 1, "start": start} | jax.tree.map(float, measured)
                )
                bar.set_postfix({name: f"{log[-1][name]:.3g}" for name in SHOWN})
                items = {"state": item.StandardSave(state), "log": item.JsonSave([*log])}
                disk.save(step + 1, args=item.Composite(**items))  # training goes on
    return log, jax.jit(lambda params: params, out_shardings=whole)(state[0])


def digest(params) -> str:
    """The same for the same bits."""
    leaves = jax.device_get(jax.tree.leaves(params))
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()[:16]


def draw(log: list[dict], resumed: list[dict] | None, title: str):
    """Loss and the decay's share of the step; and those of a run that was interrupted."""
    picture, (left, right) = common.figure(2, 10, 3.8)
    of = {name: [row[name] for row in log] for name in ("step", *SHOWN)}
    t, ratio = of["step"], [100 * share for share in of["decay/ratio"]]
    wide = {"lw": 5, "alpha": 0.35} if resumed else {"lw": 2}
    note = ", uninterrupted" if resumed else ""
    left.plot(t, of["loss"], color=common.ORANGE, lw=1, label="training batch")
    left.plot(t, of["unseen"], color=common.BLUE, label=f"unseen topics{note}", **wide)
    right.plot(t, ratio, color=common.BLUE, label=f"AdamW{note}", **wide)
    if resumed:
        t, unseen = zip(*((row["step"], row["unseen"]) for row in resumed), strict=True)
        look = {"color": common.VERMILION, "lw": 1.2, "ls": "--", "marker": ".", "ms": 5}
        left.plot(t, unseen, label="unseen topics, resumed", **look)
        ratio = [100 * row["decay/ratio"] for row in resumed]
        right.plot(t, ratio, label="AdamW, resumed", **look)
    for panel in (left, right):
        starts = sorted({row["start"] for row in resumed or log} - {0})
        for start in starts:
            label = "resumed from a checkpoint" if start == starts[0] else None
            panel.axvline(start, color="black", lw=1, ls=":", label=label)
        panel.set(xlabel="step", xlim=(0, None))
        panel.legend(frameon=True, framealpha=1, edgecolor="none")
    left.set(ylabel="cross-entropy (nats per byte)")
    right.set(ylabel="decay ‖λθ‖ over Adam's step ‖û‖ (%)", ylim=(0, None))
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Train, print, draw; returns what was measured at every checkpoint."""
    options = common.parser(__doc__)
    options.add_argument(
        "--steps", type=common.positive, metavar="N", help="500; 120 if quick"
    )
    options.add_argument("--fresh", action="store_true", help="discard old checkpoints")
    options.add_argument(
        "--interrupted", action="store_true", help="train again, interrupted and resumed"
    )
    loopback.add_options(options)
    args = options.parse_args(argv)
    loopback.start(__file__, argv, args)

    size = QUICK if args.quick else FULL
    size = size._replace(steps=args.steps or size.steps)
    if size.rows % jax.device_count():
        options.error(f"{size.rows} rows do not divide among {jax.device_count()} devices")
    name = f"{'quick' if args.quick else 'full'}-{size.steps}-{args.seed}"
    first, begin = jax.process_index() == 0, time.perf_counter()
    say = print if first else lambda *_: None
    folder = args.out.resolve() / "train_sharded" / name
    again = folder.with_name(f"{name}-interrupted")
    if args.fresh and first:
        shutil.rmtree(folder, ignore_errors=True)
    if first:
        shutil.rmtree(again, ignore_errors=True)
    multihost_utils.sync_global_devices("old checkpoints are gone")
    log, params = train(size, args.seed, folder, say)
    expected, resumed, outcome = digest(params), None, ""
    if args.interrupted:
        stop = half_way(size)
        train(size, args.seed, again, say, stop)
        say(f"Stopped after step {stop}")
        resumed, params = train(size, args.seed, again, say)
        same = digest(params) == expected
        outcome = (
            f"\nStopped after step {stop} and resumed, it ends at "
            f"{'the same weights bit for bit' if same else 'OTHER WEIGHTS'}"
        )
        say(outcome.strip())

    share = [row["decay/ratio"] for row in log]
    finding = (
        f"{log[-1]['unseen']:.2f} nats per byte on unseen topics; decay is {share[0]:.0%} "
        f"of Adam's step at first, {max(share):.0%} at most, {share[-1]:.0%} at the end"
    )
    say(f"Seconds: {time.perf_counter() - begin:.1f}")
    say(f"{finding}.")
    say(f"Digest of the weights: {expected}")
    if first:
        title = f"Python's manual, byte by byte:\n{finding}{outcome}"
        common.save(draw(log, resumed, title), args.out, "train_sharded.png")
    return log


if __name__ == "__main__":
    main()
