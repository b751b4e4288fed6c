"""Weight decay, said precisely, for Optax.

Three questions, answered independently: what shape (which transformation), how fast (the
number or schedule given to it, and its place in the chain), to whom (the mask).
"""

from optwd import compat as compat
from optwd import decay as decay
from optwd import masks as masks
from optwd import rates as rates
from optwd.l2 import add_l2 as add_l2
from optwd.moments import DampenedTraceState as DampenedTraceState
from optwd.moments import NadamState as NadamState
from optwd.moments import scale_by_adam as scale_by_adam
from optwd.moments import scale_by_adam_eps_hat as scale_by_adam_eps_hat
from optwd.moments import scale_by_amsgrad as scale_by_amsgrad
from optwd.moments import scale_by_amsgrad_raw as scale_by_amsgrad_raw
from optwd.moments import scale_by_amsgrad_raw_eps_hat as scale_by_amsgrad_raw_eps_hat
from optwd.moments import scale_by_nadam as scale_by_nadam
from optwd.moments import scale_by_radam_eps_hat as scale_by_radam_eps_hat
from optwd.moments import trace as trace
from optwd.moments import trace_dampened as trace_dampened
from optwd.optimizers import adam as adam
from optwd.optimizers import adam_l2 as adam_l2
from optwd.optimizers import adamw as adamw
from optwd.optimizers import amsgrad as amsgrad
from optwd.optimizers import amsgradw as amsgradw
from optwd.optimizers import nadam as nadam
from optwd.optimizers import nadamw as nadamw
from optwd.optimizers import sgd_l2 as sgd_l2
from optwd.optimizers import sgdw as sgdw
from optwd.optimizers import with_weight_decay as with_weight_decay
from optwd.precision import compensate_rounding as compensate_rounding
from optwd.precision import in_float32 as in_float32
from optwd.precision import round_stochastically as round_stochastically
from optwd.report import metrics as metrics
from optwd.report import monitor as monitor
from optwd.report import monitor_rounding as monitor_rounding
from optwd.report import tabulate as tabulate
from optwd.serialization import register_for_export as register_for_export

__version__ = "0.1.0"
