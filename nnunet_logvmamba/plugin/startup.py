"""What Python runs at every start through ``nnunet_logvmamba.pth``: nnU-Net learns where our trainers are.

nnU-Net reads the folders of ``nnUNet_extTrainer`` in order, separated like those of ``PATH``. Ours goes last, so that
a user's own trainers always win. This runs in every Python process of the environment and must not slow it down, so
it needs nothing but ``os`` and ``sys``; and whatever happens here, Python starts.
"""

import os
import sys

VARIABLE = "nnUNet_extTrainer"
EXT_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ext")


def append_ext_folder():
    """Add the folder ``ext`` to ``nnUNet_extTrainer``, behind what the user has set, unless it is there already."""
    try:
        already = os.environ.get(VARIABLE, "")
        if EXT_FOLDER not in already.split(os.pathsep):
            os.environ[VARIABLE] = already + os.pathsep + EXT_FOLDER if already.strip() else EXT_FOLDER
    except Exception as error:  # an exotic environment must not keep Python from starting
        print(f"nnunet_logvmamba: {VARIABLE} was left alone: {error}", file=sys.stderr)
