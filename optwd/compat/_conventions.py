"""What ``weight_decay`` means elsewhere, as data, and the number that means the same here.

In the equations ηₜ is the learning rate of the step, η_max its peak, λ the weight decay, θ
the weights before the step, û the direction of the optimizer.
"""

import difflib
from typing import Any, Literal, NamedTuple

from optwd import _check
from optwd._check import ScalarOrSchedule

Scaling = Literal["learning rate", "schedule", "learning rate × schedule", "nothing"]
ActsOn = Literal["gradient", "old θ", "new θ"]

# The rate of a step is λ·ηₜᵃ·η_maxᵇ.
_POWERS: dict[Scaling, tuple[int, int]] = {
    "learning rate": (1, 0),
    "schedule": (1, -1),
    "learning rate × schedule": (2, -1),
    "nothing": (0, 0),
}


class Convention(NamedTuple):
    """What one optimizer of one framework does with its ``weight_decay``.

    Attributes:
      name: what `convert_weight_decay` takes as ``source`` and ``target``.
      decay: the equation.
      scaled_by: what λ is multiplied by in a step.
      acts_on: the gradient (coupled), or the weights before or after the step (decoupled).
      epsilon: ``"outside"`` is m̂/(√v̂ + ε); ``"hat"`` is ε beside the raw root, not
        bias-corrected; ``""`` where there is none or it is not known.
      defaults: of that framework, in words.
      here: the same in this package.
      source: where the fact is from.
      factor: what λ is multiplied by in any case; 2 for a loss with c·Σθ².
      plain: coupled, but nothing remembers or rescales the gradient, so that it is the
        same as decoupled.
    """

    name: str
    decay: str
    scaled_by: Scaling
    acts_on: ActsOn
    epsilon: str
    defaults: str
    here: str
    source: str
    factor: float = 1.0
    plain: bool = False


CONVENTIONS: dict[str, Convention] = {
    row.name: row
    for row in (
        Convention(
            "paper",
            "θ −= sₜ(α·û + λθ), sₜ = ηₜ/η_max",
            "schedule",
            "old θ",
            "outside",
            "α 1e-3, β .9/.999, ε 1e-8",
            "compat.paper.adamw, sgdw",
            "Loshchilov and Hutter, arXiv 1711.05101, Algorithms 1 and 2",
        ),
        Convention(
            "torch.AdamW",
            "θ ×= 1 − ηₜλ",
            "learning rate",
            "old θ",
            "outside",
            "lr 1e-3, β .9/.999, ε 1e-8, λ 1e-2",
            "compat.torch.adamw",
            "torch 2.13, torch/optim/adam.py, decoupled_weight_decay=True",
        ),
        Convention(
            "torch.Adam",
            "g += λθ",
            "learning rate",
            "gradient",
            "outside",
            "lr 1e-3, β .9/.999, ε 1e-8, λ 0",
            "compat.torch.adam",
            "torch 2.13, torch/optim/adam.py",
        ),
        Convention(
            "torch.SGD",
            "g += λθ",
            "learning rate",
            "gradient",
            "",
            "lr 1e-3, momentum 0, λ 0",
            "compat.torch.sgd",
            "torch 2.13, torch/optim/sgd.py",
            plain=True,
        ),
        Convention(
            "torch.SGD(momentum)",
            "g += λθ, before the momentum",
            "learning rate",
            "gradient",
            "",
            "lr 1e-3, λ 0",
            "compat.torch.sgd",
            "torch 2.13, torch/optim/sgd.py",
        ),
        Convention(
            "keras",
            "θ ×= 1 − ηₜλ",
            "learning rate",
            "old θ",
            "hat",
            "lr 1e-3, β .9/.999, ε 1e-7; AdamW λ 4e-3",
            "compat.keras.adamw, adam, sgd",
            "Keras 3.15, keras/src/optimizers/base_optimizer.py, _apply_weight_decay",
        ),
        Convention(
            "tf_addons",
            "θ ×= 1 − λ",
            "nothing",
            "old θ",
            "hat",
            "lr 1e-3, β .9/.999, ε 1e-7; λ has no default",
            "compat.tf_addons.adamw, sgdw",
            "TensorFlow Addons 0.23, optimizers/weight_decay_optimizers.py",
        ),
        Convention(
            "tf1",
            "θ ×= 1 − λ, after the step",
            "nothing",
            "new θ",
            "hat",
            "a second SGD of rate 1 on ½λ‖θ‖²",
            "compat.tf_addons.decay_after_update",
            "a recipe for TensorFlow 1",
        ),
        Convention(
            "optax.adamw",
            "θ −= ηₜ(û + λθ)",
            "learning rate",
            "old θ",
            "outside",
            "β .9/.999, ε 1e-8, λ 1e-4",
            "optwd.adamw",
            "Optax 0.2.8, optax/_src/alias.py",
        ),
        Convention(
            "optax.adafactor",
            "θ −= λθ",
            "nothing",
            "old θ",
            "",
            "no λ",
            "optwd.with_weight_decay(…, decay.linear(λ))",
            "Optax 0.2.8, optax/_src/alias.py",
        ),
        Convention(
            "fastai",
            "θ ×= 1 − ηₜλ",
            "learning rate",
            "old θ",
            "outside",
            "β .9/.99, ε 1e-5, λ 1e-2",
            "compat.fastai.adam, sgd",
            "fastai 2.8, fastai/optimizer.py, weight_decay",
        ),
        Convention(
            "fastai(decouple_wd=False)",
            "g += λθ",
            "learning rate",
            "gradient",
            "outside",
            "as fastai",
            "compat.fastai.adam(decouple_wd=False)",
            "fastai 2.8, fastai/optimizer.py, l2_reg",
        ),
        Convention(
            "timm.AdamW",
            "θ ×= 1 − ηₜλ",
            "learning rate",
            "old θ",
            "outside",
            "lr 1e-3, β .9/.999, ε 1e-8, λ 1e-2",
            "compat.timm.adamw",
            "timm 1.0, timm/optim/adamw.py",
        ),
        Convention(
            "timm.AdamW(corrected_weight_decay)",
            "θ ×= 1 − ηₜ²λ/η_max",
            "learning rate × schedule",
            "old θ",
            "outside",
            "as timm.AdamW; η_max is lr at construction",
            "compat.timm.adamw(corrected_weight_decay=True)",
            "timm 1.0, timm/optim/adamw.py; Defazio, arXiv 2506.02285",
        ),
        Convention(
            "big_vision",
            "θ −= sₜ(lr·û + λθ), sₜ = ηₜ/η_max",
            "schedule",
            "old θ",
            "outside",
            "λ 0, on leaves that match .*/kernel$",
            "compat.big_vision.make",
            "google-research/big_vision, big_vision/optax.py",
        ),
        Convention(
            "composer",
            "θ ×= 1 − (ηₜ/η_max)λ",
            "schedule",
            "old θ",
            "outside",
            "lr 1e-3, β .9/.95, ε 1e-8, λ 1e-5; η_max is lr at construction",
            "compat.composer.decoupled_adamw, decoupled_sgdw",
            "mosaicml/composer, composer/optim/decoupled_weight_decay.py",
        ),
        Convention(
            "bitsandbytes",
            "θ ×= 1 − ηₜλ, after the step; in its Adam too; off CUDA before it",
            "learning rate",
            "new θ",
            "outside",
            "lr 1e-3, β .9/.999, ε 1e-8; AdamW λ 1e-2",
            "compat.tf_addons.decay_after_update(…, rates.by_learning_rate(λ, η))",
            "bitsandbytes 0.50, csrc/kernels.cu and backends/default/ops.py",
        ),
        Convention(
            "deepspeed",
            "θ −= ηₜ(û + λθ)",
            "learning rate",
            "old θ",
            "outside",
            "λ 0; Apex's FusedAdam is the same",
            "optwd.adamw",
            "DeepSpeed and Apex, FusedAdam(adam_w_mode=True)",
        ),
        Convention(
            "deepspeed(adam_w_mode=False)",
            "g += λθ",
            "learning rate",
            "gradient",
            "outside",
            "λ 0; Apex's FusedAdam is the same",
            "optwd.adam_l2",
            "DeepSpeed and Apex, FusedAdam(adam_w_mode=False)",
        ),
        Convention(
            "nanodo",
            "θ −= ηₜ(û + λθ/η_max)",
            "schedule",
            "old θ",
            "outside",
            "its “independent” weight decay",
            "optwd.adamw(coupling='schedule')",
            "google-deepmind/nanodo; Wortsman et al., arXiv 2309.14322",
        ),
        Convention(
            "loss",
            "g += 2λθ, of a loss with λ·Σθ²",
            "learning rate",
            "gradient",
            "",
            "",
            "optwd.add_l2(2λ)",
            "the derivative of λθ²",
            factor=2.0,
        ),
        Convention(
            "optwd.adamw",
            "θ −= ηₜ(û + λθ)",
            "learning rate",
            "old θ",
            "outside",
            "β .9/.999, ε 1e-8, λ 1e-4",
            "optwd.adamw, sgdw, …",
            "this package",
        ),
        Convention(
            "optwd.adamw(coupling='schedule')",
            "θ −= ηₜû + (ηₜ/η_max)λθ",
            "schedule",
            "old θ",
            "outside",
            "as optwd.adamw",
            "optwd.adamw(coupling='schedule')",
            "this package",
        ),
        Convention(
            "optwd.adamw(coupling='none')",
            "θ −= ηₜû + λθ",
            "nothing",
            "old θ",
            "outside",
            "as optwd.adamw",
            "optwd.adamw(coupling='none')",
            "this package",
        ),
        Convention(
            "optwd.adam_l2",
            "g += λθ",
            "learning rate",
            "gradient",
            "outside",
            "β .9/.999, ε 1e-8, λ 1e-4",
            "optwd.adam_l2, sgd_l2",
            "this package",
        ),
    )
}


def convert_weight_decay(
    weight_decay: float,
    *,
    source: str,
    target: str,
    learning_rate: ScalarOrSchedule,
    peak_learning_rate: float | None = None,
) -> float:
    """The number that means in `target` what ``weight_decay`` means in `source`.

        λ' = λ·ηᵃ·η_maxᵇ, so that both decay by the same rate in every step

    The optimizers must otherwise be the same: `CONVENTIONS` says which of them has another
    ε or other defaults, and the optimizers of `optwd.compat` bring theirs along.

    Args:
      weight_decay: λ ≥ 0, as given to `source`.
      source: a name in `CONVENTIONS`, such as ``"torch.AdamW"``.
      target: another, such as ``"optwd.adamw(coupling='none')"``.
      learning_rate: η as both optimizers have it: a number if it is constant, or its
        schedule.
      peak_learning_rate: η_max > 0; needed with a schedule where either side scales by
        ηₜ/η_max. Composer and timm take the learning rate at construction for it.

    Returns:
      λ' ≥ 0.

    Raises:
      ValueError: an unknown name; or no number is equivalent: a coupled decay against a
        decoupled one (but for SGD without momentum), old weights against new ones, a decay
        that follows a schedule against one that does not. The message says what to use.

    >>> convert_weight_decay(
    ...     0.1, source="torch.AdamW", target="tf_addons", learning_rate=1e-3)
    0.0001

    Source: the equations of `CONVENTIONS`.
    """
    weight_decay = _check.number("weight_decay", weight_decay)
    learning_rate = _check.rate("learning_rate", learning_rate)
    a, b = _convention("source", source), _convention("target", target)
    weight_decay *= a.factor / b.factor
    if a.acts_on == b.acts_on == "gradient":
        return weight_decay
    if _place(a) != _place(b):
        raise ValueError(
            f"no weight_decay of {target} ({b.decay}, on the {b.acts_on}) is equivalent to "
            f"{weight_decay:g} of {source} ({a.decay}, on the {a.acts_on}). To keep what "
            f"the source does use {a.here}; otherwise tune the weight decay anew."
        )
    (a_eta, a_peak), (b_eta, b_peak) = _POWERS[a.scaled_by], _POWERS[b.scaled_by]
    eta = peak = 1.0
    if a_eta != b_eta:
        if callable(learning_rate):
            raise ValueError(
                f"under a learning rate schedule no one number does in {target} "
                f"({b.decay}) what {weight_decay:g} does in {source} ({a.decay}). Use "
                f"{a.here}, or give the target a schedule for its weight decay."
            )
        eta = _positive("learning_rate", learning_rate)
    if a_peak != b_peak:
        if peak_learning_rate is None and callable(learning_rate):
            raise ValueError(
                f"from {source} to {target} under a schedule needs peak_learning_rate, "
                "the largest value the learning rate takes."
            )
        given = learning_rate if peak_learning_rate is None else peak_learning_rate
        peak = _positive("peak_learning_rate", given)
    return weight_decay * eta ** (a_eta - b_eta) * peak ** (a_peak - b_peak)


def table() -> str:
    """`CONVENTIONS` as a table in Markdown, one row a convention.

    Returns:
      The text, without a newline at its end.

    >>> print(table().splitlines()[3])
    | `torch.AdamW` | θ ×= 1 − ηₜλ | old θ | outside | lr 1e-3, β .9/.999, ε 1e-8, λ 1e-2 | `compat.torch.adamw` |
    """  # noqa: E501
    rows = [
        (
            f"`{c.name}`",
            c.decay,
            c.acts_on,
            c.epsilon or "–",
            c.defaults or "–",
            f"`{c.here}`",
        )
        for c in CONVENTIONS.values()
        if not c.name.startswith("optwd.")
    ]
    head = ("`weight_decay` of", "does", "to", "ε", "defaults", "here")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _convention(argument: str, name: str) -> Convention:
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    near = difflib.get_close_matches(str(name), CONVENTIONS, n=3, cutoff=0.3)
    raise ValueError(
        f"{argument} {name!r} is not a convention; nearest: {', '.join(near) or 'none'}. "
        "All of them are in optwd.compat.CONVENTIONS."
    )


def _place(c: Convention) -> str:
    return "old θ" if c.plain else c.acts_on


def _positive(name: str, value: Any) -> float:
    value = _check.number(name, value)
    if value == 0.0:
        raise ValueError(f"{name} must be > 0 to convert a weight decay, got 0.")
    return value
