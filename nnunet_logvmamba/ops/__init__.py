"""Tensors in, tensors out: the selective scan behind one registered op, with a choice of backends."""

from nnunet_logvmamba.ops.backends import available_backends
from nnunet_logvmamba.ops.scan import selective_scan, selective_scan_with_state
from nnunet_logvmamba.ops.scan.mamba_interface import selective_scan_fn

__all__ = ["available_backends", "selective_scan", "selective_scan_fn", "selective_scan_with_state"]
