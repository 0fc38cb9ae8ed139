"""Networks for nnU-Net plans. The dotted paths of these classes are written into plans files and never move."""

from nnunet_logvmamba.networks.log_vmamba.swin_unet import LoGVMambaSwinUNet
from nnunet_logvmamba.networks.log_vmamba.unet import LoGVMambaUNet

__all__ = ["LoGVMambaSwinUNet", "LoGVMambaUNet"]
