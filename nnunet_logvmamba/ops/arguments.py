"""What every op says to an argument that is no tensor."""

from collections.abc import Collection, Mapping

from torch import Tensor


def check_tensors(arguments: Mapping[str, object], needed: Collection[str]) -> None:
    """Refuse whatever is no tensor; what is not needed may be None.

    Raises:
        ValueError: With the name of the argument and what came in its place.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and (value is not None or name in needed):
            what = "None" if value is None else f"a {type(value).__name__}"
            raise ValueError(f"{name} is {what}; a tensor is needed.")
