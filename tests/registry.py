"""One table of every transformation and optimizer; the contract tests loop over it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

import optwd


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A factory, arguments that make it do something, and what is true of it."""

    name: str
    factory: Callable[..., optax.GradientTransformation]
    arguments: dict[str, Any]
    needs_params: bool = False
    decay: str | None = None  # the argument which, at 0, makes the decay disappear
    optimizer: bool = False  # its updates are added to the parameters
    anchored: bool = False  # its state holds values of the parameters
    per_tensor: bool = False  # its state holds one number per leaf
    measures: bool = False  # it reduces a leaf to a number
    narrow: bool = False  # its state is in the dtype of the parameters, or of random bits

    def make(self, **changes: Any) -> optax.GradientTransformation:
        return self.factory(**{**self.arguments, **changes})

    def __str__(self) -> str:
        return self.name


def _shrink(u, p, rho):
    return u + rho * p


def _decay(name, factory, **arguments):
    return Entry(name, factory, {"weight_decay": 0.1, **arguments}, True, "weight_decay")


def _measuring(name, factory, arguments, decay=None):
    return Entry(name, factory, arguments, True, decay, per_tensor=True, measures=True)


def _constrained(name, **arguments):
    arguments = {"update_rate": 0.2, **arguments}
    return _measuring(name, optwd.decay.constrained, arguments, "update_rate")


def _to_norm(name, **arguments):
    arguments = {"pull": 0.5, **arguments}
    return _measuring(name, optwd.decay.to_norm, arguments, "pull")


def _rounding(name, factory, **arguments):
    arguments = {"optimizer": optax.identity(), **arguments}
    return Entry(name, factory, arguments, True, per_tensor=True, narrow=True)


def _optimizer(factory, **arguments):
    arguments = {"learning_rate": 0.01, **arguments}
    decay = next((a for a in ("weight_decay", "l2") if a in arguments), None)
    name = factory.__name__ + "".join(
        f"[{v}]" for k, v in arguments.items() if k == "scaled_by"
    )
    return Entry(name, factory, arguments, decay is not None, decay, optimizer=True)


TRANSFORMATIONS = [
    Entry("scale_by_adam", optwd.scale_by_adam, {}),
    Entry("scale_by_adam[nesterov]", optwd.scale_by_adam, {"nesterov": True}),
    Entry("scale_by_amsgrad", optwd.scale_by_amsgrad, {}),
    Entry("scale_by_adam_eps_hat", optwd.compat.scale_by_adam_eps_hat, {}),
    Entry("scale_by_amsgrad_raw", optwd.compat.scale_by_amsgrad_raw, {}),
    Entry("scale_by_amsgrad_raw_eps_hat", optwd.compat.scale_by_amsgrad_raw_eps_hat, {}),
    Entry("scale_by_nadam", optwd.compat.scale_by_nadam, {}),
    Entry("scale_by_radam_eps_hat", optwd.compat.scale_by_radam_eps_hat, {}),
    Entry(
        "trace_dampened", optwd.compat.trace_dampened, {"momentum": 0.9, "dampening": 0.5}
    ),
    Entry("trace", optwd.trace, {"decay": 0.9}),
    Entry("trace[nesterov]", optwd.trace, {"decay": 0.9, "nesterov": True}),
    Entry("add_l2", optwd.add_l2, {"l2": 0.1}, needs_params=True, decay="l2"),
    _decay("decay.linear", optwd.decay.linear),
    _decay("decay.from_rule", optwd.decay.from_rule, rule=_shrink),
    _decay("decay.cautious", optwd.decay.cautious),
    _decay("decay.proximal", optwd.decay.proximal),
    dataclasses.replace(
        _decay("decay.toward_init", optwd.decay.toward_init), anchored=True
    ),
    _constrained("decay.constrained", bound=0.1),
    _constrained("decay.constrained[warm_start]", warm_start=2),
    dataclasses.replace(_to_norm("decay.to_norm"), anchored=True),
    _to_norm("decay.to_norm[radius]", radius=0.7),
    _measuring("scale_by_weight_norm", optwd.scale_by_weight_norm, {}),
    _rounding("compensate_rounding", optwd.compensate_rounding),
    _rounding("compensate_rounding[wide]", optwd.compensate_rounding, wide=True),
    _rounding(
        "compensate_rounding[int8]", optwd.compensate_rounding, residual_dtype=jnp.int8
    ),
    _rounding("round_stochastically", optwd.round_stochastically, seed=0),
]

OPTIMIZERS = [
    _optimizer(optwd.adam),
    _optimizer(optwd.adam_l2, l2=0.1),
    _optimizer(optwd.adamw, weight_decay=0.1),
    _optimizer(
        optwd.adamw, weight_decay=0.1, scaled_by="schedule", peak_learning_rate=0.02
    ),
    _optimizer(optwd.adamw, weight_decay=0.001, scaled_by="nothing"),
    _optimizer(optwd.amsgrad),
    _optimizer(optwd.amsgradw, weight_decay=0.1),
    _optimizer(optwd.nadam),
    _optimizer(optwd.nadamw, weight_decay=0.1),
    _optimizer(optwd.sgd_l2, l2=0.1, momentum=0.9),
    _optimizer(optwd.sgdw, weight_decay=0.1, momentum=0.9),
    _optimizer(optwd.sgdw, weight_decay=0.1, scaled_by="nothing"),
]

ALL = TRANSFORMATIONS + OPTIMIZERS
DECAYS = [entry for entry in ALL if entry.decay]

# one of each kind of state: moments, a count, anchors, numbers per leaf, residuals, random
# words, and a chain of them
KINDS = {
    *("scale_by_adam", "decay.linear", "decay.toward_init", "decay.constrained"),
    *("compensate_rounding", "round_stochastically", "adamw"),
}
assert {entry.name for entry in ALL} > KINDS
