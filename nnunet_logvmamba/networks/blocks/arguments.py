"""What our networks say to names of arguments that they do not have, and to layers that do not fit them."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

# Words of nnU-Net's plans, of ours and of other libraries that mean the same, or nearly.
_NEIGHBOURS = (
    ("input_channels", "in_channels", "in_chans", "num_input_channels"),
    ("num_classes", "out_channels", "out_chans", "num_output_channels", "classes"),
    ("conv_op", "spatial_dims", "dimensions"),
    ("features_per_stage", "channels", "n_stages", "features", "feature_size", "init_filters", "widths"),
    ("kernel_sizes", "kernel_size", "up_kernel_size"),
    ("norm_op", "norm", "norm_name"),
    ("nonlin", "act", "act_name", "activation"),
    ("conv_bias", "bias"),
    ("drop_path", "drop_path_rate", "dropout", "dropout_prob", "dropout_rate"),
    ("checkpointing", "use_checkpoint", "gradient_checkpointing"),
    ("n_blocks_per_stage", "depths", "num_res_units"),
    ("state_size", "d_state"),
)

PLAIN_WORDS = {"in_channels": "input_channels", "out_channels": "num_classes"}
"""What other libraries call two arguments of our networks."""


class ArgumentError(ValueError, TypeError):
    """An argument is unknown or missing: a ValueError, as all that our networks refuse, and Python's own TypeError."""


def known_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Make a method answer unknown and missing arguments with a sentence that has the nearest words.

    Raises:
        ArgumentError: From the method, if it cannot be called like this.
    """
    signature = inspect.signature(function)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        owner = args[0] if inspect.isclass(args[0]) else type(args[0])
        constructor = function.__name__ == "__init__"
        called = owner.__name__ if constructor else f"{owner.__name__}.{function.__name__}"
        plainly = (
            f"; {called}.from_channels takes spatial_dims, in_channels, out_channels, channels and strides"
            if constructor and hasattr(owner, "from_channels")
            else ""
        )
        if not open_ended:
            refuse_unknown(called, kwargs, signature.parameters, plainly)
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentError(f"{called}(): {error}{plainly}") from None
        missing = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if name not in given
        ]
        if missing:
            raise ArgumentError(f"{called}() needs {', '.join(missing)}{plainly}")
        return function(*args, **kwargs)

    return checked


def refuse_unknown(called: str, given: Iterable[str], known: Collection[str], plainly: str = "") -> None:
    """Refuse arguments that there are not, each with the nearest that there is.

    Args:
        called: What was called, for the message.
        given: Names that came.
        known: Names that there are.
        plainly: Further words for those who come with names of another library.

    Raises:
        ArgumentError: If a name is not known.
    """
    strangers = [name for name in given if name not in known]
    if not strangers:
        return
    nearest = {name: _nearest(name, known) for name in strangers}
    named = ", ".join(f"'{name}'" + (f" (the nearest is {near})" if near else "") for name, near in nearest.items())
    plural = "s" if len(strangers) > 1 else ""
    foreign = any(name in words for name in strangers for words in _NEIGHBOURS)
    hint = plainly if foreign else ""
    if not hint and not all(nearest.values()):
        hint = f"; help({called}) lists them"
    raise ArgumentError(f"{called}() got {'' if plural else 'an '}unexpected keyword argument{plural} {named}{hint}")


def _nearest(name: str, known: Collection[str]) -> str | None:
    for words in _NEIGHBOURS:
        if name in words:
            return next((word for word in words if word in known), None)
    return next(iter(get_close_matches(name, known, n=1)), None)


def in_our_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace plain words by the names of our arguments.

    Raises:
        ValueError: If an argument is there under both names.
    """
    for plain, own in PLAIN_WORDS.items():
        if plain in arguments and own in arguments:
            raise ValueError(f"{plain} and {own} are the same argument: give one of them")
    return {PLAIN_WORDS.get(name, name): value for name, value in arguments.items()}


def check_norm(norm_op: Any, norm_op_kwargs: Any, widths: Iterable[int], spatial_dims: int) -> None:
    """Refuse a norm that cannot be built for these widths, or is that of another number of axes.

    Raises:
        ValueError: Naming the norm and what is needed.
    """
    for width in sorted(set(widths)):
        layer = _built("norm_op", norm_op, norm_op_kwargs, f"torch.nn.InstanceNorm{spatial_dims}d", width)
        for axes in {1, 2, 3} - {spatial_dims}:
            if isinstance(layer, (getattr(nn, f"InstanceNorm{axes}d"), getattr(nn, f"BatchNorm{axes}d"))):
                own = norm_op.__name__.replace(f"{axes}d", f"{spatial_dims}d")
                raise ValueError(
                    f"norm_op is {norm_op.__name__}, a norm for {axes} spatial axes, and the network has "
                    f"{spatial_dims}: take torch.nn.{own}"
                )


def check_nonlinearity(nonlin: Any, nonlin_kwargs: Any) -> None:
    """Refuse a nonlinearity that cannot be built, and RReLU, whose slopes torch loses where maps are computed again.

    Raises:
        ValueError: Naming it and what is needed.
    """
    layer = _built("nonlin", nonlin, nonlin_kwargs, "torch.nn.LeakyReLU")
    if any(isinstance(module, nn.RReLU) for module in layer.modules()):
        raise ValueError(
            "nonlin is RReLU, whose slopes torch loses where maps are computed again: take torch.nn.LeakyReLU"
        )


def _built(name: str, make: Any, options: Any, example: str, *positional: int) -> nn.Module:
    if isinstance(make, nn.Module) or not callable(make):
        raise ValueError(f"{name} is {make!r}; a class such as {example} is needed")
    if not isinstance(options, Mapping):
        raise ValueError(f"{name}_kwargs is {options!r}; a dict of arguments of {name} is needed")
    try:
        with torch.device("meta"):
            layer = make(*positional, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join([*map(str, positional), *(f"{key}={value!r}" for key, value in options.items())])
        what = getattr(make, "__name__", repr(make))
        raise ValueError(f"{name} {what}({given}) cannot be built: {error}; set {name} or {name}_kwargs") from error
    if not isinstance(layer, nn.Module):
        raise ValueError(f"{name} is {make!r}, which gives no torch.nn.Module; a class such as {example} is needed")
    return layer
