"""What our commands say when the user can put it right."""


class UserError(Exception):
    """One sentence for the user that names the value or file and the remedy; shown without a traceback."""
