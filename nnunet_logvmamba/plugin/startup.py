"""What Python runs at every start through ``nnunet_logvmamba.pth``: nnU-Net learns where our trainers are.

nnU-Net reads the folders of ``nnUNet_extTrainer`` in order, separated like those of ``PATH``. Ours goes last, so that
a user's own trainers always win. This runs in every Python process of the environment and must not slow it down, so
it needs nothing but ``os`` and ``sys``; and whatever happens here, Python starts.
"""

import os
import sys

VARIABLE = "nnUNet_extTrainer"
EXT_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ext")

# The last release whose Python part can be imported when its compiled part does not fit torch; `make install` puts it
# beside a CPU build of torch. Nothing in nnU-Net calls the compiled part.
FORGIVING_TORCHVISION = "0.16.2"


def start():
    """Do all that is to be done; what fails is said and keeps nothing from running."""
    for step in (append_ext_folder, silence_torchvision):
        try:
            step()
        except Exception as error:  # an exotic environment must not keep Python from starting
            print(f"nnunet_logvmamba: {step.__name__} failed at the start of Python: {error}", file=sys.stderr)


def append_ext_folder():
    """Add the folder ``ext`` to ``nnUNet_extTrainer``, behind what the user has set, unless it is there already."""
    already = os.environ.get(VARIABLE, "")
    if EXT_FOLDER not in already.split(os.pathsep):
        os.environ[VARIABLE] = already + os.pathsep + EXT_FOLDER if already.strip() else EXT_FOLDER


def silence_torchvision():
    """Ignore that the torchvision of `make install` cannot load its compiled part, which is why it was chosen.

    It would say so, and that something might be wrong, whenever nnU-Net looks for a trainer. Any other release may
    speak, since there it is news. The filter goes last, so that whatever a user asks of warnings comes first.
    """
    metadata = f"torchvision-{FORGIVING_TORCHVISION}.dist-info"
    if any(os.path.isdir(os.path.join(folder, metadata)) for folder in sys.path):
        import warnings

        # As Python writes its own first filters, since warnings.filterwarnings would load the regular expressions.
        warnings.filters.append(("ignore", None, UserWarning, "torchvision.io.image", 0))
