"""Losses: features in, scalar out. Nothing here knows a model.

The way of a feature: `tap` reads it out of a model, `align_tokens` and `LayerCalibrators` bring both sides to the same
tokens and width (`dry_run` shows the steps in advance), `AdaptiveLayerDistill` (one token order) or
`BidirectionalDistill` and `MultiDirectionalDistill` (one per scan direction) compare, and `TransMambaLoss` adds the
task. For a student of ours, `DirectionBridge` does all that comes before the comparison. The losses to compare with are
in `baselines` and `related_work`. Texts and videos meet in `contrastive`.
"""

from transmamba.distill.adaptive import AdaptiveDetails as AdaptiveDetails
from transmamba.distill.adaptive import AdaptiveLayerDistill as AdaptiveLayerDistill
from transmamba.distill.align import align_layers as align_layers
from transmamba.distill.align import align_tokens as align_tokens
from transmamba.distill.align import drop_tokens as drop_tokens
from transmamba.distill.align import flatten_map as flatten_map
from transmamba.distill.align import resize_tokens as resize_tokens
from transmamba.distill.aligned_text import align_text as align_text
from transmamba.distill.baselines import LastFeatureDistill as LastFeatureDistill
from transmamba.distill.baselines import LayerwiseDistill as LayerwiseDistill
from transmamba.distill.baselines import LogitsDistill as LogitsDistill
from transmamba.distill.bridge import DirectionBridge as DirectionBridge
from transmamba.distill.bridge import Layout as Layout
from transmamba.distill.bridge import Sides as Sides
from transmamba.distill.bridge import Tokens as Tokens
from transmamba.distill.bridge import check_layouts as check_layouts
from transmamba.distill.bridge import natural_shares as natural_shares
from transmamba.distill.calibrate import FeatureCalibrator as FeatureCalibrator
from transmamba.distill.calibrate import LayerCalibrators as LayerCalibrators
from transmamba.distill.contrastive import ContrastiveLoss as ContrastiveLoss
from transmamba.distill.contrastive import SimilarityDistill as SimilarityDistill
from transmamba.distill.contrastive import gather_batch as gather_batch
from transmamba.distill.directional import BidirectionalDistill as BidirectionalDistill
from transmamba.distill.directional import DirectionalDetails as DirectionalDetails
from transmamba.distill.directional import MultiDirectionalDistill as MultiDirectionalDistill
from transmamba.distill.frozen import FrozenTeacher as FrozenTeacher
from transmamba.distill.hidden import HiddenLogitsDistill as HiddenLogitsDistill
from transmamba.distill.image_text import align_image_text as align_image_text
from transmamba.distill.image_text import check_vocabularies as check_vocabularies
from transmamba.distill.layer_map import cka_matrix as cka_matrix
from transmamba.distill.layer_map import linear_cka as linear_cka
from transmamba.distill.layer_map import match_layers as match_layers
from transmamba.distill.loss import TransMambaLoss as TransMambaLoss
from transmamba.distill.match_table import MatchTable as MatchTable
from transmamba.distill.match_table import dry_run as dry_run
from transmamba.distill.processes import ends_process as ends_process
from transmamba.distill.related_work import MixingMatrixDistill as MixingMatrixDistill
from transmamba.distill.related_work import OFADistill as OFADistill
from transmamba.distill.related_work import OfficialRepoLoss as OfficialRepoLoss
from transmamba.distill.relation import TokenRelationDistill as TokenRelationDistill
from transmamba.distill.sparse import SparseLogits as SparseLogits
from transmamba.distill.sparse import SparseLogitsDistill as SparseLogitsDistill
from transmamba.distill.sparse import top_logits as top_logits
from transmamba.distill.store import FeatureStore as FeatureStore
from transmamba.distill.store import fingerprint as fingerprint
from transmamba.distill.taps import tap as tap
from transmamba.distill.token_sample import sample_tokens as sample_tokens
