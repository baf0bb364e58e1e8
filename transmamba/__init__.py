"""Move a Transformer's knowledge into a Mamba: the primitives of TransMamba, arXiv 2502.15130.

- `ops` is arithmetic, `nn` is made of ops, `models` are made of nn;
- `distill` moves knowledge: features in, a scalar out;
- `transfer` moves weights: state dict in, state dict out;
- `data` reads benchmarks and scores answers.

The last three know no model: a training loop is where they meet.
"""

from transmamba import data as data
from transmamba import distill as distill
from transmamba import models as models
from transmamba import nn as nn
from transmamba import ops as ops
from transmamba import transfer as transfer
from transmamba.distill import AdaptiveLayerDistill as AdaptiveLayerDistill
from transmamba.distill import BidirectionalDistill as BidirectionalDistill
from transmamba.distill import FeatureCalibrator as FeatureCalibrator
from transmamba.distill import TransMambaLoss as TransMambaLoss
from transmamba.nn import CrossMamba as CrossMamba
from transmamba.ops import selective_scan as selective_scan
from transmamba.transfer import subclone as subclone

__version__ = "0.1.0.dev0"
