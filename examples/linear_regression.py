"""The textbook's linear regression twice: written out in NumPy, and with the library.

Minibatches of 10, 2 epochs, learning rate 0.01, loss ½(ŷ − y)², features and target
standardized. Without --data it is scikit-learn's diabetes study; any delimited file of
numbers will do. Decay, if you ask for some, acts on the weights and not on the bias. Both
see the same minibatches from the same start, in float64.
"""

import csv
import time
from pathlib import Path

import _common as common  # isort: skip  # first: it says which extra is missing
import jax
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import optwd

BATCH, EPOCHS, RATE, POINTS = 10, 2, 0.01, 100


def read(file: Path | None, target: str | None, rows: int | None):
    """Standardized features (rows, columns) and target (rows), and what to call them."""
    if file is None:
        data = load_diabetes()
        names, values, name = data.feature_names, data.data, "scikit-learn's diabetes data"
        names, values = [*names, "progression"], np.column_stack([values, data.target])
    else:
        text, name = file.read_text("utf-8-sig"), file.name
        lines = list(csv.reader(text.splitlines(), csv.Sniffer().sniff(text, ",;\t| ")))
        names, values = lines[0], np.array(lines[1:], float)
    values, target = values[:rows], names[-1] if target is None else target
    if target not in names:
        raise ValueError(f"no column {target!r} in {name}; it has {', '.join(names)}")
    if len(values) < BATCH or not np.isfinite(values).all():
        raise ValueError(f"{name} needs at least {BATCH} rows, all of finite numbers")
    values, spread = values - values.mean(0), values.std(0)
    if (spread == 0).any():
        constant = names[int(spread.argmin())]
        raise ValueError(f"column {constant!r} of {name} is constant; take it out")
    column = names.index(target)
    return np.delete(values / spread, column, 1), (values / spread)[:, column], name


def from_scratch(w, b, x, y, decay):
    """One epoch of minibatches (batches, BATCH, …): w and b after each of them."""
    path = []
    for features, target in zip(x, y, strict=True):
        error = features @ w + b - target
        w = w - RATE * (features.T @ error / BATCH + decay * w)
        b = b - RATE * error.mean()
        path.append((w, b))
    return [np.stack(part) for part in zip(*path, strict=True)]


def with_the_library(decay):
    """The same epoch, as one compiled program."""
    optimizer = optwd.sgdw(RATE, weight_decay=decay, mask={"w": True, "b": False})

    def loss(params, x, y):
        return optax.l2_loss(x @ params["w"] + params["b"], y).mean()

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["w"], params["b"])

    @jax.jit
    def epoch(w, b, x, y):
        params = {"w": w, "b": b}
        return jax.lax.scan(step, (params, optimizer.init(params)), (x, y))[1]

    return epoch


def train(epoch, x, y, seed: int, bar) -> tuple[np.ndarray, np.ndarray, float]:
    """(epochs, loss) at up to POINTS points, w followed by b, and seconds per epoch."""
    rng = np.random.default_rng(seed)
    w, b, path, seconds = rng.normal(0, 0.01, x.shape[1]), np.zeros(()), [], 0.0
    path.append(np.append(w, b)[None])
    for _ in range(EPOCHS):
        order = rng.permutation(len(y))[: len(y) // BATCH * BATCH].reshape(-1, BATCH)
        batches = x[order], y[order]
        jax.block_until_ready(epoch(w, b, *batches))  # compiles, where it has to
        begin = time.perf_counter()
        ws, bs = jax.block_until_ready(epoch(w, b, *batches))
        seconds += (time.perf_counter() - begin) / EPOCHS
        path.append(np.column_stack([ws, bs]))
        w, b = ws[-1], bs[-1]
        bar.update(len(order))
    path = np.concatenate(path)
    shown = np.unique(np.linspace(0, len(path) - 1, POINTS).astype(int))
    loss = [np.square(x @ p[:-1] + p[-1] - y).mean() / 2 for p in path[shown]]
    return np.array([shown / len(order), loss]), path[-1], seconds


def draw(curves: dict[str, np.ndarray], floor: float, title: str):
    picture, (panel,) = common.figure(1, 6, 3.6)
    for (name, curve), color, width, style in zip(
        curves.items(), (common.SKY, common.BLACK), (4, 1.2), ("-", "--"), strict=True
    ):
        panel.plot(*curve, style, label=name, color=color, lw=width)
    panel.axhline(floor, color="0.5", ls=":", label="least squares")
    panel.set(xlabel="epoch", ylabel="loss ½(ŷ − y)², standardized target", ylim=(0, None))
    panel.legend()
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train twice, print, draw; returns the last losses and the largest difference."""
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE", help="with a header row")
    parser.add_argument("--target", metavar="COLUMN", help="its name; the last column")
    parser.add_argument("--rows", type=int, metavar="N", help="only the first; all")
    parser.add_argument("--weight-decay", type=float, default=0.0, metavar="λ", help="0")
    args = parser.parse_args(argv)
    try:
        x, y, name = read(args.data, args.target, args.rows)
    except (OSError, ValueError, csv.Error) as error:
        parser.error(str(error))

    curves, weights, seconds = {}, {}, {}
    with common.float64(), common.progress(2 * EPOCHS * (len(y) // BATCH)) as bar:
        for way, epoch in {
            "from scratch": lambda *given: from_scratch(*given, args.weight_decay),
            "with the library": with_the_library(args.weight_decay),
        }.items():
            curves[way], weights[way], seconds[way] = train(epoch, x, y, args.seed, bar)

    timing = ", ".join(f"{s:.1e} {way}" for way, s in seconds.items())
    print(f"Seconds per epoch, compiled: {timing}.")

    design = np.column_stack([x, np.ones(len(y))])
    floor = np.square(design @ np.linalg.lstsq(design, y)[0] - y).mean() / 2
    scratch, library = (loss[-1] for _, loss in curves.values())
    difference = np.abs(np.subtract(*weights.values())).max()
    finding = (
        f"loss {scratch:.3f} from scratch, {library:.3f} with the library, "
        f"{floor:.3f} at best"
    )
    print(f"{name}, {len(y)} rows: {finding}; weights within {difference:.1g}.")
    title = (
        f"{name}, {EPOCHS} epochs: loss {library:.3f}, {floor:.3f} at best;\n"
        f"from scratch and with the library the same weights to {difference:.1g}"
    )
    common.save(draw(curves, floor, title), args.out, "linear_regression.png")
    return {"scratch": scratch, "library": library, "best": floor, "weights": difference}


if __name__ == "__main__":
    main()
