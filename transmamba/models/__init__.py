"""Reference backbones and the teacher; each file is readable top to bottom."""

from transmamba.models.features import Backbone as Backbone
from transmamba.models.features import Features as Features
from transmamba.models.generate import next_token as next_token
from transmamba.models.mamba_encoder import MambaEncoder as MambaEncoder
from transmamba.models.mamba_lm import MambaLM as MambaLM
from transmamba.models.mamba_sizes import mamba2_1_3b as mamba2_1_3b
from transmamba.models.mamba_sizes import mamba2_2_7b as mamba2_2_7b
from transmamba.models.mamba_sizes import mamba2_130m as mamba2_130m
from transmamba.models.mamba_sizes import mamba2_370m as mamba2_370m
from transmamba.models.mamba_sizes import mamba2_780m as mamba2_780m
from transmamba.models.mamba_sizes import mamba_1_4b as mamba_1_4b
from transmamba.models.mamba_sizes import mamba_2_8b as mamba_2_8b
from transmamba.models.mamba_sizes import mamba_130m as mamba_130m
from transmamba.models.mamba_sizes import mamba_370m as mamba_370m
from transmamba.models.mamba_sizes import mamba_790m as mamba_790m
from transmamba.models.official.hugging_face import from_hf as from_hf
from transmamba.models.vision_mamba import SNAKES as SNAKES
from transmamba.models.vision_mamba import VisionMamba as VisionMamba
from transmamba.models.vit import ViT as ViT
from transmamba.models.vit import vit_base as vit_base
from transmamba.models.vit import vit_small as vit_small
from transmamba.models.vit import vit_tiny as vit_tiny
