"""Do weights rotate and grow as theory predicts? Layer by layer, predicted and measured.

Decay and gradients balance: after some steps every matrix should turn by the same angle
per step and have the same root mean square, whatever it began with, if its gradients are
independent from step to step and orthogonal to it. `optwd.monitor_rotation` measures both
in the optimizer, beside what `rates.equilibrium_angle` and `rates.equilibrium_rms` predict.
Two networks put this to the test, each under two couplings:

- digits: one hidden layer, labels of which 40 % are wrong;
- transformer: a small one that reads Python's manual byte by byte.

The learning rate holds for half of the run, then falls to a tenth along a line. Decay that
it scales falls with it, so that weights turn more slowly; decay that nothing scales stays,
so that they would turn as fast as before and shrink. The prediction is of where weights
settle at that learning rate; they follow late. Learning rate and decay are high, so that so
short a run reaches its equilibrium, and batches are small, so that noise leads.
"""

from functools import partial
from typing import NamedTuple

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import _manual as manual
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich import print

import optwd
from optwd import masks

RATE, SHARE = 1e-2, 4e-3  # η at its peak, and what decay takes per step there
B1, B2 = 0.9, 0.95
DECAYS = {"learning_rate": SHARE / RATE, "nothing": SHARE}
POLICY = masks.standard()  # kernels; biases, scales and embeddings do not decay
LAYERS, WIDTH, LENGTH, ROWS = 2, 64, 64, 2  # of the transformer and its batches
HIDDEN, BATCH = 64, 8  # of the other
SMOOTH = 10  # steps over which the picture averages angles


class Run(NamedTuple):
    """One network under one coupling."""

    matrices: list[str]  # paths of those that decay
    angle: np.ndarray  # measured, radians: (steps, matrices)
    rms: np.ndarray  # measured: (steps, matrices)
    predicted: np.ndarray  # angle and rms at each step's learning rate: (2, steps)


def schedule(steps: int) -> optax.Schedule:
    """Constant, then down to a tenth."""
    half = steps // 2
    fall = optax.linear_schedule(RATE, RATE / 10, steps - half)
    return optax.join_schedules([optax.constant_schedule(RATE), fall], [half])


def train(loss, params, batches, scaled_by: str) -> Run:
    """A step per batch, each measured."""
    steps = len(jax.tree.leaves(batches)[0])
    eta, lam = schedule(steps), DECAYS[scaled_by]
    matrices = decayed(params)
    optimizer = optax.chain(
        optwd.adamw(eta, B1, B2, weight_decay=lam, mask=POLICY, scaled_by=scaled_by),
        optwd.monitor_rotation(
            eta,
            lam,
            B1,
            scaled_by=scaled_by,
            groups={name: masks.path(name) for name in matrices},
        ),
    )

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(loss)(params, *batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), optwd.metrics(state)

    begin = params, optimizer.init(params)
    _, recorded = jax.jit(partial(jax.lax.scan, step))(begin, batches)

    def of(key: str) -> np.ndarray:
        each = [recorded[f"rotation/{name}/{key}"] for name in matrices]
        return np.stack(each, 1).astype(float)

    angle, rms = of("angle"), of("rms")
    predicted = angle / of("angle_ratio"), rms / of("rms_ratio")
    return Run(matrices, angle, rms, np.stack([p[:, 0] for p in predicted]))


def decayed(params) -> list[str]:
    """The paths of the leaves that the policy decays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    chosen = jax.tree.leaves(POLICY.tree(params))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        for (path, _), k in zip(leaves, chosen, strict=True)
        if k
    ]


def of_digits(seed: int, steps: int):
    """Loss, parameters and batches, read again in every epoch."""
    x, y, *_ = digits.split(seed)
    rows = np.random.default_rng(seed).integers(len(y), size=(steps, BATCH))
    params = jax.tree.map(
        lambda w: w[0], digits.initial(jax.random.key(seed)[None], HIDDEN)
    )
    return digits.loss, params, (jnp.asarray(x[rows]), jnp.asarray(y[rows]))


def of_manual(seed: int, steps: int):
    """Loss, parameters and batches, each read once."""
    graph, params = nnx.split(
        manual.Transformer(LAYERS, WIDTH, LENGTH, nnx.Rngs(seed)), nnx.Param
    )

    def loss(params, tokens):
        logits = nnx.merge(graph, params)(tokens[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return losses.mean()

    text, _ = manual.text()
    tokens = manual.batch(text, (steps, ROWS), LENGTH, seed)
    return loss, params, (jnp.asarray(tokens),)


NETWORKS = {"digits": of_digits, "transformer": of_manual}


def ratios(run: Run, part: slice) -> np.ndarray:
    """Measured over predicted, averaged over some of the steps: (2, matrices)."""
    measured = np.stack([run.angle, run.rms])[:, part]
    return (measured / run.predicted[:, part, None]).mean(1)


def halves(steps: int) -> dict[str, slice]:
    """Steps at which weights have had time to settle."""
    return {"held": slice(steps // 4, steps // 2), "falling": slice(3 * steps // 4, steps)}


def is_last(matrix: str) -> bool:
    """Whether no normalisation and no other matrix follows."""
    return matrix.startswith(("head", "logits"))


def spread(runs, steps: int, network: str, last: bool) -> str:
    """The least and the largest ratio of angles while η is held."""
    found = [
        ratio
        for (name, _), run in runs.items()
        for matrix, ratio in zip(
            run.matrices, ratios(run, halves(steps)["held"])[0], strict=True
        )
        if name == network and is_last(matrix) == last
    ]
    least, largest = f"{min(found):.2f}", f"{max(found):.2f}"
    return least if least == largest else f"{least} to {largest}"


def draw(runs: dict[tuple[str, str], Run], title: str):
    """Angle above, size below: a line per matrix, and the prediction."""
    picture, axes = common.figure(len(runs), 13, 6, rows=2)
    for column, ((network, scaled_by), run) in enumerate(runs.items()):
        t = np.arange(0, len(run.angle), SMOOTH)
        angle = run.angle.reshape(len(t), SMOOTH, -1).mean(1)
        measured = np.rad2deg(angle), run.rms[::SMOOTH]
        predicted = np.rad2deg(run.predicted[0, ::SMOOTH]), run.predicted[1, ::SMOOTH]
        for row, label in enumerate(
            (f"angle per step (°), mean of {SMOOTH}", "root mean square")
        ):
            axis = axes[row * len(runs) + column]
            axis.sharey(axes[row * len(runs)])
            for matrix, values in zip(run.matrices, measured[row].T, strict=True):
                last = is_last(matrix)
                color = common.VERMILION if last else common.BLUE
                axis.plot(
                    t,
                    values,
                    color=color,
                    lw=0.8,
                    label=f"{'last' if last else 'inner'} matrices",
                )
            axis.plot(t, predicted[row], "k--", lw=2, label="predicted")
            axis.set(xlabel="step", yscale="log")
            axis.label_outer()
            if column == 0:
                axis.set_ylabel(label)
            if row == 0:
                axis.set_title(f"{network}: scaled by {scaled_by}", fontsize=10)
        handles, labels = axes[column].get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes[column].legend(once.values(), once, loc="lower left")
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[tuple[str, str], Run]:
    """Train, print, draw; returns a run for each network and coupling."""
    args = common.parser(__doc__).parse_args(argv)
    steps = 240 if args.quick else 1000
    runs = {}
    with common.progress(2 * len(NETWORKS) * steps) as bar:
        for network, make in NETWORKS.items():
            for scaled_by in DECAYS:
                bar.set_description(f"{network}, scaled by {scaled_by}")
                runs[network, scaled_by] = train(*make(args.seed, steps), scaled_by)
                bar.update(steps)

    print(
        f"Measured over predicted, {steps} steps, decay of {SHARE:.1%} per step at first:"
    )
    columns = [f"{what}, η {part}" for part in halves(steps) for what in ("angle", "rms")]
    table = common.table("network", "scaled by", "matrix", *columns)
    for (network, scaled_by), run in runs.items():
        values = np.concatenate([ratios(run, part) for part in halves(steps).values()])
        for matrix, row in zip(run.matrices, values.T, strict=True):
            table.add_row(network, scaled_by, matrix, *(f"{x:.2f}" for x in row))
    print(table)

    within, head, hidden, logits = (
        spread(runs, steps, network, last)
        for network in ("transformer", "digits")
        for last in (False, True)
    )
    finding = (
        f"While η is held, inner matrices of the transformer turn by {within} times the "
        f"predicted angle, its head by {head};\nin the digits network, which normalizes "
        f"nothing, the hidden layer by {hidden}, the last by {logits}"
    )
    print(finding.replace("\n", " ") + ".")
    common.save(draw(runs, finding), args.out, "equilibrium.png")
    return runs


if __name__ == "__main__":
    main()
