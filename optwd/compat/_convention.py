"""What one row of the table of conventions says."""

from __future__ import annotations

from typing import Literal, NamedTuple

Scaling = Literal[
    "learning rate", "schedule", "learning rate × schedule", "learning rate²", "nothing"
]
ActsOn = Literal["gradient", "old θ", "old θ where uθ ≥ 0", "new θ", "z"]


class Convention(NamedTuple):
    """What one optimizer of one framework does with its ``weight_decay``.

    Attributes:
      name: what `convert_weight_decay` takes as ``source`` and ``target``.
      decay: the equation.
      scaled_by: what λ is multiplied by in a step.
      acts_on: the gradient (coupled), or the weights before or after the step (decoupled);
        z is the fast sequence of a method that averages.
      epsilon: ``"outside"`` is m̂/(√v̂ + ε); ``"hat"`` is ε beside the raw root, not
        bias-corrected; ``""`` where there is none or it is not known.
      defaults: of that framework, in words.
      here: the same in this package.
      source: where the fact is from.
      factor: what λ is multiplied by in any case; 2 for a loss with c·Σθ².
      plain: coupled, but nothing remembers or rescales the gradient, so that it is the
        same as decoupled.
      checked: the package whose own optimizer the tests audit and find to be what the row
        says; ``"once"`` where the original code was run beside it, but not in the tests;
        ``""`` where no machine has checked it.
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
    checked: str = ""

    @property
    def evidence(self) -> str:
        """How the row was checked, in words."""
        if self.checked in ("", "once"):
            return (
                "once, by running its code" if self.checked else "by no machine, only read"
            )
        return f"the tests audit {self.checked}"
