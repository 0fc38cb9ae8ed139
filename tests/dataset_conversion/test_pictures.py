"""Pictures of every way to store them: brightness as a viewer shows it, and numbers of labels as they are stored."""

import re
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.formats import pictures

GREY = np.random.default_rng(0).integers(0, 4096, (24, 20), dtype=np.uint16)
BYTES = (GREY // 16).astype(np.uint8)
RGB = np.stack([BYTES, BYTES // 2, 255 - BYTES], -1)
TABLE = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
BITS = BYTES > 100
SIGNED, FLOAT = GREY.astype(np.int16) - 2000, GREY.astype(np.float32) / 7 - 9


def tiff(path, voxels, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tifffile says that some of this is unusual
        tifffile.imwrite(path, voxels, **options)
    return path


# What is stored, how, and what a viewer shows
SEEN = {
    "grey": (GREY, {}, GREY),
    "white is 0, 8 bits": (BYTES, {"photometric": "miniswhite"}, 255 - BYTES),
    "white is 0, 16 bits": (GREY, {"photometric": "miniswhite"}, 65535 - GREY),
    "white is 0, 32 bits": (GREY.astype(np.uint32), {"photometric": "miniswhite"}, (1 << 32) - 1 - GREY.astype("u4")),
    "white is 0, 1 bit": (BITS, {"photometric": "miniswhite"}, ~BITS),
    "white is 0, compressed": (BYTES, {"photometric": "miniswhite", "compression": "lzw"}, 255 - BYTES),
    "white is 0, signed": (SIGNED, {"photometric": "miniswhite"}, -1 - SIGNED),
    "white is 0, leading axis": (BYTES[None], {"photometric": "miniswhite"}, 255 - BYTES),
    "black is 0, 1 bit": (BITS, {"photometric": "minisblack"}, BITS),
    "leading axis": (GREY[None], {}, GREY),
    "two leading axes": (GREY[None, None], {}, GREY),
    "leading axis without a word": (GREY[None], {"metadata": None}, GREY),
    "trailing axis": (GREY[..., None], {}, GREY),
    "leading axis of RGB": (RGB[None], {"photometric": "rgb"}, RGB),
    "RGB in planes": (np.moveaxis(RGB, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "ImageJ": (GREY, {"imagej": True}, GREY),
    "ImageJ, five axes of length 1": (GREY[None, None, None], {"imagej": True, "metadata": {"axes": "TZCYX"}}, GREY),
    "ImageJ, channels": (np.moveaxis(RGB, -1, 0), {"imagej": True, "metadata": {"axes": "CYX"}}, RGB),
    "OME": (GREY[None, None, None], {"ome": True, "metadata": {"axes": "TCZYX"}}, GREY),
    "OME, channels": (np.moveaxis(RGB, -1, 0)[None], {"ome": True, "metadata": {"axes": "ZCYX"}}, RGB),
    "OME, RGB": (RGB, {"ome": True, "photometric": "rgb", "metadata": {"axes": "YXS"}}, RGB),
    "LZW": (RGB, {"photometric": "rgb", "compression": "lzw"}, RGB),
    "deflate": (RGB, {"photometric": "rgb", "compression": "deflate", "predictor": True}, RGB),
    "PackBits": (GREY, {"compression": "packbits"}, GREY),
    "tiles": (np.tile(RGB, (2, 2, 1)), {"photometric": "rgb", "tile": (16, 16)}, np.tile(RGB, (2, 2, 1))),
    "big-endian": (GREY, {"byteorder": ">"}, GREY),
    "BigTIFF": (GREY, {"bigtiff": True}, GREY),
    "signed": (SIGNED, {}, SIGNED),
    "float": (FLOAT, {}, FLOAT),
    "palette": (BYTES, {"photometric": "palette", "colormap": TABLE}, np.moveaxis(TABLE, 0, -1)[BYTES]),
    "palette, leading axis": (
        BYTES[None],
        {"photometric": "palette", "colormap": TABLE},
        np.moveaxis(TABLE, 0, -1)[BYTES],
    ),
    "transparency": (np.dstack([RGB, BYTES]), {"photometric": "rgb", "extrasamples": ["unassalpha"]},
                     np.dstack([RGB, BYTES])),
    "transparency beside grey": (np.dstack([BYTES, BYTES // 3]),
                                 {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, BYTES),
    "white is 0 beside transparency": (np.dstack([BYTES, BYTES // 3]),
                                       {"photometric": "miniswhite", "extrasamples": ["unassalpha"]}, 255 - BYTES),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("ending", ["tif", "png"])
def test_a_tiff_is_read_as_a_viewer_shows_it_whatever_it_is_called(name, ending, tmp_path):
    stored, options, seen = SEEN[name]
    path = tiff(tmp_path / f"a.{ending}", stored, **options)
    found = pictures.read_picture(path, "a")
    np.testing.assert_array_equal(found, seen)
    assert found.dtype.newbyteorder("=") == np.asarray(seen).dtype


@pytest.mark.parametrize("name", [name for name in SEEN if "white" in name or "palette" in name or "axis" in name])
def test_labels_keep_the_numbers_that_are_stored(name, tmp_path):
    stored, options, _ = SEEN[name]
    found = pictures.read_picture(tiff(tmp_path / "a.tif", stored, **options), "a", indices=True)
    if "transparency" in name:
        stored = stored[..., 0]
    np.testing.assert_array_equal(found, np.squeeze(stored))


def test_white_as_0_is_turned_round_in_floats_too(tmp_path):
    found = pictures.read_picture(tiff(tmp_path / "a.tif", FLOAT, photometric="miniswhite"), "a")
    assert (np.argsort(found, None) == np.argsort(-FLOAT, None)).all()
    assert [found.min(), found.max()] == pytest.approx([FLOAT.min(), FLOAT.max()])


@pytest.mark.parametrize("stored", [GREY, BYTES, BITS, RGB], ids=["16 bits", "8 bits", "1 bit", "RGB"])
def test_a_png_called_tiff_is_read(stored, tmp_path):
    Image.fromarray(stored).save(tmp_path / "a.tif", "PNG")
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.tif", "a"), stored)


STACKS = {
    "unnamed axis 2": (np.stack([GREY, GREY]), {"photometric": "minisblack"}),
    "unnamed axis 2 below another": (np.stack([GREY, GREY])[None], {"photometric": "minisblack"}),
    "depth 3": (np.stack([GREY] * 3), {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "time 3": (np.stack([GREY] * 3), {"ome": True, "metadata": {"axes": "TYX"}}),
    "depth 2, channel 3": (np.stack([np.stack([GREY] * 3)] * 2), {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "unnamed axis 2 of RGB": (np.stack([RGB, RGB]), {"photometric": "rgb"}),
}


@pytest.mark.parametrize("name", STACKS)
def test_several_pages_are_refused(name, tmp_path):
    stored, options = STACKS[name]
    path = tiff(tmp_path / "a.tif", stored, **options)
    axes = re.sub(" (below|of) .*", "", name)
    size = rf"height {GREY.shape[0]}, width {GREY.shape[1]}(, sample 3)?"
    with pytest.raises(
        ConversionError, match=rf"a\.tif holds \d+ pages \({axes}, {size}\), where one 2D picture is expected"
    ):
        pictures.read_picture(path, "a")


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_colours_that_are_no_rgb_are_refused_in_pictures(mode, tmp_path):
    image = Image.frombytes(mode, (20, 24), bytes(20 * 24 * len(Image.new(mode, (1, 1)).getbands())))
    image.save(tmp_path / "a.tif")
    with pytest.raises(ConversionError, match=r"a\.tif stores its colours as \w+, which is not read; export it as RGB"):
        pictures.read_picture(tmp_path / "a.tif", "a")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_picture_that_viewers_turn_is_refused_since_its_label_may_be_drawn_either_way(ending, tmp_path):
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    for orientation in (1, 6, 9):
        exif[0x0112] = orientation
        Image.fromarray(BYTES).save(path, exif=exif)
        if orientation == 6:
            with pytest.raises(
                ConversionError, match=rf"Case a: viewers turn {path} by its EXIF orientation 6.*-strip"
            ):
                pictures.read_picture(path, "a")
        else:
            assert pictures.read_picture(path, "a").shape == BYTES.shape
    Image.fromarray(BYTES).save(path, exif=b"Exif\0\0no TIFF")
    assert pictures.read_picture(path, "a").shape == BYTES.shape


def test_jpeg_in_a_tiff_is_read(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    tiff(tmp_path / "a.tif", np.stack([smooth, 255 - smooth, smooth // 2], -1), photometric="rgb", compression="jpeg")
    found = pictures.read_picture(tmp_path / "a.tif", "a").astype(int)
    assert np.abs(found - np.stack([smooth, 255 - smooth, smooth // 2], -1)).mean() < 5


@pytest.mark.parametrize(
    ("stored", "options"),
    [(None, {"photometric": "miniswhite"}), ((1,), {}), ((-1,), {}), ((1, 1), {"photometric": "miniswhite"})],
    ids=["white is 0", "leading axis", "trailing axis", "both"],
)
def test_cells_give_the_same_data_set_however_tiffs_are_stored(stored, options, tmp_path):
    """Instance maps that are stored oddly are kept plain, so that every program reads them alike."""
    rng = np.random.default_rng(3)
    for number in (1, 2, 3):
        picture, instances = rng.integers(1, 200, (40, 44), dtype=np.uint8), np.zeros((40, 44), np.uint16)
        instances[4:20, 4:20], instances[22:36, 10:30] = 7, 300
        for folder, odd in (("plain", False), ("odd", True)):
            for part, name, values in (
                ("images", f"cell_{number}", picture),
                ("labels", f"cell_{number}_label", instances),
            ):
                path = tmp_path / folder / part / f"{name}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                if odd and part == "images" and "photometric" in options:
                    values = 255 - values
                axes = (() if stored == (-1,) else stored or ()) if odd else ()
                shape = (*axes, *values.shape, *((1,) if odd and stored == (-1,) else ()))
                tiff(path, values.reshape(shape), **(options if odd else {}))
    for folder in ("plain", "odd"):
        cells.convert(tmp_path / folder, tmp_path / folder / ".." / f"{folder}_raw", tmp_path / f"{folder}_pre", jobs=1)
    ours, theirs = (sorted((tmp_path / f"{folder}_raw").rglob("cell_*")) for folder in ("odd", "plain"))
    assert len(ours) == len(theirs) == 9
    for odd, plain in zip(ours, theirs):
        read = tifffile.imread if odd.suffix == ".tiff" else lambda path: np.asarray(Image.open(path))
        np.testing.assert_array_equal(read(odd), read(plain))
        if odd.suffix == ".tiff":
            with tifffile.TiffFile(odd) as file:
                assert (file.series[0].axes, file.pages[0].photometric.name) == ("YX", "MINISBLACK")


def one_of_a_set(path, files: int, channels: int):
    """One page of an OME-TIFF over ``files`` files, whose header names the others; they are not there."""
    names = "".join(
        f'<TiffData IFD="0" FirstC="{number % channels}" FirstZ="{number // channels}" PlaneCount="1">'
        f'<UUID FileName="set_{number}.ome.tif">urn:uuid:00000000-0000-4000-8000-00000000000{number}</UUID></TiffData>'
        for number in range(files)
    )
    header = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:00000000-0000-4000-8000-000000000000"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYCZT" Type="uint16" SizeX="20" SizeY="24" SizeZ="{files // channels}" SizeC="{channels}" '
        f'SizeT="1">{names}</Pixels></Image></OME>'
    )
    return tiff(path, GREY, description=header, metadata=None, photometric="minisblack")


def test_a_slice_of_an_ome_tiff_over_several_files_is_read_without_the_others(tmp_path):
    path = one_of_a_set(tmp_path / "renamed.tif", files=5, channels=1)
    for indices in (False, True):
        np.testing.assert_array_equal(pictures.read_picture(path, "a", indices=indices), GREY)


def test_one_channel_of_an_ome_tiff_over_several_files_is_no_picture_but_may_be_a_mask(tmp_path):
    path = one_of_a_set(tmp_path / "renamed.tif", files=3, channels=3)
    with pytest.raises(
        ConversionError, match="renamed.tif stores its colours as 3 files of one OME-TIFF, which is not"
    ):
        pictures.read_picture(path, "a")
    np.testing.assert_array_equal(pictures.read_picture(path, "a", indices=True), GREY)
