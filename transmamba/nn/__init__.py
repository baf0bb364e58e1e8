"""Modules that networks are built from."""

from transmamba.nn.block import DropPath as DropPath
from transmamba.nn.block import MambaBlock as MambaBlock
from transmamba.nn.block import Mlp as Mlp
from transmamba.nn.cache import MixerCache as MixerCache
from transmamba.nn.cross import CrossMamba as CrossMamba
from transmamba.nn.embed import PatchEmbed as PatchEmbed
from transmamba.nn.embed import init_position as init_position
from transmamba.nn.mixer import MambaMixer as MambaMixer
from transmamba.nn.mixer import ScanBranch as ScanBranch
from transmamba.nn.norm import GatedRMSNorm as GatedRMSNorm
from transmamba.nn.norm import RMSNorm as RMSNorm
from transmamba.nn.norm import UnitRMSNorm as UnitRMSNorm
from transmamba.nn.ssm import ScanParameters as ScanParameters
from transmamba.nn.ssm import SelectiveSSM as SelectiveSSM
from transmamba.nn.ssm import scan_directions as scan_directions
