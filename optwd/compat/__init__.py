"""Other frameworks' optimizers, and what their ``weight_decay`` means.

Each module has the optimizers of one framework, under its argument names, with its defaults
and arithmetic. None of the frameworks is imported.
"""

from optwd.compat import algoperf as algoperf
from optwd.compat import big_vision as big_vision
from optwd.compat import composer as composer
from optwd.compat import fastai as fastai
from optwd.compat import keras as keras
from optwd.compat import optax as optax
from optwd.compat import paper as paper
from optwd.compat import tf_addons as tf_addons
from optwd.compat import timm as timm
from optwd.compat import torch as torch
from optwd.compat._convention import Convention as Convention
from optwd.compat._conventions import CONVENTIONS as CONVENTIONS
from optwd.compat._convert import convert_weight_decay as convert_weight_decay
from optwd.compat._convert import table as table
from optwd.compat._moments import AmsgradRawState as AmsgradRawState
from optwd.compat._moments import DampenedTraceState as DampenedTraceState
from optwd.compat._moments import NadamState as NadamState
from optwd.compat._moments import scale_by_adam_eps_hat as scale_by_adam_eps_hat
from optwd.compat._moments import scale_by_amsgrad_raw as scale_by_amsgrad_raw
from optwd.compat._moments import (
    scale_by_amsgrad_raw_eps_hat as scale_by_amsgrad_raw_eps_hat,
)
from optwd.compat._moments import scale_by_nadam as scale_by_nadam
from optwd.compat._moments import scale_by_radam_eps_hat as scale_by_radam_eps_hat
from optwd.compat._moments import trace_dampened as trace_dampened

__all__ = [
    "CONVENTIONS",
    "AmsgradRawState",
    "Convention",
    "DampenedTraceState",
    "NadamState",
    "algoperf",
    "big_vision",
    "composer",
    "convert_weight_decay",
    "fastai",
    "keras",
    "optax",
    "paper",
    "scale_by_adam_eps_hat",
    "scale_by_amsgrad_raw",
    "scale_by_amsgrad_raw_eps_hat",
    "scale_by_nadam",
    "scale_by_radam_eps_hat",
    "table",
    "tf_addons",
    "timm",
    "torch",
    "trace_dampened",
]


def __dir__() -> list[str]:
    return __all__
