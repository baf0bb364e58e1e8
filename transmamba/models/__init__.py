"""Reference backbones and the teacher; each file is readable top to bottom."""

from transmamba.models.features import Backbone as Backbone
from transmamba.models.features import Features as Features
from transmamba.models.vision_mamba import SNAKES as SNAKES
from transmamba.models.vision_mamba import VisionMamba as VisionMamba
from transmamba.models.vit import ViT as ViT
from transmamba.models.vit import vit_base as vit_base
from transmamba.models.vit import vit_small as vit_small
from transmamba.models.vit import vit_tiny as vit_tiny
