"""Endoscopic videos in the layout of EndoVis 2017."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dataset_conversion.core import staging
from dataset_conversion.core.cases import ConversionError

# Folders below ground_truth as the organisers spell them.
ENDOVIS_FOLDERS = {
    1: (
        "Left_Prograsp_Forceps_labels",
        "Maryland_Bipolar_Forceps_labels",
        "Other_labels",
        "Right_Prograsp_Forceps_labels",
    ),
    2: ("Left_Prograsp_Forceps_labels", "Other_labels", "Right_Prograsp_Forceps_labels"),
    3: ("Left_Large_Needle_Driver_labels", "Right_Large_Needle_Driver_labels"),
    4: ("Large_Needle_Driver_Left_labels", "Large_Needle_Driver_Right_labels", "Prograsp_Forceps_labels"),
    5: ("Bipolar_Forceps_labels", "Grasping_Retractor_labels", "Vessel_Sealer_labels"),
    6: (
        "Left_Large_Needle_Driver_labels",
        "Monopolar_Curved_Scissors_labels",
        "Prograsp_Forceps",
        "Right_Large_Needle_Driver_labels",
    ),
    7: ("Left_Bipolar_Forceps", "Right_Vessel_Sealer"),
    8: (
        "Bipolar_Forceps_labels",
        "Left_Grasping_Retractor_labels",
        "Monopolar_Curved_Scissors_labels",
        "Right_Grasping_Retractor_labels",
    ),
}
ENDOVIS_PICTURE = (28, 320, 1024, 1280)  # top, left, height, width


def write_endovis2017(
    target: Path,
    frames_per_sequence: int,
    *,
    sequences: Sequence[int] = tuple(range(1, 9)),
    test_sequences: Sequence[int] = (),
    test_masks: bool = True,
    seed: int = 2017,
) -> Path:
    """Write a video phantom in the layout of EndoVis 2017 and return ``target``.

    Full frames with black borders; instruments cross, folder names are as irregular as the organisers', masks of even
    sequences have three equal channels, test masks lie apart and those of even sequences one level deeper.

    Args:
        sequences: Training sequences, of 1 to 8.
        test_sequences: Test sequences, of 1 to 10.
        test_masks: False leaves the archive with the test masks out.

    Raises:
        ConversionError: If ``target`` is not empty or an argument is out of range.
    """
    if frames_per_sequence < 1 or set(sequences) - set(ENDOVIS_FOLDERS) or set(test_sequences) - set(range(1, 11)):
        raise ConversionError("At least 1 frame of training sequences 1 to 8 and test sequences 1 to 10.")
    with staging.staged_folder(target) as staged:
        for number in sequences:
            archive = "instrument_1_4_training" if number <= 4 else "instrument_5_8_training"
            folder = staged / archive / f"instrument_dataset_{number}"
            for index in range(frames_per_sequence):
                rng = np.random.default_rng([seed, number, index])
                frame, parts = endoscopic_frame(rng, len(ENDOVIS_FOLDERS[number]))
                _save_png(frame, folder / "left_frames" / f"frame{index:03d}.png")
                for instrument, part in zip(ENDOVIS_FOLDERS[number], parts):
                    stored = np.repeat(part[..., None], 3, -1) if number % 2 == 0 else part
                    _save_png(stored, folder / "ground_truth" / instrument / f"frame{index:03d}.png")
        for number in test_sequences:
            archive = "instrument_1_8_testing" if number <= 8 else "instrument_9_10_testing"
            for index in range(225, 225 + frames_per_sequence):
                rng = np.random.default_rng([seed, 100 + number, index])
                types = rng.choice(np.arange(1, 8), 2, replace=False)
                frame, parts = endoscopic_frame(rng, len(types))
                name = f"frame{index:03d}.png"
                _save_png(frame, staged / archive / f"instrument_dataset_{number}" / "left_frames" / name)
                if test_masks:
                    masks = staged / "instrument_2017_test" / f"instrument_dataset_{number}"
                    masks = masks / "gt" if number % 2 == 0 else masks
                    types_here, parts_here = np.zeros((2, *frame.shape[:2]), np.uint8)
                    for value, part in zip(types, parts):
                        types_here[part > 0] = value
                        parts_here = np.where(part > 0, np.choose(part // 10, (0, 30, 100, 255)), parts_here)
                    _save_png(types_here, masks / "TypeSegmentation" / name)
                    _save_png(types_here * 32, masks / "TypeSegmentationRescaled" / name)
                    _save_png(parts_here.astype(np.uint8), masks / "PartsSegmentation" / name)
        if sequences:
            for name in ("parts_mapping", "type_mapping"):
                (staged / f"{name}.json").write_text("{}\n")
    return Path(target)


def endoscopic_frame(rng: np.random.Generator, num_instruments: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A frame, (1080, 1920, 3), uint8, and per instrument its parts (10 shaft, 20 wrist, 30 clasper), (1080, 1920).

    The instruments reach in from the border of the picture and cross near its middle.
    """
    top, left, height, width = ENDOVIS_PICTURE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    glow = np.exp(-(((y - height / 2) / height) ** 2 + ((x - width / 2) / width) ** 2) * 3)
    frame = np.zeros((1080, 1920, 3), np.uint8)
    frame[top : top + height, left : left + width] = (
        glow[..., None] * rng.uniform((150, 40, 40), (210, 80, 80))
    ).astype(np.uint8)
    masks = []
    for index in range(num_instruments):
        angle = 2 * np.pi * (index + rng.uniform(0.2, 0.8)) / num_instruments
        along = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
        across = np.abs((y - height / 2) * np.cos(angle) - (x - width / 2) * np.sin(angle))
        inside = (across < 45) & (along > -60)
        part = np.where(inside, np.select([along < 60, along < 160], [30, 20], 10), 0).astype(np.uint8)
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[top : top + height, left : left + width] = part
        frame[mask > 0] = np.array((110, 115, 120)) + mask[mask > 0][:, None]
        masks.append(mask)
    return frame, masks


def _save_png(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    from PIL import Image

    Image.fromarray(picture).save(path, compress_level=1)
