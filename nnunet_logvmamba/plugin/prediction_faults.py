"""Which case nnU-Net is predicting, and what is said and done where there is no mask of it.

nnU-Net's predictor hands a network patches and weights and no names, and its classes are not ours to extend: commands
make them. So the network asks here when something is wrong, once for each case and never while all is well, and the
answer is found in the frames that called it, by the names of nnU-Net's own functions and variables. Where they are not
found, as in a loop of the user's, the network speaks for itself.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnunet_logvmamba.errors import NotFiniteError
from nnunet_logvmamba.evaluation.dataset_json import channels_of
from nnunet_logvmamba.plugin import intensities

SPIKE = 20.0
"""Standard deviations from the mean at which an image that was normalised by its own is looked at as it was read."""

_LOADERS = {"load_checkpoint": "filename_or_checkpoint", "load_pretrained_weights": "fname"}
"""Functions of nnU-Net that load weights, and the variable that holds the file."""

_FUNCTIONS = {
    *("predict_logits_from_preprocessed_data", "predict_sliding_window_return_logits", "predict_from_data_iterator"),
    *("predict_from_files_sequential", "predict_single_npy_array", "perform_actual_validation", "validation_step"),
    *("initialize_from_trained_model_folder", "predict_entry_point", "predict_entry_point_modelfolder", *_LOADERS),
}

_going_on = False  # while the other cases of a command are predicted on behalf of one that cannot be


def running_functions(functions: Container[str] = _FUNCTIONS) -> dict[str, dict[str, Any]]:
    """Variables of those of nnU-Net's functions that are running, the innermost where there are several of a name."""
    found: dict[str, dict[str, Any]] = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name in functions and name not in found:
            found[name] = frame.f_locals
        frame = frame.f_back
    return found


@dataclass(frozen=True)
class Case:
    """One case that is being predicted.

    Attributes:
        callers: Variables of nnU-Net's running functions.
        predictor: nnU-Net's.
        data: What the preprocessing made of the image, (channels, *spatial), float32.
        name: What it is called in a sentence that knows no file.
        files: Of the image, in the order of the channels; none where it came as an array or was preprocessed before.
        image: Where it came as an array.
    """

    callers: dict[str, dict[str, Any]]
    predictor: Any
    data: Tensor
    name: str
    files: list[str] = field(default_factory=list)
    image: np.ndarray | None = None

    @classmethod
    def running(cls) -> Case | None:
        """Find it; None where nnU-Net's predictor is not at work."""
        callers = running_functions()
        inner = callers.get("predict_logits_from_preprocessed_data")
        data = "data"
        if inner is None:
            inner, data = callers.get("predict_sliding_window_return_logits"), "input_image"
        if inner is None or "self" not in inner or not isinstance(inner.get(data), Tensor):
            return None
        name, files, image = _named(callers)
        return cls(callers, inner["self"], inner[data], name, files, image)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that lie in files."""
        with suppress(ValueError):
            return channels_of(self.predictor.dataset_json, "dataset.json")
        return ()

    @property
    def called(self) -> list[str]:
        """What stands for the files in a sentence."""
        return self.files or [self.name]

    def read(self) -> np.ndarray | None:
        """Read the image again, as the preprocessing did."""
        if self.files:
            return self.predictor.plans_manager.image_reader_writer_class().read_images(self.files)[0]
        return self.image


def _named(callers: dict[str, dict[str, Any]]) -> tuple[str, list[str], np.ndarray | None]:
    """Name, files and array of the case."""
    if "perform_actual_validation" in callers:
        return f"the preprocessed case {callers['perform_actual_validation'].get('k')}", [], None
    if "predict_from_data_iterator" in callers:
        loop = callers["predict_from_data_iterator"]
        source = getattr(getattr(loop.get("data_iterator"), "gi_frame", None), "f_locals", {})
        source = source.get("known", source)
        target, index = loop.get("ofile"), len(loop.get("r", ()))
        targets = source.get("output_filenames_truncated") or source.get("truncated_ofnames")
        if target is not None and targets is not None and target in targets:
            index = list(targets).index(target)
        name = f"image {index + 1}" if target is None else f"the image of {target}"
        if index < len(source.get("list_of_lists", ())):
            return name, list(source["list_of_lists"][index]), None
        images = source.get("list_of_images", ())
        return name, [], images[index] if index < len(images) else None
    if "predict_from_files_sequential" in callers:
        loop = callers["predict_from_files_sequential"]
        return f"the image of {loop.get('of')}", list(loop.get("li", ())), None
    single = callers.get("predict_single_npy_array", {})
    target = single.get("output_file_truncated")
    return "the image" if target is None else f"the image of {target}", [], single.get("input_image")


def case_begins() -> None:
    """Look at a case before its first patch; called whenever weights are loaded, which the predictor does first.

    Warns on stderr of an image that is the same everywhere, or whose values are far outside of the training's where
    the normalisation has not hidden them.

    Raises:
        NotFiniteError: If the preprocessed image holds NaN or infinite numbers.
    """
    begin = "predict_logits_from_preprocessed_data"
    loading = running_functions({begin}).get(begin)
    if loading is None or loading.get("params") is not loading["self"].list_of_parameters[0]:
        return  # not a case, or one that was looked at with the first fold
    case = Case.running()
    if case is None or not case.data.numel():
        return
    ranges = torch.stack(torch.aminmax(case.data.flatten(1), dim=1), dim=1).tolist()
    if not np.isfinite(ranges).all():
        refuse(case)
    if any(_is_suspicious(case, channel, *limits) for channel, limits in enumerate(ranges)):
        image = case.read()
        if image is not None:
            trained = case.predictor.plans_manager.foreground_intensity_properties_per_channel
            for _, sentence in intensities.oddities(image, case.called, case.channels, trained):
                print(f"ATTENTION: {sentence}.", file=sys.stderr, flush=True)


def _is_suspicious(case: Case, channel: int, low: float, high: float) -> bool:
    """Whether the image itself has to be read to say what it is, which costs time."""
    schemes = case.predictor.configuration_manager.normalization_schemes
    if channel >= len(schemes):
        return False  # of the first stage of a cascade
    if high - low <= 1e-5 * max(1.0, abs(low), abs(high)):
        return True
    trained = case.predictor.plans_manager.foreground_intensity_properties_per_channel
    if schemes[channel] == "NoNormalization":
        bounds = intensities.bounds_of(trained, channel)
        return bounds is not None and not (bounds[0] <= low and high <= bounds[1])
    properties = trained.get(str(channel), {})
    usual = SPIKE
    with suppress(KeyError, ZeroDivisionError):
        middle, width = properties["mean"], properties["std"]
        usual = max(usual, 2 * max(properties["max"] - middle, middle - properties["min"]) / width)
    return max(abs(low), abs(high)) > usual


def logits_not_finite(logits: Tensor, image: Tensor) -> bool:
    """End the prediction of the case whose logits are not finite.

    Args:
        logits: (batch, classes, *spatial), of one patch.
        image: (batch, channels, *spatial), the patch.

    Returns:
        True if they are a training's to judge; False if nnU-Net is not predicting.

    Raises:
        NotFiniteError: If it is.
    """
    callers = running_functions()
    if "validation_step" in callers and hasattr(callers["validation_step"].get("self"), "grad_scaler"):
        return True
    case = Case.running()
    if case is not None:
        refuse(case, logits)
    return False


def refuse(case: Case, logits: Tensor | None = None) -> None:
    """Say why there is no mask, after what has been predicted is written and the other cases of the command are too.

    Raises:
        NotFiniteError: Always, with a line for every such case.
    """
    why = _why(case, logits)
    sentences = [why if case.files else why[0].upper() + why[1:]]
    loop = case.callers.get("perform_actual_validation") or case.callers.get("predict_from_data_iterator")
    if loop is not None:
        _wait_for_exports(loop)
    if not _going_on:
        sentences += _predict_others(case)
    raise NotFiniteError("\n".join(sentences))


def _why(case: Case, logits: Tensor | None) -> str:
    remedy = "so there is no mask of it: repair the image or leave it out"
    image = case.read()
    found = None if image is None else intensities.not_finite(image, case.called, case.channels)
    if found is None and not _is_finite(case.data):
        found = intensities.not_finite(case.data.cpu().numpy(), case.called, case.channels)
        bad = [channel for channel, values in enumerate(case.data) if not _is_finite(values)]
        if image is not None and bad[0] < len(image):  # finite, but numbers overflow on the way
            _, file, which = list(intensities.per_channel(case.called, case.channels, len(image)))[bad[0]]
            found = (
                f"{file} holds values from {image[bad[0]].min():g} to {image[bad[0]].max():g} ({which}), which become "
                "NaN or infinite in the preprocessing"
            )
    if found is not None:
        hint = ""
        if case.files:
            hint = f" (logvmamba check {Path(case.files[0]).parent} MODEL names all such images)"
        return f"{found}, {remedy}{hint}."
    said = f"What the network gives for {case.called[0]} is NaN or infinite although the image is finite"
    weights = getattr(case.predictor.network, "_orig_mod", case.predictor.network).state_dict()
    if not all(_is_finite(tensor) for tensor in weights.values()):
        return f"{said}, for its weights are not: the training diverged, so train again or use an earlier checkpoint."
    if logits is not None and logits.dtype == torch.float16:
        return (
            f"{said} and so are the weights: numbers overflow in half precision, so there is no mask of it: predict it "
            "with -device cpu, which computes in single precision, or with another checkpoint (-chk)."
        )
    return (
        f"{said} and so are the weights: numbers overflow in the network, so there is no mask of it: use another "
        "checkpoint, such as -chk checkpoint_best.pth, and look at how the image was exported."
    )


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _wait_for_exports(loop: Mapping[str, Any]) -> None:
    """Wait until what was handed to nnU-Net's pool is written, for an error that leaves its loop kills the pool."""
    for result in loop.get("r") or loop.get("results") or ():
        while not result.ready() and all(worker.is_alive() for worker in loop.get("worker_list", ())):
            result.wait(0.1)


def _predict_others(case: Case) -> list[str]:
    """Predict the cases that come after, with the predictor that is at work; give the sentences of those that fail."""
    global _going_on
    sentences: list[str] = []
    _going_on = True
    try:
        for predict in _others(case):
            try:
                predict()
            except NotFiniteError as error:
                sentences.append(str(error))
    finally:
        _going_on = False
    return sentences


def _others(case: Case) -> Iterator[Callable[[], object]]:
    """Give nnU-Net's own loops for what is left; none where results are returned, for the one who calls must know."""
    loop = case.callers.get("predict_from_data_iterator")
    if loop is not None and loop.get("ofile") is not None and inspect.isgenerator(loop.get("data_iterator")):
        left = loop["data_iterator"]
        known = left.gi_frame.f_locals
        for first in left:  # a loop is begun only if there is something for it, since it starts processes
            yield partial(
                case.predictor.predict_from_data_iterator,
                _remaining(first, left, known),
                loop["save_probabilities"],
                loop["num_processes_segmentation_export"],
            )
    loop = case.callers.get("predict_from_files_sequential")
    if loop is not None and loop.get("of") is not None:
        record = Path(loop["output_folder"]) / "predict_from_raw_data_args.json"
        asked = record.read_bytes()
        done = loop["list_of_lists_or_source_folder"].index(loop["li"]) + 1
        for files, target in zip(
            loop["list_of_lists_or_source_folder"][done:], loop["output_filename_truncated"][done:]
        ):
            yield partial(
                case.predictor.predict_from_files_sequential,
                [files],
                [target],
                loop["save_probabilities"],
                folder_with_segs_from_prev_stage=loop["folder_with_segs_from_prev_stage"],
            )
            record.write_bytes(asked)  # each call says anew what was asked for


def _remaining(first: dict, rest: Iterator[dict], known: dict[str, Any]) -> Iterator[dict]:
    """Give one and the rest; ``known`` are the variables in which :func:`_named` looks for the files."""
    yield first
    for item in rest:  # noqa: UP028 - "yield from" would end the rest together with this
        yield item


def weights_file() -> str | None:
    """Name the file that nnU-Net is loading weights from; None if it is not known."""
    callers = running_functions()
    for function, variable in _LOADERS.items():
        if isinstance(callers.get(function, {}).get(variable), str):
            return callers[function][variable]
    model, folds, index, checkpoint = None, None, 0, None
    if (loading := callers.get("initialize_from_trained_model_folder")) is not None:
        model, folds = loading.get("model_training_output_dir"), loading.get("use_folds")
        checkpoint = loading.get("checkpoint_name")
    elif (case := callers.get("predict_logits_from_preprocessed_data")) is not None:
        command = callers.get("predict_entry_point") or callers.get("predict_entry_point_modelfolder") or {}
        args = command.get("args")
        model, folds = command.get("model_folder", getattr(args, "m", None)), getattr(args, "f", None)
        checkpoint = getattr(args, "chk", None)
        index = [known is case.get("params") for known in case["self"].list_of_parameters].index(True)
    if model is None or checkpoint is None or folds is None or index >= len(folds):
        return None
    return str(Path(model) / f"fold_{folds[index]}" / checkpoint)
