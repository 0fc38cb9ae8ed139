"""What every op says to an argument that is no tensor."""

from torch import Tensor


def check_tensors(required: dict[str, object], optional: dict[str, object]) -> None:
    """Refuse whatever is no tensor; what is optional may be None.

    Raises:
        ValueError: With the name of the argument and what came in its place.
    """
    for name, value in (required | {name: value for name, value in optional.items() if value is not None}).items():
        if not isinstance(value, Tensor):
            what = "None" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{name} is {what}; a tensor is needed.")
