"""Networks for nnU-Net plans. The dotted paths of these classes are written into plans files and never move."""

from .swin_umamba import LoGVMambaSwinUNet
from .unet import LoGVMambaUNet

__all__ = ["LoGVMambaSwinUNet", "LoGVMambaUNet"]
