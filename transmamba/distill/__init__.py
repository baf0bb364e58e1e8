"""Losses: features in, scalar out. Nothing here knows a model.

The way of a feature: `LayerCalibrators` bring each student layer to the teacher's width, `AdaptiveLayerDistill` (one
token order) or `BidirectionalDistill` and `MultiDirectionalDistill` (one per scan direction) compare, and
`TransMambaLoss` adds the task. `LogitsDistill`, `LastFeatureDistill` and `LayerwiseDistill` are what to compare with.
"""

from transmamba.distill.adaptive import AdaptiveDetails as AdaptiveDetails
from transmamba.distill.adaptive import AdaptiveLayerDistill as AdaptiveLayerDistill
from transmamba.distill.baselines import LastFeatureDistill as LastFeatureDistill
from transmamba.distill.baselines import LayerwiseDistill as LayerwiseDistill
from transmamba.distill.baselines import LogitsDistill as LogitsDistill
from transmamba.distill.calibrate import FeatureCalibrator as FeatureCalibrator
from transmamba.distill.calibrate import LayerCalibrators as LayerCalibrators
from transmamba.distill.directional import BidirectionalDistill as BidirectionalDistill
from transmamba.distill.directional import DirectionalDetails as DirectionalDetails
from transmamba.distill.directional import MultiDirectionalDistill as MultiDirectionalDistill
from transmamba.distill.matching import cka_matrix as cka_matrix
from transmamba.distill.matching import linear_cka as linear_cka
from transmamba.distill.matching import match_layers as match_layers
from transmamba.distill.total import TransMambaLoss as TransMambaLoss
