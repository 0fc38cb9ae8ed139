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

PRESETS = {"paper3d": PAPER_3D}
