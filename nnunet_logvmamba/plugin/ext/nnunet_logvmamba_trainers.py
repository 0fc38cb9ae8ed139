"""The one module nnU-Net finds in the folder that ``nnUNet_extTrainer`` points to; it forwards to ``plugin.trainers``.

nnU-Net imports every module of that folder, asks it for the trainer's name and forgets it again. This one owns no
class, so it may be forgotten: the classes stay where they were made, and two look-ups give the same one.
"""

from nnunet_logvmamba.plugin import trainers


def __getattr__(name: str):
    return getattr(trainers, name)
