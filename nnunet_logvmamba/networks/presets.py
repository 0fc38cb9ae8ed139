"""Named sizes as plain dicts of constructor arguments, with the patch they were published for."""

from torch import nn

PAPER_3D = {
    "network": "LoGVMambaUNet",
    "patch_size": (128, 128, 128),
    "arguments": {
        "input_channels": 4,
        "num_classes": 3,
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "seg_heads": "last",
    },
}

PAPER_2D = {
    "network": "LoGVMambaSwinUNet",
    "patch_size": (512, 512),
    "arguments": {
        "input_channels": 3,
        "num_classes": 1,
        "n_stages": 5,
        "features_per_stage": [96, 96, 192, 384, 768],
        "strides": [[1, 1], [4, 4], [2, 2], [2, 2], [2, 2]],
        "n_blocks_per_stage": [2, 2, 9, 2],
        "deep_supervision": True,
    },
}

PRESETS = {"paper3d": PAPER_3D, "paper2d": PAPER_2D}
