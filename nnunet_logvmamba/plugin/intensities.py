"""What is wrong with the numbers of an image: not finite, the same everywhere, or far from all that was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

WIDTHS_BEYOND = 10.0
"""How many widths of the training's range a value may lie outside of it.

The range is that of the labelled voxels, so air, bone and metal lie outside of it by a few widths, and scanners without
a unit differ by less than ten. Wrong units (16 bits for 8, counts for SUV) and unset memory lie beyond."""


def per_channel(files: Sequence[str], names: Sequence[str], channels: int) -> Iterator[tuple[int, str, str]]:
    """Give for every channel its number, the file that it is in, and ``"channel 1, T1"``."""
    for channel in range(channels):
        file = files[channel] if len(files) == channels else files[0]
        yield channel, str(file), f"channel {channel}" + (f", {names[channel]}" if channel < len(names) else "")


Image = np.ndarray | Sequence[np.ndarray]
Ranges = tuple[tuple[float, float], ...]


def ranges_of(image: Image) -> Ranges:
    """Give smallest and largest value of each channel of an image, (channels, *spatial); NaN where it holds NaN."""
    return tuple((float(values.min()) + 0.0, float(values.max()) + 0.0) for values in image)  # never "-0"


def not_finite(image: Image, files: Sequence[str], names: Sequence[str] = ()) -> str | None:
    """Say in half a sentence which voxels are NaN or infinite, None if all are finite.

    Args:
        image: (channels, *spatial).
        files: Of the channels, or a single one.
        names: Of the channels.
    """
    said = []
    for channel, file, which in per_channel(files, names, len(image)):
        number = int(image[channel].size - np.count_nonzero(np.isfinite(image[channel])))
        if number:
            said.append(f"{file} holds {number} voxel(s) of {image[channel].size} that are NaN or infinite ({which})")
    return "; ".join(said) or None


def oddities(
    image: Image,
    files: Sequence[str],
    names: Sequence[str] = (),
    trained: Mapping | None = None,
    ranges: Ranges | None = None,
) -> list[tuple[str, str]]:
    """Say what is odd about a finite image that nnU-Net predicts all the same: a kind and a sentence for each channel.

    Args:
        image: (channels, *spatial), as its reader gives it.
        files: Of the channels, or a single one.
        names: Of the channels.
        trained: ``foreground_intensity_properties_per_channel`` of the plans; what it lacks is not compared.
        ranges: Of the channels, where they are known.
    """
    said = []
    ranges = ranges_of(image) if ranges is None else ranges
    same = [low == high for low, high in ranges]
    for channel, file, which in per_channel(files, names, len(image)):
        (low, high), bounds, values = ranges[channel], bounds_of(trained, channel), image[channel]
        # One colour of a picture may well be missing.
        if same[channel] if len(files) == len(image) else all(same):
            sentence = f"{file} has the value {low:g} everywhere ({which}), so its segmentation will mean nothing"
            said.append(("constant", f"{sentence}: check how it was exported"))
        elif bounds is not None and not (bounds[0] <= low and high <= bounds[1]):
            number = int(np.count_nonzero((values < bounds[0]) | (values > bounds[1])))
            learned = trained[str(channel)]  # type: ignore[index]  # bounds came from it
            sentence = (
                f"{file} holds {number} voxel(s) of {values.size} far outside of what was trained on ({which}): its "
                f"values go from {low:g} to {high:g}, those of the labels in training from {learned['min']:g} to "
                f"{learned['max']:g}; check its unit and how it was exported"
            )
            said.append(("intensities", sentence))
    return said


def bounds_of(trained: Mapping | None, channel: int) -> tuple[float, float] | None:
    """Give the values between which nothing is odd; None where the plans do not say what was trained on."""
    properties = (trained or {}).get(str(channel), {})
    if not {"min", "max"} <= properties.keys():
        return None
    low, high = float(properties["min"]), float(properties["max"])
    reach = WIDTHS_BEYOND * max(high - low, abs(high), abs(low))
    return low - reach, high + reach
