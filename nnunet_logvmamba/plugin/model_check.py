"""Whether a model that somebody else may have made is whole, finite, and holds nothing but weights and settings."""

from __future__ import annotations

import pickle
import pydoc
import tempfile
import zipfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.files import read_json
from nnunet_logvmamba.plugin.acceptance import raise_first
from nnunet_logvmamba.plugin.checkpoints import CHECKPOINTS, check_whole, is_mask, read_checkpoint

READ = (".pth", ".pkl", "plans.json")
"""How the names of the files end that nnU-Net reads and that may have code run: checkpoints, pickles, plans."""

NETWORKS = ("torch.nn.", "dynamic_network_architectures.", "nnunet_logvmamba.networks.")
"""Where the modules lie that plans may name; nnU-Net imports and calls whatever they name."""

PICKLED = {
    "nnunetv2.postprocessing.remove_connected_components.remove_all_but_largest_component_from_segmentation",
    *("_codecs.encode", "collections.OrderedDict", "numpy.ndarray", "numpy.dtype"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("_core", "core") for name in ("_reconstruct", "scalar")),
}
"""What nnU-Net's own pickles (postprocessing, properties of images) name."""


def check_model(path: Path, *, classes: bool = True) -> int:
    """Read all checkpoints, plans and pickles of a model, without running anything that they hold.

    Args:
        path: Folder of a trained model, file that ``nnUNetv2_export_model_to_zip`` wrote, or a checkpoint.
        classes: Refuse plans that name networks of other packages, too; they may be the user's own.

    Returns:
        The number of checkpoints.

    Raises:
        UserError: If one is damaged, or holds weights that are not finite or more than weights and settings; the
            sentence names it, and how many more there are.
    """
    if path.is_dir():
        return _check_folder(path, classes)
    if not path.is_file():
        raise UserError(f"{path} is not there: name the folder of a trained model, its zip file, or a checkpoint")
    check_whole(path)
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/data.pkl") for name in archive.namelist()):  # torch's own kind of zip file
            _check_checkpoints([path])
            return 1
        with tempfile.TemporaryDirectory() as folder:
            archive.extractall(folder, [name for name in archive.namelist() if name.endswith(READ)])
            try:
                return _check_folder(Path(folder), classes)
            except UserError as error:
                raise UserError(str(error).replace(f"{folder}/", f"{path}: ")) from error


def _check_folder(folder: Path, classes: bool) -> int:
    checkpoints, pickles, plans = (sorted(folder.rglob(f"*{ending}")) for ending in READ)
    _check_checkpoints(checkpoints)
    for path in pickles:
        _refuse(path, {name for name in _named_in_pickle(path) if name not in PICKLED})
    for path in plans if classes else ():
        check_plans(read_json(path, "copy it anew"), path)
    return len(checkpoints)


def check_plans(plans: Any, path: Path) -> None:
    """Refuse plans that have nnU-Net import and call anything else than networks and their layers.

    Args:
        plans: Content of a plans file.
        path: What holds them, for the message.

    Raises:
        UserError: Naming what it is.
    """
    _refuse(path, {name for name in _classes(plans, path) if not _is_network(name)})


def _check_checkpoints(paths: Sequence[Path]) -> None:
    faults: dict[Path, str] = {}
    for path in paths:
        try:
            bad = next(_not_finite(read_checkpoint(path).get("network_weights")), None)
        except UserError as error:
            faults[path] = str(error)
        else:
            if bad is not None:
                faults[path] = f"{path} holds weights that are NaN or infinite ({bad}): copy it anew"
    raise_first([text + _instead(path, text, faults) for path, text in faults.items()], of="checkpoint(s)")


def _not_finite(weights: object) -> Iterator[str]:
    import torch

    for name, tensor in weights.items() if isinstance(weights, dict) else ():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            number = tensor.numel() - int(torch.isfinite(tensor).sum())
            if number and not is_mask(tensor):
                yield f"{number} of {tensor.numel()} in '{name}'"


def _instead(path: Path, text: str, faults: Container[Path]) -> str:
    """Name a checkpoint beside a damaged one that is whole."""
    for other in (path.parent / name for name in CHECKPOINTS):
        if text.endswith("copy it anew") and other.is_file() and other not in faults:
            return f", or use {other.name} beside it (predict with -chk {other.name})"
    return ""


def _refuse(path: Path, names: set[str]) -> None:
    if names:
        raise UserError(
            f"{path} names what is neither a weight nor a setting ({', '.join(sorted(names))}), and nnU-Net would run "
            "it: do not use it, unless you trust whoever made it"
        )


class _Nothing:
    """Stands for whatever a pickle names, takes anything and does nothing."""

    def __new__(cls, *_arguments: object, **_named: object) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        pass


class _Names(pickle.Unpickler):
    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> type:
        self.names.add(f"{module}.{name}")
        return _Nothing


def _named_in_pickle(path: Path) -> set[str]:
    with path.open("rb") as file:
        reader = _Names(file)
        try:
            reader.load()
        except MemoryError:
            raise
        except Exception as error:  # what is no pickle may raise anything
            raise UserError(f"{path} cannot be read ({type(error).__name__}): copy it anew") from error
    return reader.names


def _is_network(name: str) -> bool:
    if not name.startswith(NETWORKS):
        return False
    from torch import nn

    try:
        found = pydoc.locate(name)
    except pydoc.ErrorDuringImport:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module)


def _classes(plans: Any, path: Path) -> Iterator[str]:
    """Names of classes and functions that nnU-Net imports to build the networks of plans."""
    try:
        for configuration in plans["configurations"].values():
            architecture = configuration.get("architecture") or {}
            if "network_class_name" in architecture:
                yield str(architecture["network_class_name"])
            arguments = architecture.get("arch_kwargs", {})
            for key in architecture.get("_kw_requires_import", ()):
                if arguments.get(key) is not None:
                    yield str(arguments[key])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what nnU-Net writes ({error!r}): copy it anew") from error
