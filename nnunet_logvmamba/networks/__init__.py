"""Networks for nnU-Net plans. The dotted paths of these classes are written into plans files and never move."""

from .unet import LoGVMambaUNet

__all__ = ["LoGVMambaUNet"]
