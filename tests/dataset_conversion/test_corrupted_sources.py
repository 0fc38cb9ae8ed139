"""Sources with one thing wrong: each ends with one sentence that names the file, and the target is as it was.

Every row spoils a pristine miniature source in one way. The commands run in this process, over a target that already
holds the data set, so that both leftovers and losses show.
"""

import errno
import gzip
import hashlib
import os
import re
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from dataset_conversion import Dataset501_BraTS2020 as brats
from dataset_conversion import Dataset502_ACDC as acdc
from dataset_conversion import Dataset503_EndoVis2017 as endovis
from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion import phantoms
from dataset_conversion.core import reporting

SMALL = (20, 18, 16)
CONVERTERS = {"brats": brats, "acdc": acdc, "endovis": endovis, "cells": cells}
BRATS = "MICCAI_BraTS2020_TrainingData/BraTS20_Training_002"
T2, SEG = (f"{BRATS}/BraTS20_Training_002_{suffix}.nii.gz" for suffix in ("t2", "seg"))
PATIENT, TEST_PATIENT = "database/training/patient001", "database/testing/patient101"
FRAME = f"{PATIENT}/patient001_frame09"
SEQUENCE, TEST_SEQUENCE = "instrument_1_4_training/instrument_dataset_3", "instrument_1_8_testing/instrument_dataset_1"
PICTURE, DRIVER = f"{SEQUENCE}/left_frames/frame000.png", f"{SEQUENCE}/ground_truth/Left_Large_Needle_Driver_labels"
TYPES = "instrument_2017_test/instrument_dataset_1/TypeSegmentation/frame225.png"
TRAINING = "Training-labeled"
CELL, LABEL = f"{TRAINING}/images/cell_00001.tif", f"{TRAINING}/labels/cell_00001_label.tiff"
RGBA, TABLE = f"{TRAINING}/images/cell_00002.png", f"{TRAINING}/cases.csv"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A source without fault for every converter."""
    root = tmp_path_factory.mktemp("pristine")
    phantoms.write_brats2020(root / "brats", 2, shape=SMALL)
    phantoms.write_acdc(root / "acdc", 2, num_test_patients=2, shape=(16, 16, 3))
    phantoms.write_endovis2017(root / "endovis", 1, sequences=(3, 7), test_sequences=(1,))
    phantoms.write_cells(root / "cells", 4, groups=True, edge=48)
    return root


# Ways to spoil a file


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def as_text(path):
    path.write_text("<html>404 not found</html>")


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def into_folder(path):
    path.unlink()
    path.mkdir()


def circle(path):
    path.unlink()
    path.symlink_to(path.name)


def nowhere(path):
    path.unlink()
    path.symlink_to("gone")


def links_in_a_round(path):
    (path / "training" / "there").symlink_to("../testing")
    (path / "testing" / "back").symlink_to("../training")


def renames(path, before, after):
    """Rename everything below a folder, the folders last."""
    for file in sorted(path.rglob(f"*{before}*"), key=lambda file: -len(file.parts)):
        file.rename(file.with_name(file.name.replace(before, after)))
        (file.parent / "Info.cfg").unlink(missing_ok=True)


def renamed(name):
    return lambda path: path.rename(path.with_name(name))


def copied(to):
    def copy(path):
        target = path.parent / to
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)

    return copy


def copied_as_tuning(path):
    """A tuning set of other pictures that shares its groups with the training set."""
    shutil.copytree(path, path.with_name("Tuning"))
    for file in [*path.with_name("Tuning").glob("*/cell_*")]:
        file.rename(file.with_name(file.name.replace("cell", "other")))
    replaced("cell", "other")(path.with_name("Tuning") / "cases.csv")


def written(content):
    return lambda path: path.write_bytes(content)


def replaced(before, after):
    return lambda path: path.write_text(path.read_text().replace(before, after))


def volume(change):
    """Change an image of SimpleITK."""

    def spoil(path):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(change(image) or image, str(path))

    return spoil


def voxel(value):
    def change(image):
        image = sitk.Cast(image, sitk.sitkFloat32)
        image[2, 2, 1] = value
        return image

    return volume(change)


def colours(path):
    image = nibabel.load(path)
    dtype = [("R", np.uint8), ("G", np.uint8), ("B", np.uint8)]
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, dtype), image.affine), path)


def linked(to, name="link"):
    return lambda path: (path.parent / name).symlink_to(to)


def four_dimensions(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.stack([np.asarray(image.dataobj)] * 2, -1), image.affine), path)


def no_voxels(path):
    header = nibabel.load(path).header.copy()
    header["dim"][1:4] = 0
    with path.with_suffix("").open("wb") as file:
        header.write_to(file)
        file.write(bytes(4))
    path.unlink()


def png_without_pixels(path):
    """A PNG of width 0, its checksum in order."""
    content = bytearray(path.read_bytes())
    content[16:20] = bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))


def tiff_without_pixels(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tifffile says that this is unusual
        tifffile.imwrite(path, np.zeros((0, 40), np.uint8))


def picture(change):
    """Change the pixels of a PNG."""

    def spoil(path):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)

    return spoil


def last_checksum(path):
    """Spoil the last checksum of a PNG's pixels, which decoders do not need."""
    content = bytearray(path.read_bytes())
    content[-13] ^= 1  # the end of the file is 12 bytes long
    path.write_bytes(bytes(content))


def pages_called_png(path):
    grey = Image.open(path).convert("L")
    grey.save(path, "GIF", save_all=True, append_images=[grey.rotate(90)])


def appended(content):
    return lambda path: path.write_bytes(path.read_bytes() + content)


def voxels(change):
    """Change the voxels of a volume and their type."""

    def spoil(path):
        image = nibabel.load(path)
        array = change(np.asarray(image.dataobj))
        nibabel.save(nibabel.Nifti1Image(array, image.affine, dtype=array.dtype), path)

    return spoil


def in_a_folder(*inner):
    """As unpackers leave it that keep the name within a .gz: a folder called as the volume, which lies in it."""

    def wrap(path):
        content = gzip.decompress(path.read_bytes())
        path.unlink()
        path.mkdir()
        (path / ".DS_Store").touch()
        for name in inner:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)

    return wrap


def as_pair(path):
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Pair(np.asarray(image.dataobj), image.affine), path.parent / f"{path.name[:-7]}.hdr")
    path.unlink()


def one_folder_deeper(path):
    path.rename(path.with_name("moved"))
    path.mkdir()
    path.with_name("moved").rename(path / path.name)


def as_jpeg(path):
    Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
    path.unlink()


def tiff(change):
    return lambda path: tifffile.imwrite(path, change(tifffile.imread(path)))


def pixel(value, dtype=np.uint8):
    def change(pixels):
        pixels = pixels.astype(dtype)
        pixels[500 % pixels.shape[0], 700 % pixels.shape[1]] = value
        return pixels

    return change


def first_channel(value):
    def change(pixels):
        pixels = np.stack([pixels] * 3, -1) if pixels.ndim == 2 else pixels
        pixels[5, 5, 0] = value
        return pixels

    return change


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a source: which converter, which file, what happens to it, what the sentence must hold."""

    name: str
    converter: str
    file: str
    spoil: object
    says: str
    options: tuple[str, ...] = ()


FAULTS = [
    # BraTS: volumes
    Fault("truncated volume", "brats", T2, halve, "002_t2.nii.gz cannot be read"),
    Fault("truncated mask", "brats", SEG, halve, "002_seg.nii.gz cannot be read"),
    Fault("empty volume", "brats", T2, empty, "002_t2.nii.gz cannot be read"),
    Fault("text as volume", "brats", T2, as_text, "002_t2.nii.gz cannot be read"),
    Fault("flipped byte", "brats", T2, flip_a_byte, "002_t2.nii.gz cannot be read"),
    Fault("volume without voxels", "brats", T2, no_voxels, "002_t2.nii has size (0,) and so no voxel"),
    Fault("missing modality", "brats", T2, remove, "lacks BraTS20_Training_002_t2.nii.gz"),
    Fault("missing mask", "brats", SEG, remove, "no mask BraTS20_Training_002_seg.nii.gz"),
    Fault("misspelt modality", "brats", T2, renamed("BraTS20_Training_002_T2.nii.gz"), "lacks BraTS20_Training_002_t2"),
    Fault("folder as volume", "brats", T2, into_folder, "lacks BraTS20_Training_002_t2.nii.gz"),
    Fault("folder of two", "brats", T2, in_a_folder("a.nii", "b.nii"), "is a folder that holds a.nii and b.nii, where"),
    Fault("folder of three", "brats", SEG, in_a_folder("a.nii", "b.nii", "c.nii"), "a.nii and b.nii and 1 more, where"),
    Fault("hollow folder", "brats", T2, into_folder, "002_t2.nii.gz is a folder that holds no NIfTI file"),
    Fault("pair of header and voxels", "brats", T2, as_pair, "002_t2.hdr and .img are there, save the pair as one"),
    Fault("mask as a pair", "brats", SEG, as_pair, "002_seg.hdr and .img are there, save the pair as one"),
    Fault("heart as a pair", "acdc", f"{FRAME}.nii.gz", as_pair, "frame09.hdr and .img are there, save the pair as"),
    Fault("circular link", "brats", T2, circle, "002_t2.nii.gz leads nowhere or in a circle"),
    Fault("dangling link", "brats", SEG, nowhere, "002_seg.nii.gz leads nowhere"),
    Fault("circular link as case", "brats", f"{BRATS}/../name_mapping.csv", circle, "name_mapping.csv leads nowhere"),
    Fault("link to the folder above", "brats", T2, linked(".."), "BraTS20_Training_002/link leads back to"),
    Fault("link above the source", "brats", T2, linked("../../../.."), "BraTS20_Training_002/link leads back to"),
    Fault("case that is its own link", "brats", BRATS, linked("BraTS20_Training_003", "BraTS20_Training_003"), "003"),
    Fault("case linked twice", "brats", BRATS, linked("BraTS20_Training_001", "BraTS20_Training_003"), "003 lacks"),
    Fault("links in a round", "acdc", "database", links_in_a_round, "leads back to"),
    Fault("modality twice", "brats", T2, copied("BraTS20_Training_002_t2.nii"), "both BraTS20_Training_002_t2.nii"),
    Fault("case twice", "brats", BRATS, copied("../copy/BraTS20_Training_002"), "BraTS20_Training_002 lies both in"),
    Fault("case of 2021 beside", "brats", BRATS, copied("../more/BraTS2021_00001"), "choose one with --release"),
    Fault("case named without digits", "brats", BRATS, renamed("BraTS20_Training_two"), "BraTS20_Training_two is not"),
    Fault("modality with an umlaut", "brats", T2, renamed("BraTS20_Training_002_tä2.nii.gz"), "lacks BraTS20_Training"),
    Fault("modality in Latin-1", "brats", T2, renamed(os.fsdecode(b"t\xe92.nii.gz")), "lacks BraTS20_Training_002_t2"),
    Fault("case in other digits", "brats", BRATS, renamed("BraTS20_Training_٠٠٢"), "BraTS20_Training_٠٠٢ is not named"),
    Fault("swapped axes", "brats", T2, volume(lambda v: sitk.PermuteAxes(v, (1, 0, 2))), "size of"),
    Fault("other spacing", "brats", T2, volume(lambda v: v.SetSpacing((1, 1, 2))), "spacing of"),
    Fault("other origin", "brats", SEG, volume(lambda v: v.SetOrigin((5, 0, 0))), "002_seg.nii.gz is (5,"),
    Fault("other direction", "brats", T2, volume(lambda v: v.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))), "direction"),
    Fault("four dimensions", "brats", T2, four_dimensions, "where one 3D volume is expected"),
    Fault("colour volume", "brats", T2, volume(lambda v: sitk.Compose(v, v, v)), "3 component(s) per voxel"),
    Fault("bytes of colours", "brats", T2, colours, "002_t2.nii.gz holds colours"),
    Fault("complex volume", "brats", T2, voxels(lambda v: v.astype(np.complex64)), "2 component(s) per voxel"),
    Fault("garbage behind a volume", "brats", T2, appended(b"garbage"), "002_t2.nii.gz cannot be read"),
    Fault("volume of one slice", "acdc", f"{FRAME}.nii.gz", voxels(lambda v: v[..., 0]), "where one 3D volume is"),
    Fault("NaN in an image", "brats", T2, voxel(float("nan")), "002_t2.nii.gz holds NaN or infinite"),
    Fault("infinity in an image", "brats", T2, voxel(float("inf")), "002_t2.nii.gz holds NaN or infinite"),
    Fault("illegal label", "brats", SEG, voxel(3), "002_seg.nii.gz holds label 3"),
    Fault("negative label", "brats", SEG, voxel(-1), "002_seg.nii.gz holds label -1"),
    Fault("fractional label", "brats", SEG, voxel(0.5), "002_seg.nii.gz holds 0.5"),
    Fault("NaN label", "brats", SEG, voxel(float("nan")), "002_seg.nii.gz holds nan"),
    Fault("source is a file", "brats", "", lambda path: (remove(path), path.write_text("")), "is a file, not a folder"),
    Fault("source is gone", "brats", "", remove, "does not exist"),
    Fault("empty source", "brats", "", lambda path: (remove(path), path.mkdir()), "is the archive unpacked there?"),
    Fault("no validation cases", "brats", T2, lambda path: None, "none below", ("--protocol", "official")),
    # ACDC: Info.cfg and patients
    Fault("no Info.cfg", "acdc", f"{PATIENT}/Info.cfg", remove, "patient001/Info.cfg, which tells"),
    Fault("binary Info.cfg", "acdc", f"{PATIENT}/Info.cfg", written(b"\xff\xfe\x00E"), "patient001/Info.cfg cannot be"),
    Fault("empty Info.cfg", "acdc", f"{PATIENT}/Info.cfg", empty, "patient001/Info.cfg gives None as frame ED"),
    Fault("folder Info.cfg", "acdc", f"{PATIENT}/Info.cfg", into_folder, "patient001/Info.cfg"),
    Fault("ED is no number", "acdc", f"{PATIENT}/Info.cfg", replaced("ED: 1", "ED: one"), "Info.cfg gives 'one'"),
    Fault("ED is ES", "acdc", f"{PATIENT}/Info.cfg", replaced("ED: 1", "ED: 9"), "Info.cfg gives frame 9 as both"),
    Fault("no such frame", "acdc", f"{PATIENT}/Info.cfg", replaced("ED: 1", "ED: 2"), "no patient001_frame02.nii.gz"),
    Fault("unknown diagnosis", "acdc", f"{PATIENT}/Info.cfg", replaced("MINF", "flu"), "Info.cfg gives 'flu' as Group"),
    Fault("missing frame", "acdc", f"{FRAME}.nii.gz", remove, "has no patient001_frame09.nii.gz"),
    Fault("missing training mask", "acdc", f"{FRAME}_gt.nii.gz", remove, "has no mask patient001_frame09_gt.nii.gz"),
    Fault(
        "one test mask missing", "acdc", f"{TEST_PATIENT}/patient101_frame11_gt.nii.gz", remove, "patient101_frame11"
    ),
    Fault("label 4", "acdc", f"{FRAME}_gt.nii.gz", voxel(4), "patient001_frame09_gt.nii.gz holds label 4"),
    Fault("truncated heart", "acdc", f"{FRAME}.nii.gz", halve, "patient001_frame09.nii.gz cannot be read"),
    Fault("mask of other slices", "acdc", f"{FRAME}_gt.nii.gz", volume(lambda v: v[:, :, 1:]), "size of"),
    Fault("patient twice", "acdc", PATIENT, copied("../../copy/patient001"), "patient001 lies both in"),
    Fault("patient in a folder of its name", "acdc", PATIENT, one_folder_deeper, "patient001 lies both in"),
    Fault("patient of the other part", "acdc", PATIENT, copied("../testing/patient003"), "patient003 lies in testing"),
    Fault("patient 151", "acdc", TEST_PATIENT, renamed("patient151"), "patient151 has a number out of range"),
    Fault("patient 1", "acdc", PATIENT, renamed("patient1"), "patient1 is not named"),
    Fault("heart without voxels", "acdc", f"{FRAME}.nii.gz", no_voxels, "frame09.nii has size (0,) and so no voxel"),
    Fault("frame with an umlaut", "acdc", f"{FRAME}.nii.gz", renamed("främé09.nii.gz"), "no patient001_frame09.nii.gz"),
    Fault(
        "hearts of others",
        "acdc",
        "database",
        lambda p: renames(p, "patient", "A0S9V"),
        "volumes such as",
        (),
    ),
    Fault("patient in other digits", "acdc", PATIENT, renamed("patient００１"), "patient００１ is not named"),
    Fault("test part only", "acdc", "database/training", remove, "None of the patients 001 to 100"),
    Fault("no test part", "acdc", "database/testing", remove, "tests on patients 101 to 150"),
    # EndoVis: frames, masks, sequences
    Fault("unknown instrument", "endovis", DRIVER, renamed("Spoon_labels"), "Spoon_labels names no known instrument"),
    Fault("two instruments in a name", "endovis", DRIVER, renamed("Other_Vessel_Sealer"), "names more than one known"),
    Fault("frame without mask", "endovis", f"{DRIVER}/frame000.png", remove, "frame000.png has no partner"),
    Fault("mask without frame", "endovis", f"{DRIVER}/frame000.png", copied("frame001.png"), "frame001.png has no"),
    Fault("frame in other digits", "endovis", PICTURE, renamed("frame０００.png"), "There are no frames"),
    Fault("frame with an umlaut", "endovis", PICTURE, renamed("främe000.png"), "There are no frames"),
    Fault("frame without pixels", "endovis", PICTURE, png_without_pixels, "frame000.png cannot be read"),
    Fault("instrument with an umlaut", "endovis", DRIVER, renamed("Schöre"), "Schöre names no known instrument"),
    Fault("frame with a wrong checksum", "endovis", PICTURE, last_checksum, "frame000.png cannot be read"),
    Fault("JPEG frame", "endovis", PICTURE, as_jpeg, "There are no frames (frameNNN.png) in"),
    Fault(
        "mask of 0 and 255",
        "endovis",
        f"{DRIVER}/frame000.png",
        picture(lambda p: np.uint8(255) * (p > 0)),
        "value 255",
    ),
    Fault("mask of one bit", "endovis", f"{DRIVER}/frame000.png", picture(lambda p: p > 0), "value True"),
    Fault("truncated frame", "endovis", PICTURE, halve, "frame000.png cannot be read"),
    Fault("text as frame", "endovis", PICTURE, as_text, "frame000.png cannot be read"),
    Fault("folder as frame", "endovis", PICTURE, into_folder, "There are no frames"),
    Fault("cropped frame", "endovis", PICTURE, picture(lambda p: p[28:1052, 320:1600]), "shape (1024, 1280, 3)"),
    Fault("grey frame", "endovis", PICTURE, picture(lambda p: p[..., 0]), "shape (1080, 1920)"),
    Fault("truncated mask frame", "endovis", f"{DRIVER}/frame000.png", halve, "frame000.png cannot be read"),
    Fault("illegal part", "endovis", f"{DRIVER}/frame000.png", picture(pixel(25)), "frame000.png holds value 25"),
    Fault("coloured mask", "endovis", f"{DRIVER}/frame000.png", picture(first_channel(10)), "the channels of mask"),
    Fault("small mask", "endovis", f"{DRIVER}/frame000.png", picture(lambda p: p[::2, ::2]), "has 540 x 960 pixels"),
    Fault("no left frames", "endovis", f"{SEQUENCE}/left_frames", remove, "instrument_dataset_3 has no folder left"),
    Fault("no ground truth", "endovis", f"{SEQUENCE}/ground_truth", remove, "dataset_3 has no folder ground"),
    Fault(
        "empty ground truth", "endovis", DRIVER + "/..", lambda p: (remove(p), p.mkdir()), "There is no instrument in"
    ),
    Fault("sequence twice", "endovis", SEQUENCE, copied("../copy/instrument_dataset_3"), "sequence 3 lies both in"),
    Fault("sequence 9 in training", "endovis", SEQUENCE, renamed("instrument_dataset_9"), "is none of 1 to 8"),
    Fault("sequence three", "endovis", SEQUENCE, renamed("instrument_dataset_three"), "dataset_three is not"),
    Fault("ready-made copy", "endovis", DRIVER + "/..", renamed("instruments_masks"), "is of a ready-made copy"),
    Fault("parts as types", "endovis", TYPES, picture(pixel(255)), "coding of PartsSegmentation"),
    Fault("types times 32", "endovis", TYPES, picture(lambda p: p * 32), "types times 32"),
    Fault("type 8", "endovis", TYPES, picture(pixel(8)), "frame225.png holds label 8"),
    Fault("test frame without mask", "endovis", TYPES, renamed("frame226.png"), "frame225.png has no partner"),
    Fault("test masks without frames", "endovis", TEST_SEQUENCE, remove, "Test sequence 1 in"),
    Fault("sequences missing", "endovis", PICTURE, lambda p: None, "sequence 1 is missing", ("--folds", "published")),
    # Cells: pictures, labels, table
    Fault("label missing", "cells", LABEL, remove, "has no label cell_00001_label.tiff"),
    Fault("picture missing", "cells", CELL, remove, "cell_00001_label.tiff has no picture"),
    Fault("folder as picture", "cells", CELL, into_folder, "cell_00001_label.tiff has no picture"),
    Fault("picture twice", "cells", CELL, copied("cell_00001.png"), "both cell_00001.png and cell_00001.tif"),
    Fault("truncated TIFF", "cells", CELL, halve, "cell_00001.tif cannot be read"),
    Fault("truncated PNG", "cells", RGBA, halve, "cell_00002.png cannot be read"),
    Fault("empty picture", "cells", RGBA, empty, "cell_00002.png cannot be read"),
    Fault("text as picture", "cells", RGBA, as_text, "cell_00002.png cannot be read"),
    Fault("text as label", "cells", LABEL, as_text, "cell_00001_label.tiff cannot be read"),
    Fault("PNG with a wrong checksum", "cells", RGBA, last_checksum, "cell_00002.png cannot be read"),
    Fault("pages called PNG", "cells", RGBA, pages_called_png, "cell_00002.png holds 2 pages"),
    Fault(
        "label of 0 and 255", "cells", LABEL, tiff(lambda p: np.uint8(255) * (p > 0)), "separate cells the number 255"
    ),
    Fault("label of one bit", "cells", LABEL, tiff(lambda p: p > 0), "gives all its separate cells the number 1"),
    Fault("two pages", "cells", CELL, tiff(lambda p: np.stack([p, p])), "cell_00001.tif holds 2 pages"),
    Fault("label of two pages", "cells", LABEL, tiff(lambda p: np.stack([p, p])), "_label.tiff holds 2 pages"),
    Fault("complex picture", "cells", CELL, tiff(lambda p: p.astype(np.complex64)), "01.tif holds complex64 values"),
    Fault("NaN in a picture", "cells", CELL, tiff(pixel(np.nan, np.float32)), "cell_00001.tif holds NaN"),
    Fault("transposed label", "cells", LABEL, tiff(lambda p: p[:40].T.copy()), "cell_00001_label.tiff has 48 x 40"),
    Fault("fractional instances", "cells", LABEL, tiff(pixel(1.5, np.float32)), "_label.tiff holds fractions"),
    Fault("negative instance", "cells", LABEL, tiff(pixel(-3, np.int32)), "_label.tiff numbers instances from -3"),
    Fault("instance of 40 bits", "cells", LABEL, tiff(pixel(1 << 40, np.int64)), "numbers instances from 0 to 1099"),
    Fault("coloured label", "cells", LABEL, tiff(lambda p: np.stack([p.astype(np.uint8)] * 3, -1)), "has 3 channels"),
    Fault("picture of another name", "cells", CELL, renamed("zelle_ä.tif"), "no label zelle_ä_label.tiff"),
    Fault("picture in Latin-1", "cells", RGBA, renamed(os.fsdecode(b"cell_\xe9.png")), "has no label cell_"),
    Fault("PNG without pixels", "cells", RGBA, png_without_pixels, "cell_00002.png cannot be read"),
    Fault("TIFF without pixels", "cells", CELL, tiff_without_pixels, "cell_00001.tif"),
    Fault("label without pixels", "cells", LABEL, tiff_without_pixels, "cell_00001_label.tiff"),
    Fault("circular picture", "cells", CELL, circle, "cell_00001.tif leads nowhere"),
    Fault("two training sets", "cells", TRAINING, copied("again"), "look like the training set"),
    Fault("no labels folder", "cells", f"{TRAINING}/labels", remove, "holds the folders images and labels"),
    Fault("no pictures", "cells", f"{TRAINING}/images", lambda p: (remove(p), p.mkdir()), "has no picture in"),
    Fault("table without groups", "cells", TABLE, replaced("group", "well"), "cases.csv has no column 'group'"),
    Fault("empty table", "cells", TABLE, empty, "cases.csv has no column"),
    Fault(
        "table in Latin-1", "cells", TABLE, written("image,group\nä.png,1\n".encode("latin-1")), "cases.csv cannot be"
    ),
    Fault("table of other pictures", "cells", TABLE, replaced("cell_00001.tif", "cell_00009.tif"), "cases.csv does"),
    Fault("table names one twice", "cells", TABLE, replaced("cell_00001.tif", "cell_00002.png"), "00002.png twice"),
    Fault("group in both sets", "cells", TRAINING, copied_as_tuning, "Group field_000", ("--protocol", "paper")),
    Fault("no tuning set", "cells", CELL, lambda path: None, "needs the labelled tuning", ("--protocol", "paper")),
]


def everything_below(*folders):
    """Every path with a digest of its content, hidden ones included."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def targets(tmp_path, monkeypatch):
    """nnU-Net's folders with an older conversion of every data set and somebody else's data set in them."""
    raw, preprocessed = tmp_path / "raw", tmp_path / "preprocessed"
    for name in ("Dataset501_BraTS2020", "Dataset502_ACDC", "Dataset503_EndoVis2017", "Dataset504_NeurIPSCellSeg"):
        for path in (raw / name / "dataset.json", preprocessed / name / "splits_final.json"):
            path.parent.mkdir(parents=True)
            path.write_text("precious")
    (raw / "Dataset001_Other").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    return raw, preprocessed


def assert_refused(capfd, code, *says):
    errors = capfd.readouterr().err
    assert code == 2, errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors
    for text in says:
        assert text in errors


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.converter}: {fault.name}" for fault in FAULTS])
def test_a_spoilt_source_is_refused_in_one_sentence(fault, pristine, targets, tmp_path, capfd):
    source = tmp_path / "source"
    shutil.copytree(pristine / fault.converter, source)
    fault.spoil(Path(os.path.normpath(source / fault.file)))
    before = everything_below(*targets)
    code = CONVERTERS[fault.converter].main([str(source), "--overwrite", "--jobs", "1", *fault.options])
    assert_refused(capfd, code, fault.says)
    assert everything_below(*targets) == before


def test_the_pristine_sources_are_accepted(pristine, targets):
    """Otherwise the faults above would be refused for another reason."""
    for name, converter in CONVERTERS.items():
        assert converter.main([str(pristine / name), "--dry-run", "--overwrite", "--jobs", "1"]) == 0
    assert len(FAULTS) >= 60


# Sources that look odd and are in order: the data set is the same


def litter(path):
    """What macOS and Windows leave in every folder, and the second tree that an archive of a Mac unpacks to."""
    for folder in [path, *[below for below in path.rglob("*") if below.is_dir()]]:
        twin = path / "__MACOSX" / folder.relative_to(path)
        twin.mkdir(parents=True, exist_ok=True)
        for file in [file for file in folder.iterdir() if file.is_file()]:
            (twin / f"._{file.name}").write_bytes(b"\0\5\x16\7")
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"x")


def behind_a_link(path):
    path.rename(path.with_name("Ärzte & Söhne (2)"))
    path.symlink_to("Ärzte & Söhne (2)")


ODDITIES = {
    **{f"{name}: litter": (name, "", litter) for name in CONVERTERS},
    **{f"{name}: behind a link": (name, "", behind_a_link) for name in CONVERTERS},
    "brats: mask of 64 bits": ("brats", SEG, voxels(lambda v: v.astype(np.int64))),
    "brats: mask of floats": ("brats", SEG, voxels(lambda v: v.astype(np.float64))),
    "brats: mask with a fourth axis": ("brats", SEG, voxels(lambda v: v[..., None])),
    "brats: volume that is a folder": ("brats", T2, in_a_folder("00000057_brain_t2.nii")),
    "brats: volume in a folder in a folder": ("brats", T2, in_a_folder("00000057_brain_t2.nii/00000057_brain_t2.nii")),
    "brats: mask that is a folder": ("brats", SEG, in_a_folder("final_seg.nii")),
    "acdc: frame that is a folder": ("acdc", f"{FRAME}.nii.gz", in_a_folder("patient001_frame09.nii")),
    "acdc: mask that is a folder": ("acdc", f"{FRAME}_gt.nii.gz", in_a_folder("patient001_frame09_gt.nii")),
    "acdc: series that is a folder": ("acdc", f"{PATIENT}/patient001_4d.nii.gz", in_a_folder("patient001_4d.nii")),
    "acdc: BOM": ("acdc", f"{PATIENT}/Info.cfg", lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())),
    "acdc: CRLF": ("acdc", f"{PATIENT}/Info.cfg", lambda path: path.write_text(path.read_text(), newline="\r\n")),
    "endovis: transparency": ("endovis", PICTURE, picture(lambda p: np.dstack([p, p[..., :1]]))),
    "endovis: coloured types": ("endovis", TYPES, lambda path: Image.open(path).convert("P").save(path)),
    "endovis: mask of 16 bits": ("endovis", f"{DRIVER}/frame000.png", picture(lambda p: p.astype(np.uint16))),
    "cells: label of floats": ("cells", LABEL, tiff(lambda p: p.astype(np.float32))),
    "cells: table of a spreadsheet": (
        "cells",
        TABLE,
        lambda path: path.write_text(path.read_text() + "\n", encoding="utf-8-sig", newline="\r\n"),
    ),
}


@pytest.fixture(scope="module")
def plain(pristine, tmp_path_factory):
    """Every pristine source converted."""
    root = tmp_path_factory.mktemp("plain")
    for name, converter in CONVERTERS.items():
        converter.convert(pristine / name, root / name / "raw", root / name / "preprocessed")
    return root


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_source_that_is_in_order_gives_the_same_data_set(name, pristine, plain, tmp_path, fingerprint):
    converter, file, change = ODDITIES[name]
    source, root = tmp_path / "source", tmp_path / "target"
    shutil.copytree(pristine / converter, source)
    change(Path(os.path.normpath(source / file)))
    before = fingerprint(source)
    CONVERTERS[converter].convert(source, root / "raw", root / "preprocessed")
    expected, found = fingerprint(plain / converter), fingerprint(root)
    unlike = {path for path in expected if expected[path] != found.get(path)}
    assert found.keys() == expected.keys()
    for path in unlike:
        if Path(path).suffix == ".tiff":  # instance maps that need no change keep their bytes, others are packed anew
            np.testing.assert_array_equal(tifffile.imread(root / path), tifffile.imread(plain / converter / path))
        elif "folder" in name and Path(path).suffix == ".gz":  # the volume lay there uncompressed
            ours, theirs = ((folder / path).read_bytes() for folder in (root, plain / converter))
            assert gzip.decompress(ours) == gzip.decompress(theirs)
        else:
            assert Path(path).name == reporting.REPORT  # it lists what was skipped
    assert fingerprint(source) == before


MISNAMED = {"brats": (BRATS, "case"), "acdc": (PATIENT, "patient"), "endovis": (SEQUENCE, "sequence")}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_labelled_case_in_a_folder_of_another_name_is_reported(name, pristine, tmp_path, capsys):
    folder, what = MISNAMED[name]
    source = shutil.copytree(pristine / name, tmp_path / "source")

    def report():
        CONVERTERS[name].convert(source, tmp_path / "raw", tmp_path / "preprocessed", dry_run=True)
        return capsys.readouterr().out

    assert "is not named" not in report()
    copied("number_7")(source / folder)
    said = f"skipped 1: holds .*, but is not named as a {what} .*: {Path(folder).parent}/number_7"
    assert re.search(said, report())


# Disks that fail: OSError put where the real ones come from


def failing(error, after):
    calls = []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == after + 1:
            raise error
        return fail.original(*args, **kwargs)

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = PermissionError(errno.EROFS, "Read-only file system", "the target")
DISKS = {
    "copying an image": ("brats", shutil, "copyfile", FULL, 3, "BraTS20_Training_001_0003.nii.gz cannot be written"),
    "writing a mask": (
        "brats",
        gzip.GzipFile,
        "write",
        FULL,
        2,
        "BraTS20_Training_002.nii.gz cannot",
    ),
    "copying a heart": ("acdc", shutil, "copyfile", FULL, 5, ".nii.gz cannot be written (No space left on device)"),
    "writing a frame": ("endovis", Image.Image, "save", FULL, 0, "seq3_frame000_0000.png cannot be written"),
    "writing a label": ("endovis", Image.Image, "save", FULL, 1, "seq3_frame000.png cannot be written"),
    "writing a cell": ("cells", Image.Image, "save", FULL, 0, "cell_00001_0000.png cannot be written (No space left"),
    "copying instances": ("cells", shutil, "copyfile", FULL, 0, "instancesTr/cell_00001.tiff cannot be written"),
    "writing the splits": ("acdc", Path, "write_text", FULL, 0, "splits_final.json cannot be written"),
    "writing the report": ("acdc", Path, "write_text", FULL, 1, "conversion_report.json cannot be written"),
    "making the folder": ("brats", Path, "mkdir", READ_ONLY, 0, "Read-only file system"),
    "making imagesTr": ("cells", Path, "mkdir", READ_ONLY, 3, "cannot be written (Read-only file system)"),
    "setting the old aside": ("acdc", Path, "rename", READ_ONLY, 0, "Read-only file system"),
    "putting the new in place": ("acdc", Path, "rename", READ_ONLY, 1, "Read-only file system"),
    "putting the splits in place": ("acdc", Path, "replace", READ_ONLY, 0, "Read-only file system"),
}


@pytest.mark.parametrize("moment", DISKS)
def test_a_failing_disk_leaves_the_old_data_set(moment, pristine, targets, capfd, monkeypatch):
    converter, owner, function, error, after, says = DISKS[moment]
    fail = failing(error, after)
    fail.original = getattr(owner, function)
    before = everything_below(*targets)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, lambda *args, **kwargs: fail(*args, **kwargs))
        code = CONVERTERS[converter].main([str(pristine / converter), "--overwrite", "--jobs", "1"])
    assert_refused(capfd, code, says)
    assert everything_below(*targets) == before


@pytest.mark.parametrize("after", [0, 2, 7])
def test_an_interrupted_conversion_leaves_the_old_data_set(after, pristine, targets, capfd, monkeypatch):
    fail = failing(KeyboardInterrupt, after)
    fail.original = shutil.copyfile
    before = everything_below(*targets)
    monkeypatch.setattr(shutil, "copyfile", lambda *args, **kwargs: fail(*args, **kwargs))
    code = brats.main([str(pristine / "brats"), "--overwrite", "--jobs", "1"])
    assert (code, capfd.readouterr().err.count("\n")) == (130, 1)
    assert everything_below(*targets) == before


def test_contents_that_cannot_be_put_back_are_not_lost(pristine, targets, capfd, monkeypatch):
    raw, _ = targets

    def refuse(path, target):
        if not path.name.startswith("Dataset"):
            raise READ_ONLY
        return os.rename(path, target) or target

    monkeypatch.setattr(Path, "rename", refuse)
    code = acdc.main([str(pristine / "acdc"), "--overwrite", "--jobs", "1"])
    (kept,) = raw.glob(".Dataset502_ACDC.replaced-*")
    assert_refused(capfd, code, f"its old contents are in {kept}")
    assert (kept / "dataset.json").read_text() == "precious"


# Targets and variables


def test_targets_that_must_not_be_touched_are_named(pristine, targets, capfd, monkeypatch, tmp_path):
    raw, preprocessed = targets
    before = everything_below(*targets)
    for name, converter in CONVERTERS.items():
        assert_refused(capfd, converter.main([str(pristine / name), "--jobs", "1"]), "is not empty; use --overwrite")
        assert_refused(capfd, converter.main([str(pristine / name), "-d", "1"]), "Id 001 is taken by", "_Other")
        monkeypatch.delenv("nnUNet_preprocessed")
        assert_refused(capfd, converter.main([str(pristine / name), "-d", "9"]), "nnUNet_preprocessed is not set")
        monkeypatch.setenv("nnUNet_preprocessed", str(raw / "Dataset502_ACDC" / "dataset.json"))
        assert_refused(capfd, converter.main([str(pristine / name), "-d", "9"]), "dataset.json, which is a file")
        monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed))
    assert everything_below(*targets) == before


def test_splits_that_are_a_folder_are_named_before_any_case_is_read(pristine, targets, capfd, monkeypatch):
    splits = targets[1] / "Dataset502_ACDC" / "splits_final.json"
    splits.unlink()
    splits.mkdir()
    monkeypatch.setattr(
        "dataset_conversion.formats.volumes.Volumes.check", lambda *arguments: pytest.fail("a case was read")
    )
    code = acdc.main([str(pristine / "acdc"), "--overwrite", "--jobs", "1"])
    assert_refused(capfd, code, f"{splits} is a folder")


def test_a_root_that_is_a_dangling_link_is_made_where_it_leads(pristine, tmp_path):
    for name in ("raw", "preprocessed"):
        (tmp_path / name).symlink_to(f"disk/{name}")
    target = acdc.convert(pristine / "acdc", tmp_path / "raw", tmp_path / "preprocessed")
    assert (target / "dataset.json").is_file()
    assert (tmp_path / "disk" / "preprocessed" / target.name / "splits_final.json").is_file()


@pytest.mark.parametrize("out", ["", ".", ".."])
def test_the_current_folder_is_never_replaced(out, pristine, predictions, tmp_path, capfd, monkeypatch):
    """An empty name, as of a variable that is not set, means the current folder."""
    here = tmp_path / "home" / "here"
    here.mkdir(parents=True)
    (here / "thesis").write_text("precious")
    monkeypatch.chdir(here)
    monkeypatch.setenv("nnUNet_raw", str(predictions[0]))
    for command in (["--images-only", str(pristine / "acdc")], ["--restore", str(predictions[1]["acdc"].parent)]):
        assert_refused(capfd, acdc.main([*command, out, "--overwrite"]), f"The current folder {here} lies inside")
    assert (here / "thesis").read_text() == "precious"


@pytest.mark.parametrize("name", CONVERTERS)
def test_scans_to_predict_are_checked_like_others(name, pristine, tmp_path, capfd):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(pristine / name, source)
    file = {
        "brats": T2,
        "acdc": f"{FRAME}.nii.gz",
        "endovis": f"{TEST_SEQUENCE}/left_frames/frame225.png",
        "cells": CELL,
    }
    main = CONVERTERS[name].main
    halve(source / file[name])
    assert_refused(capfd, main(["--images-only", str(source), str(out), "--jobs", "1"]), Path(file[name]).name)
    assert_refused(capfd, main(["--images-only", str(source / "nothing"), str(out)]), "nothing does not exist")
    (tmp_path / "empty").mkdir()
    assert_refused(capfd, main(["--images-only", str(tmp_path / "empty"), str(out)]), str(tmp_path / "empty"))
    out.write_text("a file")
    assert_refused(capfd, main(["--images-only", str(pristine / name), str(out)]), "is a file; move it away")
    assert out.read_text() == "a file"


@pytest.mark.parametrize("name", CONVERTERS)
def test_images_that_are_not_read_are_counted_in_a_note(name, pristine, predictions, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(predictions[0]))
    folders = {"--images-only": pristine / name, "--restore": predictions[1][name].parent}
    for option, given in folders.items():
        source = shutil.copytree(given, tmp_path / option)
        words = [option, str(source), str(tmp_path / "out"), "--dry-run", "--jobs", "1"]
        assert CONVERTERS[name].main(words) == 0
        assert "not read" not in capfd.readouterr().out
        for file in ("._a.hdr", "b.MHA", "c.webp", "notes.txt"):
            (source / file).touch()
        assert CONVERTERS[name].main(words) == 0
        assert f"note: 2 file(s) not read, first {source}/b.MHA\n" in capfd.readouterr().out


def test_volumes_of_another_ending_are_no_predictions_and_are_counted(predictions, tmp_path, capfd):
    folder = shutil.copytree(predictions[1]["brats"].parent, tmp_path / "predictions")
    shutil.copy(predictions[1]["brats"], folder / "z.nii")
    assert brats.main(["--restore", str(folder), str(tmp_path / "out"), "--jobs", "1"]) == 0
    assert f"note: 1 file(s) not read, first {folder}/z.nii\n" in capfd.readouterr().out


def test_a_volume_that_is_no_modality_is_counted(pristine, tmp_path, capfd):
    source = shutil.copytree(pristine / "brats", tmp_path / "source")
    (source / BRATS / "BraTS20_Training_002_T1w.nii.gz").touch()
    assert brats.main(["--images-only", str(source), str(tmp_path / "out"), "--jobs", "1"]) == 0
    assert "note: 1 file(s) not read, first" in capfd.readouterr().out


NON_ASCII = {"brats": ("ä_t1.nii.gz", "ä_t1ce.nii.gz", "ä_t2.nii.gz", "ä_flair.nii.gz"), "acdc": ("ä.nii.gz",)}


@pytest.mark.parametrize("name", CONVERTERS)
def test_names_that_not_every_tool_reads_alike_are_refused(name, pristine, tmp_path, capfd):
    own = tmp_path / "own"
    own.mkdir()
    for file in NON_ASCII.get(name, ("ä.png",)):
        (own / file).write_bytes(b"")
    assert_refused(capfd, CONVERTERS[name].main(["--images-only", str(own), str(tmp_path / "out")]), "ä", "rename it")
    assert not (tmp_path / "out").exists()


# Predictions


@pytest.fixture(scope="module")
def predictions(pristine, tmp_path_factory):
    """One converted data set each; its labels stand for predictions."""
    root = tmp_path_factory.mktemp("predictions")
    names = {}
    for number, (name, converter) in enumerate(CONVERTERS.items(), 501):
        target = converter.convert(pristine / name, root / "raw", root / "preprocessed", number)
        names[name] = next((target / "labelsTr").iterdir())
    return root / "raw", names


@pytest.mark.parametrize("spoil", [halve, empty, as_text], ids=["truncated", "empty", "text"])
@pytest.mark.parametrize("name", CONVERTERS)
def test_a_damaged_prediction_is_refused(name, spoil, predictions, tmp_path, capfd, monkeypatch):
    raw, files = predictions
    monkeypatch.setenv("nnUNet_raw", str(raw))
    folder, out = tmp_path / "predictions", tmp_path / "out"
    folder.mkdir()
    shutil.copy(files[name], folder)
    main = CONVERTERS[name].main
    assert main(["--restore", str(folder), str(out), "--dry-run"]) == 0
    capfd.readouterr()
    spoil(folder / files[name].name)
    assert_refused(capfd, main(["--restore", str(folder), str(out)]), files[name].name, "cannot be read")
    (folder / files[name].name).unlink()
    assert_refused(capfd, main(["--restore", str(folder), str(out)]), "There are no predictions", str(folder))
    assert not out.exists()


ILLEGAL = {
    "brats": (voxel(4), "holds label 4"),
    "acdc": (voxel(9), "holds label 9"),
    "endovis": (picture(pixel(8)), "holds label 8"),
    "cells": (picture(pixel(3)), "holds label 3"),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_prediction_with_a_strange_label_is_refused(name, predictions, tmp_path, capfd, monkeypatch):
    raw, files = predictions
    monkeypatch.setenv("nnUNet_raw", str(raw))
    folder = tmp_path / "predictions"
    folder.mkdir()
    shutil.copy(files[name], folder)
    spoil, says = ILLEGAL[name]
    spoil(folder / files[name].name)
    assert_refused(
        capfd, CONVERTERS[name].main(["--restore", str(folder), str(tmp_path / "out")]), files[name].name, says
    )
    assert not (tmp_path / "out").exists()


REPORTS = {
    "cut": b"{",
    "other": b"[]",
    "binary": b"\xff",
    "gone": None,
    "list": b'{"cases": []}',
    "text": b'{"cases": {"a": 1}}',
}


@pytest.mark.parametrize("content", REPORTS.values(), ids=REPORTS)
def test_a_report_that_cannot_be_read_is_named(content, predictions, tmp_path, capfd, monkeypatch):
    raw, files = predictions
    shutil.copytree(raw / "Dataset502_ACDC", tmp_path / "raw" / "Dataset502_ACDC")
    report = tmp_path / "raw" / "Dataset502_ACDC" / reporting.REPORT
    report.unlink() if content is None else report.write_bytes(content)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    code = acdc.main(["--restore", str(files["acdc"].parent), str(tmp_path / "out")])
    assert_refused(capfd, code, str(report))
    assert not (tmp_path / "out").exists()
