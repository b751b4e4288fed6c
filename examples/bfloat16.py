"""Weights in bfloat16: what rounding takes from decay and training, and how to keep it.

bfloat16 holds three significant digits. A step that moves a weight by less than 0.2% is
rounded away, and so is the next one. `compensate_rounding` adds what was rounded away to
the next step; `round_stochastically` rounds up or down at random, right on average.

First decay alone: AdamW on zero gradients, for 10 000 steps of η·λ = 1e-4. Then a small
transformer that learns to predict the next byte of Python's own manual, with weights and
gradients in bfloat16 or in float32, from the same seeds and on the same batches. The model
computes in float32, so the runs differ only in the rounding of weights and gradients.
"""

from functools import partial
from typing import Any, NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _manual as manual
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich import print

import optwd
from optwd import masks

DECAY_RATE, DECAY_LAMBDA, DECAY_STEPS, WEIGHTS = 1e-3, 0.1, 10_000, 4096
LAYERS, WIDTH, LENGTH, ROWS, UNSEEN = 1, 32, 32, 16, 64
RATE, LAMBDA = 1e-3, 1.0  # the peak of a warm-up and a cosine
POLICY = masks.standard()  # kernels decay; norms' scales and embeddings do not
POINTS = 20  # on each curve, beside the start
LOOKS: dict[str, dict[str, Any]] = {
    "float32": {"color": common.BLACK, "lw": 4, "alpha": 0.35},
    "bfloat16": {"color": common.VERMILION, "lw": 1.5, "ls": "-."},
    "bfloat16, compensated": {"color": common.BLUE, "lw": 1.5},
    "bfloat16, stochastic": {"color": common.GREEN, "lw": 1.5, "ls": "--"},
}


class Row(NamedTuple):
    """Where training ended: means over seeds and their standard deviations."""

    loss: float  # on unseen topics, in nats per byte
    loss_deviation: float
    norm: float  # of the weights that decay
    norm_deviation: float


def ways(adamw: optax.GradientTransformation, seed: int) -> dict[str, tuple[Any, Any]]:
    """By name: the dtype of the weights, and the optimizer."""
    optimizers = (
        adamw,
        adamw,
        optwd.compensate_rounding(adamw),
        optwd.round_stochastically(adamw, seed),
    )
    dtypes = jnp.float32, *3 * [jnp.bfloat16]
    return dict(zip(LOOKS, zip(dtypes, optimizers, strict=True), strict=True))


def cast(tree, dtype):
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def decay_alone(optimizer, start, bar) -> np.ndarray:
    """The norm of the weights, relative to the start."""

    @jax.jit
    def advance(params, state):
        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(jnp.zeros_like(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, DECAY_STEPS // POINTS, step, (params, state))

    params, state, norms = start, optimizer.init(start), [np.linalg.norm(np.float64(start))]
    for _ in range(POINTS):
        params, state = advance(params, state)
        norms.append(np.linalg.norm(np.float64(params)))
        bar.update(DECAY_STEPS // POINTS)
    return np.array(norms) / norms[0]


def transformer(seed) -> manual.Transformer:
    return manual.Transformer(LAYERS, WIDTH, LENGTH, nnx.Rngs(seed))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: transformer(0)))


def loss(params, tokens) -> jax.Array:
    """In nats per byte, computed in float32."""
    logits = nnx.merge(GRAPH, cast(params, jnp.float32))(tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@jax.jit
@partial(jax.vmap, in_axes=(0, None))
def measured(params, unseen):
    """Loss on unseen topics and norm of the decayed weights, for each seed."""
    decayed = jax.tree.map(jnp.multiply, params, POLICY.tree(params))
    return jnp.stack([loss(params, unseen), optax.tree.norm(decayed)])


def train(optimizer, keys, params, steps: int, bar) -> np.ndarray:
    """All seeds at once: what is measured, (POINTS + 1, 2, seeds)."""
    text, unseen = manual.text()
    text, unseen = jnp.asarray(text), manual.spaced(unseen, (1, UNSEEN), LENGTH)[0]

    def measure(params):  # in one dtype, so that it compiles once
        return jax.block_until_ready(measured(cast(params, jnp.float32), unseen))

    @jax.jit
    def advance(params, state, ts):
        def one(params, state, key):
            def step(carry, t):
                params, state = carry
                rows = jax.random.fold_in(key, t)
                rows = jax.random.randint(rows, (ROWS, 1), 0, len(text) - LENGTH)
                tokens = text[rows + jnp.arange(LENGTH + 1)[None]].astype(jnp.int32)
                gradients = jax.grad(loss)(params, tokens)
                updates, state = optimizer.update(gradients, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, state), ts)[0]

        return jax.vmap(one)(params, state, keys)

    state, points = jax.vmap(optimizer.init)(params), [measure(params)]
    for ts in np.arange(steps).reshape(POINTS, -1):
        params, state = advance(params, state, ts)
        points.append(measure(params))
        bar.update(len(ts))
    return np.moveaxis(np.array(points), 1, 2)


def draw(alone: dict[str, np.ndarray], curves: dict[str, np.ndarray], steps: int, title):
    """Decay alone, then the norm and the loss in training: means over seeds, and ranges."""
    picture, (left, middle, right) = common.figure(3, 10, 3.8)
    for name, look in LOOKS.items():
        left.plot(np.linspace(0, DECAY_STEPS, POINTS + 1), alone[name], label=name, **look)
        t = np.linspace(0, steps, POINTS + 1)
        norms_and_losses = np.moveaxis(curves[name], 1, 0)[::-1]
        for panel, values in zip((middle, right), norms_and_losses, strict=True):
            panel.plot(t, values.mean(-1), **look)
            span = values.min(-1), values.max(-1)
            panel.fill_between(t, *span, color=look["color"], alpha=0.12, lw=0)
    left.set(ylabel="‖θ‖₂ relative to the start", ylim=(0, 1.05))
    left.set_title("decay alone (zero gradients), ηλ = 1e-4", fontsize=9)
    middle.set(ylabel="‖θ‖₂ of the decayed weights")
    middle.set_title("training a transformer", fontsize=9)
    right.set(ylabel="loss on unseen topics (nats per byte)")
    right.set_title("training a transformer", fontsize=9)
    right.set_ylim(None, 4.5)
    for panel in (left, middle, right):
        panel.set(xlabel="step", xlim=(0, None))
    picture.legend(handles=left.get_lines(), loc="outside lower center", ncols=4)
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> tuple[dict[str, float], dict[str, Row]]:
    """Decay, train, print, draw; returns the last norms and the rows of the table."""
    args = common.parser(__doc__).parse_args(argv)
    n, steps = (2, 60) if args.quick else (5, 500)
    alone, curves, rows = {}, {}, {}
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps)
    training = optwd.adamw(schedule, b2=0.95, weight_decay=LAMBDA, mask=POLICY)
    decaying = optwd.adamw(DECAY_RATE, weight_decay=DECAY_LAMBDA)
    weights = jax.random.normal(jax.random.key(args.seed), (WEIGHTS,))
    keys = jnp.stack([jax.random.key(args.seed + i) for i in range(n)])
    params = jax.jit(jax.vmap(lambda key: nnx.state(transformer(key), nnx.Param)))(keys)
    with common.progress(len(LOOKS) * (DECAY_STEPS + steps)) as bar:
        for name, (dtype, optimizer) in ways(decaying, args.seed).items():
            bar.set_description(name)
            alone[name] = decay_alone(optimizer, weights.astype(dtype), bar)
        for name, (dtype, optimizer) in ways(training, args.seed).items():
            bar.set_description(name)
            curves[name] = train(optimizer, keys, cast(params, dtype), steps, bar)

    columns = "", "decay alone, ‖θ‖", "loss (nats/byte)", "‖θ‖ in the end"
    table = common.table(*columns)
    for name in LOOKS:
        loss, norm = curves[name][-1]
        rows[name] = row = Row(loss.mean(), loss.std(), norm.mean(), norm.std())
        table.add_row(
            name,
            f"× {alone[name][-1]:.4f}",
            f"{row.loss:.3f} ± {row.loss_deviation:.3f}",
            f"{row.norm:.2f} ± {row.norm_deviation:.2f}",
        )
    exact = (1 - DECAY_RATE * DECAY_LAMBDA) ** DECAY_STEPS
    size = sum(x[0].size for x in jax.tree.leaves(params))
    print(
        f"Decay alone: {DECAY_STEPS} steps of ηλ = {DECAY_RATE * DECAY_LAMBDA:g}, exactly "
        f"× {exact:.4f}. Training: a transformer of {size:,} parameters, AdamW, peak "
        f"η = {RATE:g}, λ = {LAMBDA:g}, {steps} steps, {n} seeds.",
        table,
        "±: standard deviation over seeds.",
        sep="\n",
    )
    apart = {name: row.loss - rows["float32"].loss for name, row in rows.items()}
    plain, *kept = list(apart.values())[1:]
    title = (
        "Plain bfloat16 loses all decay at ηλ = 1e-4, and in training "
        f"{plain:.2f} nats per byte;\ncompensated or stochastic rounding is within "
        f"{max(map(abs, kept)):.1g} nats of float32 (means and ranges of {n} seeds)"
    )
    common.save(draw(alone, curves, steps, title), args.out, "bfloat16.png")
    return {name: float(norms[-1]) for name, norms in alone.items()}, rows


if __name__ == "__main__":
    main()
