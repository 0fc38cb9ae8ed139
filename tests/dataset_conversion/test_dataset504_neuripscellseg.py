"""The cell converter on generated pictures of every format and on real ones: three classes, instances, groups."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from dataset_conversion import Dataset504_NeurIPSCellSeg as cells
from dataset_conversion import phantoms
from dataset_conversion.core import reporting
from dataset_conversion.core.cases import ConversionError
from dataset_conversion.formats import pictures
from nnunet_logvmamba.cli import main
from nnunet_logvmamba.evaluation.instances import recover_instances, to_classes

MODULE = "dataset_conversion.Dataset504_NeurIPSCellSeg"
NAME = "Dataset504_NeurIPSCellSeg"


def pixels(path):
    return np.asarray(Image.open(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pictures of all six formats."""
    folder = tmp_path_factory.mktemp("cells") / "download"
    phantoms.write_cells(folder, 12, num_tuning=2, num_unlabelled=1, groups=True)
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    cells.convert(source, root / "raw", root / "preprocessed")
    return root


def disc(radius, edge=40):
    y, x = np.mgrid[:edge, :edge]
    return (y - edge // 2) ** 2 + (x - edge // 2) ** 2 <= radius**2


# Classes


def test_every_format_becomes_8_bit_rgb_png(source, converted):
    target = converted / "raw" / NAME
    assert Counter(path.suffix for path in (source / "Training-labeled" / "images").iterdir()) == {
        ".png": 4, ".tif": 2, ".bmp": 2, ".tiff": 2, ".jpg": 2,
    }  # fmt: skip
    assert names(target / "imagesTr") == [f"cell_{number:05d}_0000.png" for number in range(1, 13)]
    for path in (target / "imagesTr").iterdir():
        picture = Image.open(path)
        assert (picture.mode, picture.size) == ("RGB", (96, 96))
        assert np.asarray(picture).max() == 255


def test_the_boundary_is_the_inner_ring_widened_by_one_pixel():
    instances = np.zeros((14, 16), np.int32)
    instances[2:12, 2:14] = 70000
    expected = np.zeros(instances.shape, np.uint8)
    expected[1:13, 2:14] = expected[2:12, 1:15] = 2  # the ring and the background beside it, but not at its corners
    expected[4:10, 4:12] = 1
    assert (cells.three_classes(instances) == expected).all()


def test_touching_cells_are_kept_apart_and_tiny_interiors_vanish():
    instances = np.zeros((30, 60), np.uint16)
    instances[5:25, 5:30], instances[5:25, 30:55] = 40000, 7
    classes = cells.three_classes(instances)
    assert (classes[8:22, 28:32] == 2).all()
    assert len(np.unique(cells.find_instances(classes))) == 3
    # 5 x 5 pixels are left of 9 x 9, 4 x 4 of 8 x 8, and 3 x 5 of 7 x 9, which is one too few.
    for shape, left in (((9, 9), 25), ((8, 8), 16), ((7, 9), 0)):
        cell = np.zeros((20, 20), np.uint16)
        cell[4 : 4 + shape[0], 4 : 4 + shape[1]] = 1
        assert (cells.three_classes(cell) == 1).sum() == left


@pytest.mark.parametrize(("radius", "lost"), [(3, True), (4, True), (5, False), (8, False)])
def test_small_cells_lose_their_interior_and_are_counted(tmp_path, radius, lost):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray((disc(radius) * 200).astype(np.uint8)).save(tmp_path / "images" / "a.png")
    tifffile.imwrite(tmp_path / "labels" / "a_label.tiff", disc(radius).astype(np.uint16))
    case = cells.find_cases(tmp_path).training[0]
    counts = cells.Cells().check(case).counts
    assert counts == {"instances": 1, "instances lost in the three classes": int(lost)}


def test_one_number_in_several_pieces_is_a_remark_since_it_may_be_one_broken_cell(tmp_path, capsys):
    folder = phantoms.write_cells(tmp_path / "source", 3, edge=48)
    mask = np.zeros((48, 48), np.uint8)
    mask[4:20, 4:20] = mask[24:40, 24:40] = 1
    for number, values in ((1, mask), (2, np.where(np.arange(48) < 22, mask, 2 * mask)), (3, mask[:, ::-1])):
        tifffile.imwrite(folder / "labels" / f"cell_{number:05d}_label.tiff", values.astype(np.uint8))
    cells.convert(folder, tmp_path / "raw", tmp_path / "pre")
    said = capsys.readouterr().out
    assert f"note: {cells.ONE_NUMBER}: 2 case(s), first cell_00001_label.tiff of case cell_00001\n" in said


def test_growing_restores_what_the_boundary_took():
    overlaps = {}
    for radius in (5, 6, 8, 10):
        truth = disc(radius)
        for grow in (0, 2):
            found = cells.find_instances(cells.three_classes(truth.astype(np.uint16)), grow) > 0
            overlaps[radius, grow] = (found & truth).sum() / (found | truth).sum()
    assert [round(overlaps[radius, 0], 2) for radius in (5, 6, 8, 10)] == [0.36, 0.47, 0.57, 0.66]
    assert min(overlaps[radius, 2] for radius in (5, 6, 8, 10)) > 0.9


def random_instances(seed: int) -> np.ndarray:
    """Blobs with numbers, among them small ones, thin ones, and squares that touch others at their corners."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(64, 64)), rng.uniform(1, 3))
    instances = ndimage.label(noise > np.quantile(noise, rng.uniform(0.4, 0.8)))[0]
    row, column = rng.integers(4, 40, 2)
    instances[row : row + 10, column : column + 10] = instances.max() + 1
    instances[row + 10 : row + 20, column + 10 : column + 20] = instances.max() + 1
    return instances


def test_the_converter_and_the_evaluation_agree_on_classes_and_instances(tmp_path):
    predictions, truths = tmp_path / "predictions", []
    predictions.mkdir()
    for seed in range(300):
        instances = random_instances(seed)
        classes = cells.three_classes(instances)
        assert (classes == to_classes(instances)).all()
        if seed % 2:  # what a network predicts is no perfect ring
            classes[np.random.default_rng(seed).random(classes.shape) < 0.05] = 1
        truths.append(recover_instances(classes))
        Image.fromarray(classes).save(predictions / f"cell_{seed:03d}.png")
    cells.restore(predictions, tmp_path / "restored")
    assert main(["instances", str(predictions), str(tmp_path / "recovered"), "--jobs", "1"]) == 0
    for seed, truth in enumerate(truths):
        both = [tifffile.imread(tmp_path / way / f"cell_{seed:03d}_label.tiff") for way in ("restored", "recovered")]
        assert both[0].dtype == both[1].dtype
        assert (both[0] == truth).all()
        assert (both[1] == truth).all()


def test_interiors_that_touch_at_a_corner_are_one_instance():
    classes = np.zeros((20, 20), np.uint8)
    classes[2:8, 2:8] = classes[8:14, 8:14] = 1
    assert cells.find_instances(classes).max() == recover_instances(classes).max() == 1
    # Two pieces of 9 pixels are one of 18, and so no longer too small.
    classes[:] = 0
    classes[2:5, 2:5] = classes[5:8, 5:8] = 1
    assert cells.find_instances(classes).max() == recover_instances(classes).max() == 1


# Intensities


def test_channels_are_stretched_between_percentiles_of_their_non_zero_pixels():
    rng = np.random.default_rng(0)
    picture = rng.integers(1000, 60000, (50, 50, 3)).astype(np.uint16)
    picture[:20, :, 0] = 0
    picture[..., 2] = 0
    result = cells.rescale(picture)
    low, high = np.percentile(picture[20:, :, 0], (1, 99))
    expected = (np.clip(picture[..., 0], low, high) - low) / (high - low) * 255
    assert np.abs(result[..., 0] - expected)[20:].max() <= 1
    assert not result[:20, :, 0].any()
    assert not result[..., 2].any()
    assert result.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dim_picture_of_floats_keeps_its_contrast(dtype):
    ramp = np.linspace(0, 1, 400).reshape(20, 20, 1).astype(dtype)
    for brightest in (9e-4, 1e-9):
        dim = cells.rescale(ramp * dtype(brightest)).astype(int)
        assert np.abs(dim - cells.rescale(ramp)).max() <= 1
    assert np.unique(cells.rescale(9e-4 + 1e-7 * ramp)).tolist() == [0]


def test_a_flat_16_bit_channel_is_cut_and_does_not_wrap():
    assert np.unique(cells.rescale(np.full((4, 4, 1), 300, np.uint16))).tolist() == [255]
    assert np.unique(cells.rescale(np.full((4, 4, 1), 7, np.uint16))).tolist() == [7]


def test_colour_pictures_of_16_bits_are_not_read_as_8(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 65535, (8, 9, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tiff", colours)
    assert (pictures.as_rgb(pictures.read_picture(tmp_path / "a.tiff", "a"), "a", tmp_path) == colours[..., :3]).all()
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(colours[..., :3], isVector=True), str(tmp_path / "b.png"))
    assert (pictures.read_picture(tmp_path / "b.png", "b") == colours[..., :3]).all()


def test_palettes_are_colours_in_pictures_and_indices_in_masks(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([9, 8, 7, 60, 50, 40, 255, 0, 1])
    image.save(tmp_path / "a.png")
    assert pictures.read_picture(tmp_path / "a.png", "a")[1, 0].tolist() == [255, 0, 1]
    assert pictures.read_picture(tmp_path / "a.png", "a", indices=True).tolist() == [[0, 1], [2, 1]]
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 2] = (65535, 0, 257)
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 1], [2, 1]], np.uint8), photometric="palette", colormap=colours)
    assert pictures.read_picture(tmp_path / "a.tif", "a")[1, 0].tolist() == [65535, 0, 257]
    assert pictures.read_picture(tmp_path / "a.tif", "a", indices=True).tolist() == [[0, 1], [2, 1]]


def test_one_bit_pictures_are_black_and_white(tmp_path):
    flags = disc(8)
    Image.fromarray(flags).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", flags, photometric="minisblack")
    tifffile.imwrite(tmp_path / "c.tif", ~flags)  # tifffile's default for bits: 0 is white
    assert pictures.read_picture(tmp_path / "a.png", "a").dtype == bool
    cells.convert_images(tmp_path, tmp_path.parent / "scans")
    for name in ("a_0000.png", "b_0000.png", "c_0000.png"):
        assert (pixels(tmp_path.parent / "scans" / name) == flags[..., None] * 255).all()


def two_channels(shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("imagej.tif", lambda path: tifffile.imwrite(path, two_channels((2, 30, 40)), imagej=True)),
        ("ome.ome.tif", lambda path: tifffile.imwrite(path, two_channels((2, 30, 40)), metadata={"axes": "CYX"})),
        ("samples.tiff", lambda path: tifffile.imwrite(path, two_channels((30, 40, 2)), planarconfig="contig")),
    ],
)
def test_two_channels_are_refused_since_one_would_be_lost(tmp_path, name, write):
    source = tmp_path / "source"
    source.mkdir()
    write(source / name)
    with pytest.raises(ConversionError, match=rf"{name} holds 2 (channels|pages).*; export"):
        cells.convert_images(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transparency_beside_grey_is_left_out(tmp_path):
    grey = two_channels((30, 40))
    both = np.dstack([grey, np.full_like(grey, 255)])
    Image.fromarray(both, "LA").save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", both, photometric="minisblack", extrasamples=["unassalpha"])
    for name in ("a.png", "b.tif"):
        assert (pictures.read_picture(tmp_path / name, "a") == grey).all()


def test_pages_that_are_declared_to_be_three_channels_are_the_channels(tmp_path):
    pages = two_channels((4, 30, 40))
    tifffile.imwrite(tmp_path / "a.tif", pages, imagej=True, metadata={"axes": "CYX"})
    picture = pictures.as_rgb(pictures.read_picture(tmp_path / "a.tif", "a"), "a", tmp_path / "a.tif")
    assert (picture == np.moveaxis(pages[:3], 0, -1)).all()


# Instances, groups, protocols


def test_instance_maps_keep_their_numbers_and_where_possible_their_bytes(source, converted):
    folder = converted / "raw" / NAME / "instancesTr"
    assert names(folder) == [f"cell_{number:05d}.tiff" for number in range(1, 13)]
    for number in (1, 2):
        label = source / "Training-labeled" / "labels" / f"cell_{number:05d}_label.tiff"
        kept = tifffile.imread(folder / f"cell_{number:05d}.tiff")
        assert (kept == tifffile.imread(label)).all()
        assert kept.max() == 40000
        assert (folder / f"cell_{number:05d}.tiff").read_bytes() == label.read_bytes()


def test_labels_follow_from_the_instances_that_are_kept(converted):
    target = converted / "raw" / NAME
    for path in sorted((target / "labelsTr").iterdir()):
        instances = tifffile.imread(target / "instancesTr" / f"{path.stem}.tiff")
        assert Image.open(path).mode == "L"
        assert (pixels(path) == cells.three_classes(instances)).all()


def test_groups_of_the_table_are_on_one_side_and_kinds_are_spread(source, converted):
    splits = json.loads((converted / "preprocessed" / NAME / "splits_final.json").read_text())
    cases = json.loads((converted / "raw" / NAME / reporting.REPORT).read_text())["cases"]
    assert len(splits) == 5
    assert cases["cell_00002"]["group"] == cases["cell_00003"]["group"] == "field_001"
    for fold in splits:
        train, val = ({cases[case]["group"] for case in fold[side]} for side in ("train", "val"))
        assert not train & val


def test_protocols_and_shares_choose_what_is_held_out(source, tmp_path):
    def counts(number, **options):
        target = cells.convert(source, tmp_path / "raw", tmp_path / "pre", number, **options)
        return [len(names(target / part)) for part in ("imagesTr", "imagesTs", "labelsTs", "instancesTs")]

    assert counts(504, protocol="paper") == [12, 2, 2, 2]
    assert counts(505, test_share=0.5) == [6, 6, 6, 6]
    assert counts(506, test_groups=["field_001", "field_003"]) == [8, 4, 4, 4]
    for options, message in (
        ({"test_groups": ["field_001"], "protocol": "paper"}, "has its own test set"),
        ({"test_groups": ["field_001"], "test_share": 0.5}, "choose one"),
        ({"test_groups": ["nowhere"]}, "Test group nowhere does not exist"),
        ({"test_groups": [f"field_{number:03d}" for number in range(7)]}, "leaves none to train with; name fewer"),
    ):
        with pytest.raises(ConversionError, match=message):
            counts(507, **options)


def test_tuning_pictures_may_have_the_numbers_of_training_pictures(source, tmp_path):
    assert names(source / "Tuning" / "labels") == ["cell_00001_label.tiff", "cell_00002_label.tiff"]
    (tmp_path / "own").mkdir()
    target = cells.convert(source, tmp_path / "raw", tmp_path / "pre", protocol="official")
    assert names(target / "labelsTs") == ["tuning_cell_00001.png", "tuning_cell_00002.png"]
    theirs = tifffile.imread(source / "Tuning" / "labels" / "cell_00001_label.tiff")
    assert (tifffile.imread(target / "instancesTs" / "tuning_cell_00001.tiff") == theirs).all()
    report = json.loads((target / reporting.REPORT).read_text())
    assert report["cases"]["tuning_cell_00001"]["submit"] == "cell_00001_label.tiff"
    cells.restore(target / "labelsTs", tmp_path / "submit")
    assert names(tmp_path / "submit") == names(source / "Tuning" / "labels")
    for name in ("tuning_01", "my_tuning_cell_00001"):  # pictures of one's own
        shutil.copy(target / "labelsTs" / "tuning_cell_00001.png", tmp_path / "own" / f"{name}.png")
    cells.restore(tmp_path / "own", tmp_path / "restored")
    assert names(tmp_path / "restored") == ["my_tuning_cell_00001_label.tiff", "tuning_01_label.tiff"]


def make_set(folder):
    for part, name in (("images", "a.png"), ("labels", "a_label.tiff")):
        (folder / part).mkdir(parents=True)
        (folder / part / name).touch()


def test_sets_are_told_by_whole_folder_names(tmp_path):
    make_set(tmp_path / "latest" / "fortune" / "Training-labeled")
    assert [case.name for case in cells.find_cases(tmp_path).training] == ["a"]
    make_set(tmp_path / "latest" / "Tuning")
    make_set(tmp_path / "latest" / "Testing" / "Hidden")
    found = cells.find_cases(tmp_path)
    assert [case.name for case in found.tuning] == ["tuning_a"]
    assert [skip.path for skip in found.skipped] == [tmp_path / "latest" / "Testing" / "Hidden"]


def test_a_table_may_name_pictures_without_their_ending_whatever_dots_they_have(tmp_path):
    (tmp_path / "cases.csv").write_text("image,group\nexp1.5_01,a\nexp1.5_02.PNG,a\nimages/exp2.tiff,b\n")
    assert list(cells.read_table(tmp_path / "cases.csv")) == ["exp1.5_01", "exp1.5_02", "exp2"]


@pytest.mark.parametrize("name", ["Tuning", "Testing", "Hidden"])
def test_a_source_that_is_a_held_out_set_is_not_trained_on(tmp_path, name):
    make_set(tmp_path / name)
    with pytest.raises(ConversionError, match=rf"of a training set; by its name {tmp_path / name} is the "):
        cells.find_cases(tmp_path / name)


def test_a_group_in_the_tables_of_both_parts_is_refused_naming_both_pictures(tmp_path):
    folder = phantoms.write_cells(tmp_path / "source", 4, num_tuning=2, groups=True, edge=48)
    table = "image,group\n" + "".join(
        f"{path.name},field_{number:03d}\n"
        for number, path in enumerate(sorted((folder.parent / "Tuning" / "images").iterdir()), 1)
    )
    (folder.parent / "Tuning" / "cases.csv").write_text(table)
    with pytest.raises(ConversionError, match=r"Group field_001 .* cell_00002 .* tuning_cell_00001; "):
        cells.convert(folder.parent, tmp_path / "raw", tmp_path / "pre", protocol="paper")
    assert not (tmp_path / "raw").exists()
    (folder.parent / "Tuning" / "cases.csv").write_text(table.replace("field", "well"))
    target = cells.convert(folder.parent, tmp_path / "raw", tmp_path / "pre", protocol="paper")
    cases = json.loads((target / reporting.REPORT).read_text())["cases"].values()
    training, testing = ({case["group"] for case in cases if case["part"] == part} for part in ("Tr", "Ts"))
    assert not training & testing
    assert testing == {"well_001", "well_002"}


def test_only_the_challenge_itself_is_expected_to_be_complete(source, tmp_path):
    phantoms.write_cells(tmp_path / "source", 3, num_tuning=1, edge=48)
    target = cells.convert(tmp_path / "source", tmp_path / "raw", None, protocol="paper")
    notes = json.loads((target / reporting.REPORT).read_text())["notes"]
    assert "this copy has 3 of 1000 training pictures" in notes
    assert "this copy has 1 of 101 tuning pictures" in notes
    make_set(tmp_path / "own")
    assert cells.find_cases(tmp_path / "own").notes == ()


def test_the_paper_needs_the_tuning_set(tmp_path):
    phantoms.write_cells(tmp_path / "source", 2, edge=48)
    with pytest.raises(ConversionError, match="needs the labelled tuning set"):
        cells.convert(tmp_path / "source", tmp_path / "raw", None, protocol="paper")


def test_two_runs_give_identical_bytes_on_one_or_two_cores(source, converted, tmp_path, fingerprint):
    cells.convert(source, tmp_path / "raw", tmp_path / "preprocessed", jobs=2)
    assert len(fingerprint(tmp_path)) == 3 * 12 + 3
    assert fingerprint(tmp_path) == fingerprint(converted)


def test_restored_predictions_are_instance_maps_under_the_challenge_names(converted, tmp_path, run_module):
    target = converted / "raw" / NAME
    done = run_module(MODULE, "--restore", target / "labelsTr", tmp_path / "submit", "--jobs", 1)
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "submit")[0] == "cell_00001_label.tiff"
    for path in sorted((tmp_path / "submit").iterdir()):
        truth = tifffile.imread(target / "instancesTr" / f"{path.name.removesuffix('_label.tiff')}.tiff")
        restored = tifffile.imread(path)
        classes = pixels(target / "labelsTr" / f"{path.name.removesuffix('_label.tiff')}.png")
        survivors = np.unique(truth[(classes == 1)])
        assert len(np.unique(restored)) - 1 == len(survivors)
        for value in survivors:
            mine = restored == np.bincount(restored[(truth == value) & (classes == 1)]).argmax()
            assert (mine & (truth == value)).sum() / (mine | (truth == value)).sum() > 0.8
        with tifffile.TiffFile(path) as file:
            assert "grown by 2" in file.pages[0].description
    cells.restore(target / "labelsTr", tmp_path / "shrunken", 0)
    assert (tifffile.imread(tmp_path / "shrunken" / "cell_00001_label.tiff") > 0).sum() == (
        pixels(target / "labelsTr" / "cell_00001.png") == 1
    ).sum()


def test_images_only_takes_pictures_of_any_name_but_no_labels(source, converted, tmp_path):
    cells.convert_images(source / "Training-labeled", tmp_path / "scans")
    assert names(tmp_path / "scans") == names(converted / "raw" / NAME / "imagesTr")
    for name in names(tmp_path / "scans"):
        assert (tmp_path / "scans" / name).read_bytes() == (converted / "raw" / NAME / "imagesTr" / name).read_bytes()


def test_what_is_left_out_is_reported(source, converted):
    report = json.loads((converted / "raw" / NAME / reporting.REPORT).read_text())
    assert {skip["path"]: skip["reason"] for skip in report["skipped"]} == {
        "Training-unlabeled/images": "1 picture(s) in no folder images beside a folder labels",
        "Tuning": "the tuning set; --protocol paper tests on it",
    }
    # Every generated picture has one cell of radius 3.
    assert report["counts"] == {"instances": report["counts"]["instances"], "instances lost in the three classes": 12}


def test_real_pictures_convert_with_folds_by_group(shared, tmp_path, run_module, nnunet_variables):
    folder = shared / "data" / "cells"
    if not folder.is_dir():
        pytest.skip(f"real data are not here: {folder}")
    done = run_module(MODULE, folder, "--test-share", 0.2, "--jobs", 2, environment=nnunet_variables)
    assert done.returncode == 0, done.stderr
    assert "73 labelled case(s), 17 labelled for testing, 85 group(s)" in done.stdout
    report = json.loads((tmp_path / "nnUNet_raw" / NAME / reporting.REPORT).read_text())
    cases = report["cases"]
    assert report["counts"] == {"instances": 3215, "instances lost in the three classes": 356}
    kinds = Counter(case["stratum"] for case in cases.values())
    held_out = Counter(case["stratum"] for case in cases.values() if case["part"] == "Ts")
    assert len(kinds) == 6
    assert all(1 <= held_out[kind] <= 0.25 * count for kind, count in kinds.items())
    splits = json.loads((tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json").read_text())
    for fold in splits:
        train, val = ({cases[case]["group"] for case in fold[side]} for side in ("train", "val"))
        assert not train & val
        assert len({cases[case]["stratum"] for case in fold["val"]}) >= 5
    sixteen_bit = [
        name for name, case in cases.items() if case["stratum"] == "fluorescence_16bit" and case["part"] == "Tr"
    ]
    picture = pixels(tmp_path / "nnUNet_raw" / NAME / "imagesTr" / f"{sixteen_bit[0]}_0000.png")
    assert picture.dtype == np.uint8
    assert picture.max() == 255
