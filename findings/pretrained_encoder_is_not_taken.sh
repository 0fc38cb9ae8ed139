#!/usr/bin/env bash
# All keys match, and the pretrained encoder is not in the network.
#
# Expected: put other encoder weights under "encoder." in a checkpoint of an nnU-Net U-Net, load it with strict=True,
#   and the network has these weights.
# Seen with dynamic-network-architectures 0.4.4 and torch 2.13.0: "All keys matched successfully", and the encoder is
#   the one from before.
# Why: the decoder keeps the encoder as a part of itself, and each block keeps its convolution and norm a second time in
#   a list. A state dict names every encoder tensor four times; load_state_dict copies name after name into the same
#   parameter, and the names that start with "decoder.encoder." come last. Editing the live state dict hides this, since
#   there the four names share memory; in a file that was read they hold the old values.
# Source: dynamic_network_architectures/building_blocks/unet_decoder.py and simple_conv_blocks.py; torch's reference of
#   Module.load_state_dict.
# Cost: a transfer-learning experiment that compares training from scratch with training from scratch.
# Remedy: network.encoder.load_state_dict(...), or delete the keys that hold "decoder.encoder." or "all_modules".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check \
    dynamic-network-architectures==0.4.4 numpy==2.2.6 torch==2.13.0
cd "$folder"

"$python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet

warnings.simplefilter("ignore")
print("Versions:", *(f"{name} {version(name)}" for name in ("dynamic-network-architectures", "torch")))


def new_network(seed):
    torch.manual_seed(seed)
    return PlainConvUNet(
        input_channels=1, n_stages=3, features_per_stage=(4, 8, 16), conv_op=torch.nn.Conv3d, kernel_sizes=3,
        strides=(1, 2, 2), n_conv_per_stage=2, num_classes=2, n_conv_per_stage_decoder=2, conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU,
    )


def same_encoder(network, other):
    mine, theirs = network.encoder.parameters(), other.encoder.parameters()
    return all(torch.equal(a, b) for a, b in zip(mine, theirs) if a.ndim > 1)


start, pretrained = new_network(1), new_network(2)
torch.save(start.state_dict(), "checkpoint.pth")
checkpoint = torch.load("checkpoint.pth")
names = sum(tensor.shape == start.encoder.stages[0][0].convs[0].conv.weight.shape for tensor in checkpoint.values())
for key, tensor in pretrained.encoder.state_dict().items():
    assert f"encoder.{key}" in checkpoint
    checkpoint[f"encoder.{key}"] = tensor.clone()
network = new_network(3)
answer = network.load_state_dict(checkpoint, strict=True)
print(f"The first convolution has {names} names in the checkpoint")
print("Expected: the encoder is the pretrained one: True, the old one: False")
seen = same_encoder(network, pretrained), same_encoder(network, start)
print(f"Seen:     the encoder is the pretrained one: {seen[0]}, the old one: {seen[1]}; load_state_dict said {answer}")

for key in [key for key in checkpoint if "decoder.encoder." in key or "all_modules" in key]:
    del checkpoint[key]
network = new_network(4)
network.load_state_dict(checkpoint, strict=False)
remedy = same_encoder(network, pretrained)
print(f"Remedy:   without the repeated names the encoder is the pretrained one: {remedy}")
sys.exit(0 if seen == (False, True) and remedy else "the behaviour has changed")
PYTHON
