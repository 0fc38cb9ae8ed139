"""Tensors in, tensors out: selective scan and causal convolution, each a registered op with a choice of backends."""

from nnunet_logvmamba.ops.backends import available_backends
from nnunet_logvmamba.ops.causal_conv import causal_conv1d
from nnunet_logvmamba.ops.scan import selective_scan, selective_scan_with_state
from nnunet_logvmamba.ops.scan.mamba_interface import selective_scan_fn

__all__ = ["available_backends", "causal_conv1d", "selective_scan", "selective_scan_fn", "selective_scan_with_state"]
