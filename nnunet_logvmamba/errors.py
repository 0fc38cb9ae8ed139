"""What our commands and trainers say when the user can put it right."""


class UserError(ValueError):
    """One sentence for the user that names the value or file and the remedy; commands show it without a traceback."""


class Refused(SystemExit, RuntimeError):
    """What a trainer says to whoever started it, in one sentence that names the value or file and the remedy.

    Trainers run under nnU-Net's commands, which catch nothing. Being a ``SystemExit``, it ends such a command with the
    sentence on stderr, without a traceback, and with exit code 1; being a ``RuntimeError``, it is caught as one.
    """


class OtherPatchError(SystemExit, ValueError):
    """Weights that are to be loaded are those of a network for another patch size.

    Like :class:`Refused` it ends a command of nnU-Net's with its sentence and exit code 1; elsewhere it is a
    ``ValueError``.
    """


class NotFiniteError(SystemExit, ArithmeticError):
    """Weights, or what a network gives for an image, hold NaN or infinite numbers, so there is no mask.

    Like :class:`Refused` it ends a command of nnU-Net's with its sentence and exit code 1, and is an ``Exception`` to
    whoever catches those. It is no ``RuntimeError``, which nnU-Net's predictor takes for a lack of memory.
    """
