"""Arithmetic: functions from tensors to tensors, without parameters."""

from transmamba.ops.conv import causal_conv1d as causal_conv1d
from transmamba.ops.cross import cross_scan as cross_scan
from transmamba.ops.cross import read_state as read_state
from transmamba.ops.dispatch import use_backend as use_backend
from transmamba.ops.flops import FLOP_FORMULAS as FLOP_FORMULAS
from transmamba.ops.matrix import mixing_matrix as mixing_matrix
from transmamba.ops.orders import ORDER_NAMES as ORDER_NAMES
from transmamba.ops.orders import ScanOrder as ScanOrder
from transmamba.ops.orders import permute_tokens as permute_tokens
from transmamba.ops.orders import scan_order as scan_order
from transmamba.ops.orders import scan_orders as scan_orders
from transmamba.ops.scan import explain as explain
from transmamba.ops.scan import multi_scan as multi_scan
from transmamba.ops.scan import selective_scan as selective_scan
from transmamba.ops.ssd import ssd_scan as ssd_scan
from transmamba.ops.ssd import ssd_step as ssd_step
from transmamba.ops.step import conv_step as conv_step
from transmamba.ops.step import selective_step as selective_step
from transmamba.ops.trapezoid import TrapezoidState as TrapezoidState
from transmamba.ops.trapezoid import trapezoidal_scan as trapezoidal_scan
from transmamba.ops.trapezoid import trapezoidal_step as trapezoidal_step
