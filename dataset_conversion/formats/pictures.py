"""2D pictures: PNG, BMP, TIFF and JPEG as they are stored, 16 bits and palettes included, and PNG without loss."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dataset_conversion.core import sources, staging
from dataset_conversion.core.cases import ConversionError

if TYPE_CHECKING:
    import tifffile
    from PIL import Image

TIFF_ENDINGS = (".tif", ".tiff")
PICTURE_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg", *TIFF_ENDINGS)
FILE_ENDING = ".png"
_PNG_BIT_DEPTH, _PNG_COLOUR_TYPE, _PNG_GREY, _PNG_GREY_ALPHA = 24, 25, 0, 4
_ORIENTATION, _TURNED = 0x0112, range(2, 9)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NOT_RGB = ("SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB")

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by us


def picture_stem(path: Path) -> str | None:
    """File name without its ending; None for files that are no picture and for hidden ones."""
    return path.stem if path.suffix.lower() in PICTURE_ENDINGS and not path.name.startswith(".") else None


def read_picture(path: Path, case: str, *, indices: bool = False) -> np.ndarray:
    """The picture at ``path``, (height, width) or (height, width, channels), in the dtype it is stored in.

    Pages of a TIFF that are declared to be channels, as microscopes write them, are channels; other axes must have the
    length 1 and are left out. Where a TIFF stores black as the largest value, the picture is turned round, so that
    larger is brighter as in every viewer; indices stay as they are. Transparency beside grey is left out.

    Args:
        indices: Give the stored numbers, as of a mask, rather than the colours or brightness they stand for.

    Raises:
        ConversionError: If the file is damaged, holds several pages or no pixel, colours that are no RGB, or an EXIF
            tag by which viewers turn it, while nothing tells how its label was drawn; the text names case and file.
    """
    try:
        picture = (_read_tiff if is_tiff(path) else _read_other)(path, indices)
    except _Pages as pages:
        raise ConversionError(
            f"Case {case}: {path} holds {pages}, where one 2D picture is expected; export the page that is meant."
        ) from None
    except _Colours as colours:
        raise ConversionError(
            f"Case {case}: {path} stores its colours as {colours}, which is not read; export it as RGB."
        ) from None
    except _Turned as turned:
        raise ConversionError(
            f"Case {case}: viewers turn {path} by its EXIF orientation {turned}, and nothing tells whether its label "
            "was drawn on it so; save it anew without that tag, with the pixels as they are stored (ImageMagick: "
            "-strip) or as they are shown (-auto-orient)."
        ) from None
    except Exception as error:  # decoders have no common error: struct, zlib, index and value errors all occur
        raise sources.unreadable(path, case, getattr(error, "strerror", None) or error) from None
    if 0 in picture.shape:
        raise ConversionError(f"Case {case}: {path} has size {picture.shape} and so no pixel; fetch the file again.")
    return picture


class _Pages(Exception):
    """A TIFF that holds more than one picture; the text says how many."""


class _Colours(Exception):
    """A TIFF whose numbers are neither brightness nor RGB; the text says what."""


class _Turned(Exception):
    """A picture that viewers turn or mirror; the text is its orientation."""


def is_tiff(path: Path) -> bool:
    """Whether a file is a TIFF, whatever it is called."""
    with path.open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


# The libraries are imported where they are needed: a wrong call is answered without them.


def _read_tiff(path: Path, indices: bool) -> np.ndarray:
    import tifffile

    files, channels_of_all = _set_of_files(path)
    if files > 1 and channels_of_all > 1 and not indices:
        raise _Colours(f"{files} files of one OME-TIFF")
    # Alone, for its header makes tifffile look for the other files, and fill with 0 what it does not find.
    with tifffile.TiffFile(path, is_ome=False if files > 1 else None) as file:
        if not file.series:
            raise ValueError("it holds no picture")
        series, page = file.series[0], file.pages[0]
        axes = [axis for axis, length in zip(series.axes, series.shape) if length > 1 or axis in "YX"]
        channels = [axis for axis in axes if axis in "SC"]
        if len(file.series) > 1 or "".join(axis for axis in axes if axis not in "SC") != "YX" or len(channels) > 1:
            names = tifffile.TIFF.AXES_NAMES | {"Q": "unnamed axis"}
            lengths = zip(series.axes, series.shape)
            sizes = ", ".join(f"{names[axis]} {length}" for axis, length in lengths if length > 1 or axis in "YX")
            raise _Pages(f"{len(file.pages)} pages ({sizes})")
        picture = series.asarray()
        picture = picture.reshape([length for axis, length in zip(series.axes, series.shape) if axis in axes])
        if channels:
            picture = np.moveaxis(picture, axes.index(channels[0]), -1)
        alpha = {tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA}
        if set(page.extrasamples) & alpha and channels == ["S"] and picture.shape[-1] == 2:
            picture = picture[..., 0]
        return picture if indices else _as_seen(picture, page)


def _set_of_files(path: Path) -> tuple[int, int]:
    """Number of files over which an OME-TIFF is spread, and of its channels; 0 for other files."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        header = file.ome_metadata or ""
    return len(set(re.findall(r'FileName="([^"]*)"', header))), max(
        map(int, re.findall(r'SizeC="(\d+)"', header)), default=0
    )


def _as_seen(picture: np.ndarray, page: "tifffile.TiffPage") -> np.ndarray:
    """Stored numbers as brightness or RGB."""
    import tifffile

    kind = tifffile.PHOTOMETRIC
    if page.photometric == kind.PALETTE:
        return np.moveaxis(page.colormap, 0, -1)[picture]
    if page.photometric == kind.MINISWHITE:
        if picture.dtype.kind == "u":
            return picture.dtype.type((1 << page.bitspersample) - 1) - picture
        return picture.max() + picture.min() - picture if picture.dtype.kind == "f" else ~picture
    decoded = page.photometric == kind.YCBCR and page.compression != tifffile.COMPRESSION.NONE  # JPEG's own colours
    if getattr(page.photometric, "name", "") in _NOT_RGB and not decoded:
        raise _Colours(page.photometric.name)
    return picture


def _read_other(path: Path, indices: bool) -> np.ndarray:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # whole-slide images are larger than Pillow's guard against decompression bombs
    with Image.open(path) as image:
        image.verify()  # the checksums of a PNG, of which decoding leaves out the last
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:  # a GIF or TIFF may be called .png
            raise _Pages(f"{image.n_frames} pages")
        if (orientation := _orientation(image)) in _TURNED:
            raise _Turned(orientation)
        if image.format == "PNG":
            with path.open("rb") as file:
                header = file.read(_PNG_COLOUR_TYPE + 1)
            if header[_PNG_BIT_DEPTH] == 16 and header[_PNG_COLOUR_TYPE] != _PNG_GREY:
                import SimpleITK as sitk

                # Pillow would keep 8 of the 16 bits.
                picture = sitk.GetArrayFromImage(sitk.ReadImage(sources.for_itk(path)))
                return picture[..., 0] if header[_PNG_COLOUR_TYPE] == _PNG_GREY_ALPHA else picture
        if image.mode in ("P", "PA") and not indices or image.mode == "CMYK":
            image = image.convert("RGB")
        if image.mode == "LA":
            image = image.getchannel("L")
        return np.asarray(image)


def _orientation(image: "Image.Image") -> int | None:
    """How a viewer turns a picture, None where its EXIF does not say or is damaged."""
    image.load()  # in a PNG the EXIF may lie behind the pixels
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # of Pillow's parser, which has no common error
        return None


def as_rgb(picture: np.ndarray, case: str, path: Path) -> np.ndarray:
    """Three channels: grey is repeated, more than three lose the others, as transparency does; one bit is 0 or 255.

    Returns:
        (height, width, 3), dtype of ``picture``, uint8 for bool.

    Raises:
        ConversionError: For complex, NaN or infinite values, and for two channels, of which one would be lost.
    """
    if picture.dtype.kind not in "buif":
        raise ConversionError(f"Case {case}: {path} holds {picture.dtype} values; export it with real numbers.")
    if not np.isfinite(picture).all():
        raise ConversionError(f"Case {case}: {path} holds NaN or infinite values; replace them in the source file.")
    if picture.ndim == 3 and picture.shape[-1] == 2:
        raise ConversionError(
            f"Case {case}: {path} holds 2 channels, where grey or three colours are expected; export the one that is "
            "meant, or both as colours."
        )
    if picture.dtype == bool:
        picture = picture.astype(np.uint8) * 255
    if picture.ndim == 2 or picture.shape[-1] == 1:
        grey = picture if picture.ndim == 2 else picture[..., 0]
        return np.repeat(grey[..., None], 3, axis=-1)
    return picture[..., :3]


def write_png(picture: np.ndarray, target: Path, case: str) -> None:
    """Write an 8-bit picture, (height, width) or (height, width, 3); equal pictures give equal bytes."""
    from PIL import Image

    with staging.writing(target, case):
        Image.fromarray(np.ascontiguousarray(picture, np.uint8)).save(target, format="PNG")
