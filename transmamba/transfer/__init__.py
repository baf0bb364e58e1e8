"""Inherit weights: match a teacher's tensors to a student's by name. Nothing here imports a loss or a model."""

from transmamba._checkpoint import open_safetensors
from transmamba.transfer.attention_weights import AttentionInit
from transmamba.transfer.closed_form.fit_report import FitReport
from transmamba.transfer.closed_form.layer_costs import Sensitivity, sensitivity
from transmamba.transfer.closed_form.layer_fit import LayerFit
from transmamba.transfer.closed_form.layerwise import fit_layers
from transmamba.transfer.closed_form.least_squares import LeastSquares
from transmamba.transfer.closed_form.projected import project_start
from transmamba.transfer.closed_form.pyramid import fit_stages
from transmamba.transfer.closed_form.spread import principal_axes
from transmamba.transfer.closed_form.teacher_forced import fit_mixers, mixer_pairs
from transmamba.transfer.convolutions import init_convolutions
from transmamba.transfer.importance import (
    StabilityRecorder,
    activation_importance,
    first_importance,
    magnitude_importance,
    random_importance,
    stability_importance,
    taylor_importance,
    wanda_importance,
)
from transmamba.transfer.inheritance import plan_for, subclone
from transmamba.transfer.optim import freeze, param_groups
from transmamba.transfer.plan import bind
from transmamba.transfer.report import SubcloneReport
from transmamba.transfer.students import SSM_PARAMETERS
from transmamba.transfer.teachers import Architecture, Family, Translated, translate

__all__ = [
    "Architecture",
    "Family",
    "Translated",
    "plan_for",
    "translate",
    "AttentionInit",
    "FitReport",
    "LayerFit",
    "LeastSquares",
    "Sensitivity",
    "SSM_PARAMETERS",
    "StabilityRecorder",
    "SubcloneReport",
    "activation_importance",
    "bind",
    "first_importance",
    "fit_layers",
    "fit_mixers",
    "fit_stages",
    "freeze",
    "init_convolutions",
    "magnitude_importance",
    "mixer_pairs",
    "open_safetensors",
    "param_groups",
    "principal_axes",
    "project_start",
    "random_importance",
    "sensitivity",
    "stability_importance",
    "subclone",
    "taylor_importance",
    "wanda_importance",
]
