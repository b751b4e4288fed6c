"""PyTorch's optimizers under torch's names, and how a run that began there continues here.

``lr`` and ``weight_decay`` may be schedules of the step, and ``mask`` says which leaves
decay, for which torch needs parameter groups. What only says how torch computes
(``foreach``, ``fused``, ``capturable``, ``differentiable``) is left out.
"""

from __future__ import annotations

from optwd.compat._torch_optimizers import adam as adam
from optwd.compat._torch_optimizers import adamw as adamw
from optwd.compat._torch_optimizers import nadam as nadam
from optwd.compat._torch_optimizers import radam as radam
from optwd.compat._torch_optimizers import sgd as sgd
from optwd.compat._torch_state import optimizer_from as optimizer_from
from optwd.compat._torch_state import params_from as params_from
from optwd.compat._torch_state import state_from as state_from

__all__ = [
    "adam",
    "adamw",
    "nadam",
    "optimizer_from",
    "params_from",
    "radam",
    "sgd",
    "state_from",
]


def __dir__() -> list[str]:
    return __all__
