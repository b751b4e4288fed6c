"""Weight decay, said precisely, for Optax.

Three questions, answered independently: what shape (which transformation), how fast (the
number or schedule given to it, and its place in the chain), which leaves (the mask).
"""

from optwd import compat as compat
from optwd import decay as decay
from optwd import masks as masks
from optwd import rates as rates
from optwd._audit import Audit as Audit
from optwd._audit import audit as audit
from optwd._diagnose import diagnose as diagnose
from optwd._l2 import add_l2 as add_l2
from optwd._moments import scale_by_adam as scale_by_adam
from optwd._moments import scale_by_amsgrad as scale_by_amsgrad
from optwd._moments import trace as trace
from optwd._monitor import MonitorState as MonitorState
from optwd._monitor import metrics as metrics
from optwd._monitor import monitor as monitor
from optwd._monitor import monitor_decay as monitor_decay
from optwd._monitor import monitor_rounding as monitor_rounding
from optwd._norms import ConstrainedState as ConstrainedState
from optwd._norms import NormState as NormState
from optwd._norms import scale_by_weight_norm as scale_by_weight_norm
from optwd._optimizers import adam as adam
from optwd._optimizers import adam_l2 as adam_l2
from optwd._optimizers import adamw as adamw
from optwd._optimizers import amsgrad as amsgrad
from optwd._optimizers import amsgradw as amsgradw
from optwd._optimizers import nadam as nadam
from optwd._optimizers import nadamw as nadamw
from optwd._optimizers import sgd_l2 as sgd_l2
from optwd._optimizers import sgdw as sgdw
from optwd._precision import KeyState as KeyState
from optwd._precision import ResidualState as ResidualState
from optwd._precision import compensate_rounding as compensate_rounding
from optwd._precision import in_float32 as in_float32
from optwd._precision import round_stochastically as round_stochastically
from optwd._probe import Loop as Loop
from optwd._rotation import monitor_rotation as monitor_rotation
from optwd._rule import DecayState as DecayState
from optwd._serialization import register_for_export as register_for_export
from optwd._shards import replicated as replicated
from optwd._tabulate import tabulate as tabulate
from optwd._trial import LeafAudit as LeafAudit
from optwd._trial import Powers as Powers
from optwd._trial import Survival as Survival
from optwd._with_weight_decay import with_weight_decay as with_weight_decay
from optwd.decay import AnchorState as AnchorState

__version__ = "0.2.0"
