"""What ``weight_decay`` means elsewhere, as data.

In the equations ηₜ is the learning rate of the step, η_max its peak, λ the weight decay, θ
the weights before the step, û the direction of the optimizer.
"""

from typing import Literal, NamedTuple

Scaling = Literal["learning rate", "schedule", "learning rate × schedule", "nothing"]
ActsOn = Literal["gradient", "old θ", "new θ"]


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
            "optwd.adamw(scaled_by='schedule')",
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
            "optwd.adamw(scaled_by='schedule')",
            "θ −= ηₜû + (ηₜ/η_max)λθ",
            "schedule",
            "old θ",
            "outside",
            "as optwd.adamw",
            "optwd.adamw(scaled_by='schedule')",
            "this package",
        ),
        Convention(
            "optwd.adamw(scaled_by='nothing')",
            "θ −= ηₜû + λθ",
            "nothing",
            "old θ",
            "outside",
            "as optwd.adamw",
            "optwd.adamw(scaled_by='nothing')",
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
