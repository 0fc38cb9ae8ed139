"""The one module nnU-Net finds in the folder that ``nnUNet_extTrainer`` points to; it forwards to ``plugin.trainers``.

nnU-Net imports every module of that folder, asks it for the trainer's name and forgets it again. This one owns no
class, so it may be forgotten: the classes stay where they were made, and two look-ups give the same one.
"""

try:
    from nnunet_logvmamba.plugin import trainers
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "nnunet_logvmamba":
        raise
    # The variable was inherited by a Python of another environment, which does not have our package.


def __getattr__(name: str):
    if "trainers" not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainers.for_nnunet(name)
