"""Finds the images and masks of cases that a page shows, and makes sure that they lie on one grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.dataset_json import channels_of
from nnunet_logvmamba.results.page.pictures import CaseImages
from nnunet_logvmamba.results.runs import Run


@dataclass(frozen=True)
class Sources:
    """Where images and references lie, if not where nnU-Net keeps them; which channel is shown."""

    images: Path | None = None
    references: Path | None = None
    channel: int = 0


class Reader(Protocol):
    """What of a fold only nnU-Net and torch can read; whoever wants a page hands it in.

    That is what a checkpoint has logged per epoch, the configuration with what it inherits, the images of each case in
    ``nnUNet_raw``, the folder of references in ``nnUNet_preprocessed``, labels with their spacing, and an image out of
    one file per channel or one for all, channels first.
    """

    def logging(self) -> Mapping[str, Sequence] | None: ...
    def configuration(self) -> dict: ...
    def raw_images(self) -> Mapping[str, Sequence[Path]]: ...
    def copied_references(self) -> Path | None: ...
    def mask(self, path: Path) -> tuple[np.ndarray, tuple[float, ...]]: ...
    def image(self, files: Sequence[Path]) -> np.ndarray: ...


class Cases:
    """The cases of a run; ``there_are_images`` says whether any image was found."""

    def __init__(self, run: Run, sources: Sources, reader: Reader, ignored: int | None):
        self._run, self._sources, self._reader, self._ignored = run, sources, reader, ignored
        self._ending = run.dataset_json["file_ending"]
        self._refuse_swapped_folders()
        self._images = reader.raw_images() if sources.images is None else self._images_in(sources.images)
        self.there_are_images = bool(self._images)

    def _refuse_swapped_folders(self) -> None:
        """Refuse images where references are asked for: by their names, ``<case>_0000``."""
        folder = self._sources.references
        names = [path.name.removesuffix(self._ending) for path in folder.glob(f"*{self._ending}")] if folder else []
        if names and all(re.search(r"_\d{4}$", name) for name in names):
            cases = {re.sub(r"_\d{4}$", "", name) for name in names}
            if not cases.isdisjoint(self._run.references) and self._run.references.keys().isdisjoint(names):
                raise UserError(f"{folder} holds images of the cases: name the folder of the references, or --images")

    def _images_in(self, folder: Path) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted(folder.glob(f"*{self._ending}")):
            case = re.sub(r"_\d{4}$", "", path.name.removesuffix(self._ending))
            found.setdefault(case, []).append(path)
        if not found:
            raise UserError(f"{folder} holds no images *{self._ending}: name another with --images")
        return found

    def _reference(self, case: str) -> Path | None:
        name, copies = f"{case}{self._ending}", self._reader.copied_references()
        candidates = [self._run.references[case], *([] if copies is None else [copies / name])]
        if self._sources.references is not None:
            candidates = [self._sources.references / name]
        return next((path for path in candidates if path.is_file()), None)

    def read(self, case: str) -> CaseImages | str:
        """Give the case, or a sentence that says why it cannot be shown.

        Raises:
            UserError: If a file cannot be read, or does not fit the prediction.
        """
        prediction_file, reference_file = self._run.folder / f"validation/{case}{self._ending}", self._reference(case)
        if not prediction_file.is_file():
            return f"The prediction of {case} is not in the folder validation."
        if reference_file is None:
            return f"The reference of {case} was not found: name its folder with --references."
        prediction, spacing = self._reader.mask(prediction_file)
        truth, _ = self._reader.mask(reference_file)
        if truth.shape != prediction.shape:
            raise UserError(f"{reference_file} has shape {truth.shape} and the prediction {prediction.shape}")
        files = [path for path in self._images.get(case, []) if path.is_file()]
        image = None
        if files:
            image = self._reader.image(files)
            if image.shape[1:] != truth.shape:
                raise UserError(f"{files[0]} has shape {image.shape[1:]} and the prediction {prediction.shape}")
            image = self._channel(image)
        if self._ignored is not None:
            prediction = np.where(truth == self._ignored, 0, prediction)
            truth = np.where(truth == self._ignored, 0, truth)
        return CaseImages(image, np.rint(truth).astype(int), np.rint(prediction).astype(int), spacing)

    def _channel(self, image: np.ndarray) -> np.ndarray:
        names = [name.lower() for name in channels_of(self._run.dataset_json, "dataset.json")]
        if names in (["r", "g", "b"], ["red", "green", "blue"]) and len(image) == 3:
            return np.moveaxis(image, 0, -1)
        if self._sources.channel >= len(image):
            raise UserError(f"there is no channel {self._sources.channel}: the images have {len(image)}, from 0")
        return image[self._sources.channel]
