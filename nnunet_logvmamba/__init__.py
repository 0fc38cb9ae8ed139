"""LoG-VMamba for nnU-Net v2: blocks, networks and trainers that stock nnU-Net finds by name."""

__version__ = "0.1.0.dev0"
