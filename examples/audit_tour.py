"""What is the weight decay of every optimizer of Optax, of optax.contrib and of torch?

Each is run, not read: `optwd.audit` holds the weights still and compares the updates with
the decay and without. One row per optimizer says what it found: the form; the rate per
step with a learning rate of 0.01 and a weight decay of 0.1; the powers with which the
learning rate, its schedule and the weight decay enter; how many leaves decay; what is left
in bfloat16; and what is wrong. Torch's are audited where torch is installed.

    python examples/audit_tour.py
"""

import importlib.util
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import _common as common  # isort: skip  # first: it says which extra is missing
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from rich.console import Console

import optwd

QUICK = ("adamw", "lion", "adafactor", "lamb", "lars", "contrib.muon", "contrib.madgrad")


def optimizers() -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Everything in Optax that takes a learning rate and a weight decay."""
    for module, prefix in ((optax, ""), (optax.contrib, "contrib.")):
        for name in sorted(dir(module)):
            factory = getattr(module, name)
            if not inspect.isfunction(factory):  # no classes, and no types of schedules
                continue
            arguments = inspect.signature(factory).parameters
            decay = {"weight_decay", "weight_decay_rate"} & set(arguments)
            if decay and "learning_rate" in arguments:
                yield prefix + name, maker(factory, decay.pop())


def maker(factory: Callable[..., Any], decay: str) -> Callable[[Any, Any], Any]:
    """What `optwd.audit` asks for; the loss that some want is the sum of squares."""

    def loss(params):
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))

    def make(learning_rate, weight_decay):
        inner = factory(learning_rate, **{decay: weight_decay})
        if not isinstance(inner, optax.GradientTransformationExtraArgs):
            return inner

        def update(updates, state, params=None):
            extra = {"value": loss(params), "obj_fn": loss}
            return inner.update(updates, state, params, **extra)

        return optax.GradientTransformation(inner.init, update)

    return make


def torchs() -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Every optimizer of torch that takes a weight decay, as a loop."""
    import torch

    def loop(factory, learning_rate, weight_decay):
        rate = learning_rate if callable(learning_rate) else lambda step: learning_rate

        def init(params):
            leaves, structure = jax.tree.flatten(params)
            tensors = [torch.nn.Parameter(torch.tensor(x)) for x in leaves]
            return (
                tensors,
                factory(tensors, lr=rate(0), weight_decay=weight_decay),
                structure,
                0,
            )

        def step(params, gradients, state):
            tensors, optimizer, structure, count = state
            for group in optimizer.param_groups:
                group["lr"] = rate(count)
            for x, p, g in zip(
                tensors, *map(jax.tree.leaves, (params, gradients)), strict=True
            ):
                x.data.copy_(torch.tensor(p))
                x.grad = torch.tensor(g)
            optimizer.step()
            new = structure.unflatten(x.detach().numpy().copy() for x in tensors)
            return new, (tensors, optimizer, structure, count + 1)

        return optwd.Loop(init, step)

    for name in sorted(dir(torch.optim)):
        factory = getattr(torch.optim, name)
        if (
            inspect.isclass(factory)
            and "weight_decay" in inspect.signature(factory).parameters
        ):
            yield f"torch.{name}", lambda lr, wd, f=factory: loop(f, lr, wd)


def audited(make: Callable[[Any, Any], Any]) -> optwd.Audit:
    """On the default leaves, or on matrices only if it takes no others."""
    try:
        return optwd.audit(make)
    except ValueError:
        matrix = jax.ShapeDtypeStruct((3, 4), jnp.float32)
        return optwd.audit(make, {"dense": {"kernel": matrix}, "out": {"kernel": matrix}})


def rates(values: tuple[float, ...]) -> str:
    """The first and, if it is another, the last."""
    if not values:
        return "–"
    first, last = f"{values[0]:.3g}", f"{values[-1]:.3g}"
    return first if first == last else f"{first} … {last}"


def row(found: optwd.Audit) -> tuple[str, ...]:
    """The leaves that decay agree in nearly every optimizer; the first of them speaks."""
    decayed = [leaf for leaf in found.leaves.values() if leaf.form != "none"]
    problems = "; ".join(
        problem.split(":")[0].split(" with ")[0] for problem in found.problems
    )
    if not decayed:
        return "none", *("–",) * 5, problems
    leaf = decayed[0]
    powers = " ".join("?" if p is None else f"{p:.3g}" for p in leaf.powers)
    share = leaf.survives.bfloat16
    return (
        leaf.form + " (new θ)" * (leaf.acts_on == "new"),
        rates(leaf.rates),
        powers,
        f"{len(decayed)} of {len(found.leaves)}",
        "–" if share is None else f"{max(share, 0):.0%}",
        ", ".join(found.like[:2]) or "–",
        problems,
    )


def main(argv: list[str] | None = None) -> dict[str, optwd.Audit | str]:
    """Print the table and write it to a file; returns the audits, or why there is none."""
    options = common.parser(__doc__).parse_args(argv)
    every = dict(optimizers())
    if importlib.util.find_spec("torch"):
        every |= dict(torchs())
    if options.quick:
        every = {name: every[name] for name in QUICK}
    table = common.table(
        "optimizer",
        "form",
        "rate",
        "η, schedule, λ",
        "leaves",
        "bfloat16",
        "like",
        "problems",
    )
    audits: dict[str, optwd.Audit | str] = {}
    with common.progress(len(every)) as bar:
        for name, make in every.items():
            try:
                audits[name] = found = audited(make)
                table.add_row(name, *row(found))
            except ValueError as error:
                audits[name] = why = str(error.__cause__ or error).splitlines()[0]
                table.add_row(name, "refused", *("–",) * 5, why)
            bar.update()
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "audit_tour.txt"
    with path.open("w", encoding="utf-8") as file:
        Console(file=file, width=170).print(table)
    print(f"Wrote {path}")
    return audits


if __name__ == "__main__":
    main()
