"""Weights: from a teacher's tensors to a student's, by names; knows no loss and no model."""

from transmamba._checkpoint import open_safetensors
from transmamba.transfer.circuits import AttentionInit
from transmamba.transfer.convolutions import init_convolutions
from transmamba.transfer.groups import freeze, param_groups
from transmamba.transfer.importance import (
    first_importance,
    magnitude_importance,
    random_importance,
    stability_importance,
)
from transmamba.transfer.plans import PRESETS, SSM_PARAMETERS
from transmamba.transfer.presets import bind, stage_plan
from transmamba.transfer.proposals import Proposal, propose_plan
from transmamba.transfer.report import SubcloneReport
from transmamba.transfer.running import (
    StabilityRecorder,
    activation_importance,
    taylor_importance,
    wanda_importance,
)
from transmamba.transfer.weights import subclone

__all__ = [
    "AttentionInit",
    "PRESETS",
    "Proposal",
    "SSM_PARAMETERS",
    "StabilityRecorder",
    "SubcloneReport",
    "activation_importance",
    "bind",
    "first_importance",
    "freeze",
    "init_convolutions",
    "magnitude_importance",
    "open_safetensors",
    "param_groups",
    "propose_plan",
    "random_importance",
    "stability_importance",
    "stage_plan",
    "subclone",
    "taylor_importance",
    "wanda_importance",
]
