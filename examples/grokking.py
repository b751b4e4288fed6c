"""Without weight decay a network memorizes, with it it generalizes: (a + b) mod p.

A network of two layers memorizes half of the table (a + b) mod p within a hundred steps,
and predicts none of the other half. Without decay that is still so when this run ends. With
decay it generalizes, long after its training error is gone ("grokking", arXiv 2201.02177).
Each form of decay has its own λ, from a search on another seed (1000); full batches,
float32.
"""

import time
from functools import partial
from typing import Any

import _common as common  # isort: skip  # first: it says which extra is missing
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

import optwd
from optwd import decay, masks

WIDTH, RATE, BETAS, EVERY, GOAL = 64, 0.01, {"b2": 0.98}, 25, 0.99
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "no decay": optwd.adam(RATE, **BETAS),
    "L2, λ = 0.001": optwd.adam_l2(RATE, **BETAS, l2=0.001),
    "AdamW, λ = 2": optwd.adamw(RATE, **BETAS, weight_decay=2.0),
    "AdamW on matrices, λ = 2": optwd.adamw(
        RATE, **BETAS, weight_decay=2.0, mask=masks.ndim(2)
    ),
    "toward_init, λ = 1": optax.chain(
        optwd.scale_by_adam(**BETAS),
        decay.toward_init(1.0),
        optax.scale_by_learning_rate(RATE),
    ),
}
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": common.BLACK, "ls": "-"},
    {"color": common.VERMILION, "ls": "-."},
    {"color": common.BLUE, "ls": "-", "lw": 3},
    {"color": common.SKY, "ls": "--"},
    {"color": common.GREEN, "ls": ":", "lw": 2},
)


def initial(key: jax.Array, p: int) -> dict[str, jax.Array]:
    keys, normal = jax.random.split(key, 3), jax.random.normal
    return {
        "embedding": normal(keys[0], (p, WIDTH)) / WIDTH**0.5,
        "hidden": normal(keys[1], (2 * WIDTH, 2 * WIDTH)) / (2 * WIDTH) ** 0.5,
        "hidden_bias": jnp.zeros(2 * WIDTH),
        "logits": normal(keys[2], (2 * WIDTH, p)) / (2 * WIDTH) ** 0.5,
        "logits_bias": jnp.zeros(p),
    }


def logits(params, a: jax.Array, b: jax.Array) -> jax.Array:
    x = jnp.concatenate([params["embedding"][a], params["embedding"][b]], -1)
    x = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"][None])
    return x @ params["logits"] + params["logits_bias"][None]


def loss(params, a, b, y) -> jax.Array:
    guess = logits(params, a, b)
    return optax.softmax_cross_entropy_with_integer_labels(guess, y).mean()


def split(p: int, share: float, seed: int):
    """a, b and (a + b) mod p for training, and for the test: the rest."""
    cells = np.random.default_rng(seed).permutation(p * p)
    a, b = np.divmod(cells, p)
    table, n = np.stack([a, b, (a + b) % p]), round(share * p * p)
    return table[:, :n], table[:, n:]


@partial(jax.jit, static_argnums=0)
@partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))
def advance(optimizer, params, state, train, test):
    """EVERY steps of each seed, and both accuracies after them."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *train), state, params)
        return (optax.apply_updates(params, updates), state), None

    params, state = jax.lax.scan(step, (params, state), length=EVERY)[0]
    right = [(logits(params, a, b).argmax(-1) == y).mean() for a, b, y in (train, test)]
    return params, state, jnp.stack(right)


def run(optimizer, p: int, share: float, seeds: range, steps: int, bar):
    """Training and test accuracy, (steps / EVERY, seeds, 2), and seconds per step."""
    train, test = map(jnp.array, zip(*(split(p, share, s) for s in seeds), strict=True))
    params = jax.vmap(initial, (0, None))(jnp.stack([*map(jax.random.key, seeds)]), p)
    state, measured = jax.vmap(optimizer.init)(params), []
    advance(optimizer, params, state, train, test)  # compiles
    begin = time.perf_counter()
    for _ in range(steps // EVERY):
        params, state, accuracies = advance(optimizer, params, state, train, test)
        measured.append(jax.block_until_ready(accuracies))
        bar.update(EVERY)
    return np.array(measured), (time.perf_counter() - begin) / steps


def first(test: np.ndarray) -> np.ndarray:
    """Steps until each seed's test accuracy reaches GOAL; inf if it does not."""
    reached = test >= GOAL
    return np.where(reached.any(0), EVERY * (1 + reached.argmax(0)), np.inf)


def draw(curves: dict[str, np.ndarray], title: str):
    """Test accuracy over steps: means over seeds, and their range."""
    picture, (panel,) = common.figure(1, 8, 3.8)
    for (name, measured), look in zip(curves.items(), LOOKS, strict=True):
        t, percent = EVERY * np.arange(1, len(measured) + 1), 100 * measured[..., 1]
        panel.plot(t, percent.mean(1), label=name, **look)
        span = percent.min(1), percent.max(1)
        panel.fill_between(t, *span, color=look["color"], alpha=0.15, lw=0)
    training = 100 * np.mean([measured[..., 0] for measured in curves.values()], (0, 2))
    panel.plot(t, training, color="0.6", lw=1, label="training, mean of all")
    panel.set(xlabel="step", xscale="log", ylabel="accuracy (%)", ylim=(-3, 103))
    # In the middle, so that it does not reach into the title.
    picture.legend(
        loc="outside right center", title="test (shaded: all seeds)", alignment="left"
    )
    picture.suptitle(title)
    return picture


def main(argv: list[str] | None = None) -> dict[str, np.ndarray]:
    """Train, print, draw; returns the accuracies of every setting."""
    args = common.parser(__doc__).parse_args(argv)
    p, share, n, steps = (31, 0.7, 2, 1000) if args.quick else (43, 0.5, 3, 2000)
    seeds, curves, seconds = range(args.seed, args.seed + n), {}, {}
    with common.progress(steps * len(OPTIMIZERS)) as bar:
        for name, optimizer in OPTIMIZERS.items():
            bar.set_description(name)
            curves[name], seconds[name] = run(optimizer, p, share, seeds, steps, bar)
    when = {name: first(measured[..., 1]) for name, measured in curves.items()}
    median = {name: np.median(steps) for name, steps in when.items()}

    task = f"(a + b) mod {p} from {share:.0%} of the table"
    print(f"{task}, {n} seeds; accuracies after {steps} steps:")
    columns = "", "training", "test", f"steps to {GOAL:.0%} test accuracy"
    table = common.table(*columns)
    for name, measured in curves.items():
        reached = (f"{t:.0f}" for t in when[name])
        row = *(f"{a:.1%}" for a in measured[-1].mean(0)), ", ".join(reached)
        table.add_row(name, *(cell.replace("inf", f"> {steps}") for cell in row))
    print(table)
    times = ", ".join(f"{seconds[name] * t:.1f}" for name, t in median.items())
    print(f"Seconds to {GOAL:.0%}, in this order: {times.replace('inf', 'not reached')}.")

    alone, *decayed = median
    fast, slow = (choose(decayed, key=median.get) for choose in (min, max))
    finding = (
        f"test accuracy {curves[alone][-1, :, 1].mean():.0%} after {steps} steps without "
        f"decay,\n{GOAL:.0%} after {median[fast]:.0f} ({fast}) to "
        f"{median[slow]:.0f} steps ({slow}) with it"
    )
    print(f"{task}: {finding.replace(chr(10), ' ')}; medians over seeds.")
    common.save(draw(curves, f"{task}: {finding}"), args.out, "grokking.png")
    return curves


if __name__ == "__main__":
    main()
