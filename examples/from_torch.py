"""A training run that begins in torch and continues in JAX, step for step.

torch's AdamW, with a parameter group for weights and one for biases and a learning rate
that falls, trains a small network on handwritten digits. Half way, the weights and the
optimizer's state are carried over by name, and both continue side by side in double
precision, on the same batches.

Needs torch: pip install -e ".[parity]"
"""

import _common as common  # isort: skip  # first: it says which extra is missing
import _digits as digits
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import print

from optwd import compat

STEPS, RATE, DECAY = 400, 0.01, 1.0
NAMES = {
    "0.weight": "hidden/kernel",
    "0.bias": "hidden/bias",
    "2.weight": "logits/kernel",
    "2.bias": "logits/bias",
}


def begin(torch, seed: int):
    """The network and its optimizer, in torch."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, digits.HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Linear(digits.HIDDEN, 10),
    ).double()
    named = dict(net.named_parameters())
    groups = [
        {"params": [(k, p) for k, p in named.items() if p.ndim > 1]},
        {"params": [(k, p) for k, p in named.items() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return net, torch.optim.AdamW(groups, RATE, weight_decay=DECAY)


def advance(torch, net, optimizer, x, y, rate: float) -> float:
    """One step of torch; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor(y))
    loss.backward()
    optimizer.step()
    return loss.item()


def carry_over(net, optimizer, rates: np.ndarray):
    """The parameters, the optimizer and its state, in JAX."""
    like = jax.tree.map(lambda p: p[0], digits.initial(jax.random.key(0)[None]))
    params = compat.torch.params_from(net.state_dict(), like, NAMES)
    saved = optimizer.state_dict()
    ours = compat.torch.optimizer_from(saved, NAMES, lr=lambda t: jnp.asarray(rates)[t])
    return params, ours, compat.torch.state_from(saved, params, NAMES, ours)


def distance(net, params) -> float:
    """The largest difference of any weight."""
    there = compat.torch.params_from(net.state_dict(), params, NAMES)
    apart = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), there, params)
    return max(map(float, jax.tree.leaves(apart)))


def main(argv: list[str] | None = None) -> np.ndarray | None:
    """Train, carry over, go on, print; returns the differences, or None without torch."""
    args = common.parser(__doc__).parse_args(argv)
    try:
        import torch
    except ModuleNotFoundError:
        print("torch is not installed: there is no run to carry over.")
        print('In the project\'s root, run: pip install -e ".\\[parity]"')
        return None

    steps = STEPS // 10 if args.quick else STEPS
    rates = RATE * (1 - np.arange(steps) / steps)
    x, y, _, _ = digits.split(args.seed)
    rows = np.random.default_rng(args.seed).integers(0, len(x), (steps, digits.BATCH))
    table = common.table("step", "loss in torch", "loss in JAX", "max |Δθ|")
    apart = []
    with common.float64(), common.progress(steps) as bar:
        net, optimizer = begin(torch, args.seed)
        for t in range(steps // 2):
            advance(torch, net, optimizer, x[rows[t]], y[rows[t]], rates[t])
            bar.update()

        params, ours, state = carry_over(net, optimizer, rates)

        @jax.jit
        def step(params, state, x, y):
            loss, gradients = jax.value_and_grad(digits.loss)(params, x, y)
            updates, state = ours.update(gradients, state, params)
            return optax.apply_updates(params, updates), state, loss

        for t in range(steps // 2, steps):
            batch = x[rows[t]], y[rows[t]]
            there = advance(torch, net, optimizer, *batch, rates[t])
            params, state, here = step(params, state, *batch)
            apart.append(distance(net, params))
            if (t + 1) % (steps // 20) == 0:
                table.add_row(
                    str(t + 1), f"{there:.10f}", f"{here:.10f}", f"{apart[-1]:.1e}"
                )
            bar.update()

    print(f"Carried over from torch {torch.__version__} after {steps // 2} steps:", table)
    print(f"The largest difference of any weight in any step is {max(apart):.1e}.")
    return np.array(apart)


if __name__ == "__main__":
    main()
