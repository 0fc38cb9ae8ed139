"""``logvmamba report``: the page, in a real browser, from real trainings and from files that are wrong."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import nifti_headers
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from browser import Browser, open_browser
from commands import run_command
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.io import imread, imsave
from small_results import DATASET, write_run
from tifffile import imwrite

from nnunet_logvmamba.cli import main
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.cases import FOLD_ALL
from nnunet_logvmamba.evaluation.dataset_json import labels_of
from nnunet_logvmamba.plugin.checkpoints import logging_of_checkpoints
from nnunet_logvmamba.plugin.fold_reader import FoldReader
from nnunet_logvmamba.results import logs
from nnunet_logvmamba.results.page import page as report
from nnunet_logvmamba.results.page import pictures
from nnunet_logvmamba.results.runs import read_run

MODEL_2D = "nnUNetTrainerLoGVMamba__nnUNetPlans__2d"
NASTY = "<img src=x onerror=\"document.title='caught'\">&\"'"


class Tags(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Browser:
    return open_browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page_3d(trained, tmp_path_factory) -> Path:
    """The page about a real training, made by the command."""
    target = tmp_path_factory.mktemp("report") / "report.html"
    done = trained.run("logvmamba", "report", trained.fold("3d_tiny").path, "--output", target, "--cases", 1)
    assert str(target) in done.stdout
    return target


def cells(folder: Path, labels: tuple[str, str] = ("interior", "boundary"), cases: int = 4, f1=None) -> Path:
    """A finished 2D fold in nnU-Net's format with images of discs: PNG, two classes; the folder of images beside it."""
    names = [f"cell_{number:05d}" for number in range(cases)]
    dice = {name: [0.5 + number / 10, float("nan") if number == 0 else 0.8] for number, name in enumerate(names)}
    listed = {"background": 0, labels[0]: 1, labels[1]: 2}
    instances = f1 and {name: {"f1": value, "object_iou": 0.25} for name, value in zip(names, f1)}
    fold = write_run(folder / "results", MODEL_2D, 0, dice, labels=listed, instances=instances)
    dataset_json = json.loads((fold.parent / "dataset.json").read_text())
    dataset_json["file_ending"] = ".png"
    (fold.parent / "dataset.json").write_text(json.dumps(dataset_json))
    plans = json.loads((fold.parent / "plans.json").read_text())
    plans |= {"image_reader_writer": "NaturalImage2DIO", "plans_name": "nnUNetPlans"}
    network = {"network_class_name": "some.UNet", "arch_kwargs": {}, "_kw_requires_import": []}
    plans["configurations"] = {"2d": {"patch_size": [32, 32], "spacing": [1.0, 1.0], "architecture": network}}
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    text = (fold / "validation" / "summary.json").read_text().replace(".nii.gz", ".png")
    references, images = folder / "references", folder / "images"
    text = text.replace('"/gt/', f'"{references}/')
    (fold / "validation" / "summary.json").write_text(text)
    references.mkdir()
    images.mkdir()
    rows, columns = np.mgrid[:40, :60]
    for number, name in enumerate(names):
        distance = np.hypot(rows - 20, columns - 20 - 5 * number)
        truth = (distance < 12).astype(np.uint8) + ((distance < 12) & (distance > 9))
        prediction = np.roll(truth, 3, axis=1)
        noise = np.random.default_rng(number).integers(0, 60, truth.shape)
        for path, array in (
            (images / f"{name}_0000.png", (truth > 0) * 150 + noise),
            (references / f"{name}.png", truth),
            (fold / "validation" / f"{name}.png", prediction),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array.astype(np.uint8)), str(path))
    return fold


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """A function that takes the words of a wrong call and gives the one line with which the command refuses it."""

    def answer(*words: object) -> str:
        capsys.readouterr()
        assert main(["report", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return answer


# The page


def test_scores_of_the_cases_that_fold_all_was_trained_on_are_said_to_be(tmp_path, capsys):
    fold = cells(tmp_path)
    fold = fold.rename(fold.with_name("fold_all"))
    for options in ((), ("--cases", "0")):
        assert main(["report", str(fold), "--images", str(tmp_path / "images"), *options]) == 0
        assert f"note: {FOLD_ALL}" in capsys.readouterr().out.splitlines()
        assert FOLD_ALL in Tags((fold / "report.html").read_text()).text


def test_scores_of_other_weights_than_the_final_ones_are_said_to_be(tmp_path, capsys):
    fold = cells(tmp_path)
    record = {"format": 1, "epochs": 6, "epochs_done": 6, "validated_epochs": 4}
    (fold / "logvmamba.json").write_text(json.dumps(record))
    assert main(["report", str(fold), "--images", str(tmp_path / "images"), "--cases", "0"]) == 0
    said = "Not the final weights, as with --val_best: scored after 4 of 6 epochs."
    assert f"note: {said}" in capsys.readouterr().out.splitlines()
    assert said in Tags((fold / "report.html").read_text()).text


def test_the_page_about_a_training_holds_what_was_asked_of_it(page_3d, trained):
    page = Tags(page_3d.read_text())
    dice = trained.fold("3d_tiny").dice
    for name, mean in zip(("whole tumor", "tumor core", "enhancing tumor"), dice.values()):
        assert name in page.text
        assert f"{mean:.4f}" in page.text
    record = json.loads((trained.fold("3d_tiny").path / "logvmamba.json").read_text())
    assert record["sessions"][0]["command"] in page.text
    assert record["versions"]["torch"] in page.text
    assert '"patch_size"' in page.text, "the whole configuration"
    assert f"{record['parameters'] / 1e6:.2f} M" in page.text
    alternatives = [image["alt"] for image in page.all("img")]
    assert alternatives[:2] == [
        "loss, Dice, learning rate and seconds against the epoch",
        "one box per class, one dot per case",
    ]
    assert [alternative.split(":")[0] for alternative in alternatives[2:]] == ["Worst 1", "Best 1"]


def test_the_page_loads_nothing_and_tells_nothing_of_the_machine(page_3d, trained):
    text = page_3d.read_text()
    page = Tags(text)
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    without_pictures = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?:|url\(|@import", without_pictures)
    assert str(trained.folders.results.parent) not in text
    (policy,) = [meta["content"] for meta in page.all("meta") if "content" in meta and "default-src" in meta["content"]]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_a_browser_shows_every_picture(page_3d, browser, tmp_path):
    copy = tmp_path / "measured.html"  # with a script that the page itself would refuse
    text = re.sub(r"<meta http-equiv[^>]+>", "", page_3d.read_text())
    script = "document.title = [...document.images].map(i => i.complete + ' ' + i.naturalWidth).join(',')"
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    (title,) = re.findall(r"<title>(.*?)</title>", browser.dom(copy))
    widths = [word.split() for word in title.split(",")]
    assert len(widths) == 4
    assert all(complete == "true" and int(width) > 200 for complete, width in widths), title

    shot = sitk.GetArrayFromImage(sitk.ReadImage(str(browser.screenshot(page_3d, tmp_path / "page.png"))))
    assert shot.shape[:2] == (1800, 1150)
    assert len(np.unique(shot.reshape(-1, shot.shape[-1]), axis=0)) > 100, "an empty or plain page"


def test_two_dimensional_cases_are_shown_with_outlines(tmp_path, browser):
    fold = cells(tmp_path)
    assert main(["report", str(fold), "--images", str(tmp_path / "images"), "--cases", "2"]) == 0
    page = Tags((fold / "report.html").read_text())
    captions = [image["alt"] for image in page.all("img") if "mean Dice" in image["alt"]]
    assert [caption.split(",")[0] for caption in captions] == [
        "Worst 1: cell_00000",
        "Worst 2: cell_00001",
        "Best 1: cell_00003",
        "Best 2: cell_00002",
    ]
    assert "3 of 4" in page.text, "one case has no boundary"
    assert "</html>" in browser.dom(fold / "report.html")


def test_instances_are_one_more_class_with_metrics_of_its_own(tmp_path):
    page = report.build(cells(tmp_path, f1=[0.1, 0.2, 0.6, None]), FoldReader, num_cases=0)
    rows = re.findall(r"<tr><th scope=row>(interior|boundary|instances)</th>(.*?)</tr>", page)
    values = {name: re.findall("<td>(.*?)</td>", row) for name, row in rows}
    assert values == {
        "interior": ["0.6500 ± 0.1291", "4 of 4", "", "", "", ""],
        "boundary": ["0.8000 ± 0.0000", "3 of 4", "", "", "", ""],
        "instances": ["", "", "0.3000 ± 0.2646", "3 of 4", "0.2500 ± 0.0000", "4 of 4"],
    }
    assert "<b>0.3000</b><span>mean F1</span>" in page
    assert "<th>F1 instances</th><th>object_iou instances</th>" in page, "every case"
    assert re.search("<th scope=row>cell_00002</th>.*<td>0.6000</td><td>0.2500</td></tr>", page)
    assert "Instance metrics: grow_px 2, iou 0.5, tile_px None, watershed False." in page


def as_tiffs(folder: Path, fold: Path, ending: str, change, **options: object) -> None:
    """Turn the pictures of ``cells`` into TIFF files, images by ``change`` as well as masks unless it inverts."""
    for file in (fold.parent / "dataset.json", fold / "validation/summary.json"):
        file.write_text(file.read_text().replace(".png", ending))
    for part in (folder / "images", folder / "references", fold / "validation"):
        for path in part.glob("*.png"):
            values = imread(path)
            imwrite(path.with_suffix(ending), change(values), **({} if part.name != "images" else options))


WHITE = {"photometric": "miniswhite"}


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda values: values[..., None], {}),
        (lambda values: values[None], WHITE),
        (lambda values: values, WHITE),
    ],
)
def test_tiffs_of_any_axes_are_shown_as_plain_ones(change, options, tmp_path):
    fold = cells(tmp_path)
    page = report.build(fold, FoldReader, num_cases=1, sources=report.Sources(tmp_path / "images"))
    assert page.count("<figure>") == 2
    if options is WHITE:  # what is bright is small
        for path in (tmp_path / "images").iterdir():
            imsave(path, 255 - imread(path), check_contrast=False)
    as_tiffs(tmp_path, fold, ".tif", change, **options)
    again = report.build(fold, FoldReader, num_cases=1, sources=report.Sources(tmp_path / "images"))
    figures = [re.findall(r"<figure>.*?</figure>", one, re.DOTALL) for one in (page, again)]
    assert figures[0] == figures[1]


def test_volumes_that_simpleitk_refuses_are_shown(tmp_path):
    fold = cells(tmp_path)
    plans = json.loads((fold.parent / "plans.json").read_text())
    (fold.parent / "plans.json").write_text(json.dumps({**plans, "image_reader_writer": "SimpleITKIO"}))
    for file in (fold.parent / "dataset.json", fold / "validation/summary.json"):
        file.write_text(file.read_text().replace(".png", ".nii"))
    pages = []
    for shear in (0, 0.02):
        for part in (tmp_path / "images", tmp_path / "references", fold / "validation"):
            for path in part.glob("*.png"):
                values = np.stack([imread(path)] * 5, -1)
                nifti_headers.write(path.with_suffix(".nii"), values, sform=nifti_headers.affine(shear=shear))
        pages.append(report.build(fold, FoldReader, num_cases=1, sources=report.Sources(tmp_path / "images")))
    assert pages[0].count("<figure>") == 2
    assert pages[0] == pages[1]


def test_names_from_files_are_shown_and_not_obeyed(tmp_path, browser):
    fold = cells(tmp_path, labels=(NASTY, "</style><script>document.title='caught'</script>"), cases=2)
    plans = json.loads((fold.parent / "plans.json").read_text())
    plans["dataset_name"] = "Dataset704_</title><script>document.title='caught'</script>"
    plans["configurations"]["2d"]["note"] = "</pre><script>document.title='caught'</script>"
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    record = {
        "format": 1,
        "sessions": [{"command": "nnUNetv2_train '<b onclick=x>'", "first_epoch": 0, "started": "<i>"}],
    }
    (fold / "logvmamba.json").write_text(json.dumps(record))
    assert main(["report", str(fold), "--images", str(tmp_path / "images")]) == 0
    text = (fold / "report.html").read_text()
    page = Tags(text)
    assert page.all("script") == []
    assert len(page.all("i")) == 5, "swatches of two labels and three errors"
    assert len(page.all("b")) == 2, "cards"
    assert all("onclick" not in attributes for _, attributes in page.found)
    assert [image for image in page.all("img") if "onerror" in image] == []
    assert NASTY in page.text
    open_page = tmp_path / "without_policy.html"  # so that it is the escaping that protects
    open_page.write_text(re.sub(r"<meta http-equiv[^>]+>", "", text))
    assert "<title>caught" not in browser.dom(open_page)


def test_a_case_is_on_the_page_once_even_if_there_are_few(tmp_path):
    fold = cells(tmp_path, cases=3)
    page = report.build(fold, FoldReader, num_cases=5, sources=report.Sources(tmp_path / "images"))
    captions = re.findall(r"<figcaption>(\w+ \d): (\w+),", page)
    assert captions == [("Worst 1", "cell_00000"), ("Worst 2", "cell_00001"), ("Best 1", "cell_00002")]


def test_the_page_says_what_is_not_there(tmp_path):
    fold = cells(tmp_path)
    page = report.build(fold, FoldReader)
    assert "No images were found: name their folder with --images, or set nnUNet_raw." in page
    assert "No epoch was logged." in page
    assert "There is no record (only our trainers write one)" in page
    assert "nnUNetv2_train 4 2d 0 -tr nnUNetTrainerLoGVMamba -p nnUNetPlans" in page
    assert "<figure>" not in report.build(fold, FoldReader, num_cases=0)
    assert page.count("<figure>") == 4, "truth and prediction are shown without the image"
    shutil.rmtree(tmp_path / "references")
    (fold / "validation" / "cell_00003.png").unlink()
    page = report.build(fold, FoldReader)
    assert "The reference of cell_00000 was not found: name its folder with --references." in page
    assert "The prediction of cell_00003 is not in the folder validation." in page


def test_a_raw_data_set_that_lost_its_images_has_none(tmp_path, monkeypatch):
    fold = cells(tmp_path)
    (tmp_path / "raw" / DATASET).mkdir(parents=True)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert "No images were found: name their folder with --images" in report.build(fold, FoldReader)
    shutil.copytree(tmp_path / "images", tmp_path / "raw" / DATASET / "imagesTr")
    assert "No images were found" not in report.build(fold, FoldReader)


def test_a_training_without_validation_has_a_page_with_its_curves(trained, tmp_path, refused):
    fold = tmp_path / trained.model("3d_tiny").name / "fold_0"
    fold.mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(trained.model("3d_tiny") / name, fold.parent / name)
    assert "neither a checkpoint nor a log nor a validation" in refused(fold)
    (log,) = trained.fold("3d_tiny").path.glob("training_log_*.txt")
    shutil.copy(log, fold / log.name)
    page = report.build(fold, FoldReader)
    assert "There is no final validation yet." in page
    assert page.count("<img") == 1


# Pieces


def test_curves_are_the_same_from_checkpoint_and_from_text(trained):
    fold = trained.fold("3d_tiny").path
    whole, text = logs.read_logging(fold, logging_of_checkpoints(fold)), logs.read_text_logs(fold)
    logged = trained.fold("3d_tiny").checkpoint["logging"]
    assert whole["train_losses"] == logged["train_losses"]
    for name in ("train_losses", "val_losses", "mean_fg_dice"):
        assert text[name] == pytest.approx(whole[name], abs=1e-4), name
    assert text["seconds"] == pytest.approx(whole["seconds"], abs=1e-2)
    assert text["lrs"] == pytest.approx(whole["lrs"], abs=1e-5)


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"logging": {"train_losses": [1.0]}, "other": Bomb()}, tmp_path / "checkpoint_final.pth")
    (tmp_path / "training_log_1.txt").write_text("x: Epoch 0\nx: train_loss 0.5\nx: val_loss 0.4\n")
    assert logs.read_logging(tmp_path, logging_of_checkpoints(tmp_path))["train_losses"] == [0.5]
    assert not (tmp_path / "ran").exists()


def test_curves_come_from_the_text_where_it_is_ahead_of_the_checkpoint(tmp_path):
    torch.save({"logging": {"train_losses": [1.0, 0.9]}}, tmp_path / "checkpoint_latest.pth")
    lines = [f"x: Epoch {epoch}\nx: train_loss {1 - epoch / 10:.1f}\n" for epoch in range(4)]
    (tmp_path / "training_log_1.txt").write_text("".join(lines[:2]) + "x: Epoch 2\n")
    assert logs.read_logging(tmp_path, logging_of_checkpoints(tmp_path))["train_losses"] == [1.0, 0.9]
    (tmp_path / "training_log_1.txt").write_text("".join(lines))
    assert logs.read_logging(tmp_path, logging_of_checkpoints(tmp_path))["train_losses"] == [1.0, 0.9, 0.8, 0.7]


def test_an_epoch_that_was_cut_off_does_not_hide_how_long_the_others_took(tmp_path):
    fold = cells(tmp_path)
    lines = [f"x: Epoch {epoch}\nx: train_loss 0.5\nx: Epoch time: {epoch + 2}.0 s\n" for epoch in range(3)]
    (fold / "training_log_1.txt").write_text("".join(lines) + "x: Epoch 3\nx: train_loss 0.4\n")
    assert "<b>3.0 s</b><span>median epoch</span>" in report.build(fold, FoldReader, num_cases=0)


@pytest.mark.parametrize("rest", ["train_loss -", "train_loss -0.", "train_loss -x: train_loss -0.7\n"])
def test_a_log_that_was_cut_off_within_a_number_does_not_say_it(rest, tmp_path):
    (tmp_path / "training_log_1.txt").write_text(f"x: Epoch 0\nx: train_loss -0.5\nx: Epoch 1\nx: {rest}")
    assert logs.read_text_logs(tmp_path)["train_losses"] == pytest.approx([-0.5, np.nan], nan_ok=True)


def test_epochs_of_an_earlier_training_are_not_taken_for_those_of_this_one(tmp_path):
    lines = [f"x: Epoch {epoch}\nx: train_loss 0.5\n" for epoch in range(4)]
    (tmp_path / "training_log_1.txt").write_text("".join(lines))
    os.utime(tmp_path / "training_log_1.txt", (1, 1))
    (tmp_path / "training_log_2.txt").write_text("x: Epoch 0\nx: train_loss 0.4\n")
    assert logs.read_logging(tmp_path, logging_of_checkpoints(tmp_path))["train_losses"] == [0.4]


def test_logs_are_in_the_order_of_their_names_whatever_was_copied_last(tmp_path):
    names = [
        f"training_log_2026_{when}.txt" for when in ("9_30_08_00_05", "11_9_9_00_05", "11_9_10_00_05", "11_10_8_3_5")
    ]
    for number, name in enumerate(names):
        epochs = range(2 * number, 2 * number + 2)
        (tmp_path / name).write_text("".join(f"x: Epoch {epoch}\nx: train_loss 0.{epoch}\n" for epoch in epochs))
        os.utime(tmp_path / name, (9 - number, 9 - number))
    losses = logs.read_text_logs(tmp_path)["train_losses"]
    assert losses == pytest.approx([epoch / 10 for epoch in range(8)])


def test_the_configuration_tells_no_folder_of_the_machine(tmp_path):
    fold = cells(tmp_path)
    plans = json.loads((fold.parent / "plans.json").read_text())
    plans["configurations"]["2d"]["logvmamba"] = {"pretrained": "/home/somebody/weights/vmamba.pth", "seed": 1}
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    page = report.build(fold, FoldReader)
    assert "vmamba.pth" in page
    assert "somebody" not in page


@pytest.mark.parametrize("text", ["{}", '{"labels": {"background": 0, "a": 1}}', '{"labels": {"a": "x"}}', "[]"])
def test_a_dataset_json_that_is_none_is_named(text, tmp_path):
    fold = cells(tmp_path)
    (fold.parent / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(fold.parent / "dataset.json"))):
        report.build(fold, FoldReader)


def test_an_output_without_a_folder_is_refused(tmp_path, capsys):
    fold = cells(tmp_path)
    for target, words in ((tmp_path / "no/a.html", f"there is no folder {tmp_path / 'no'}"), (tmp_path, "is a folder")):
        assert main(["report", str(fold), "--output", str(target)]) == 2
        assert words in capsys.readouterr().err


def colours(png: bytes, tmp_path: Path) -> np.ndarray:
    (tmp_path / "picture.png").write_bytes(png)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "picture.png")))[..., :3]


def share(pixels: np.ndarray, colour: str) -> float:
    wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    return float((np.abs(pixels.astype(int) - wanted).max(axis=-1) < 45).mean())


@pytest.mark.parametrize(
    ("truth", "prediction", "shown"),
    [(1, 1, None), (1, 0, pictures.MISSED), (0, 1, pictures.INVENTED), (1, 2, pictures.CONFUSED)],
)
def test_errors_are_painted_in_the_colour_of_their_kind(truth, prediction, shown, tmp_path):
    masks = [np.zeros((20, 24, 28), int) for _ in range(2)]
    for mask, label in zip(masks, (truth, prediction)):
        mask[4:16, 4:20, 4:24] = label
    case = pictures.CaseImages(np.zeros((20, 24, 28), np.float32), *masks, (2.0, 1.0, 1.0))
    pixels = colours(pictures.paint(case), tmp_path)
    errors = pixels[:, pixels.shape[1] * 3 // 4 :]
    for colour in pictures.ERRORS.values():
        assert (share(errors, colour) > 0.1) == (colour == shown), colour


# Machado, Oliveira and Fernandes 2009: what is seen with a full deficiency, in linear RGB.
VISION = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def in_lab(colours: Sequence[str], vision: str, opacity: float = 1.0, grey: float = 0.0) -> np.ndarray:
    """CIELAB of colours that are painted with this opacity on grey, as an eye sees them."""
    painted = np.array([[int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)] for colour in colours])
    painted = opacity * painted + (1 - opacity) * grey
    linear = np.where(painted <= 0.04045, painted / 12.92, ((painted + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(VISION[vision]).T, 1e-9, 1)
    seen = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(seen[None])[0]


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return deltaE_ciede2000(first[:, None], second[None])


@pytest.mark.parametrize("vision", VISION)
def test_no_error_has_the_colour_of_a_class_whoever_looks(vision):
    """CIEDE2000: 2 is just seen side by side; full deficiencies bring the best sets of ten down to 9."""
    errors, classes = (in_lab(list(colours), vision) for colours in (pictures.ERRORS.values(), pictures.LABEL_COLOURS))
    assert distances(errors, classes).min() > (22 if vision == "usual" else 13)
    assert distances(errors, errors)[np.triu_indices(3, 1)].min() > (20 if vision == "usual" else 13)
    among = distances(classes, classes)
    assert among[np.triu_indices(len(classes), 1)].min() > (12 if vision == "usual" else 8)
    assert among[:4, :4][np.triu_indices(4, 1)].min() > 13, "few classes are told apart more easily"


@pytest.mark.parametrize("grey", [0.0, 0.3, 0.6, 0.9])
def test_no_error_has_the_colour_of_a_class_once_painted_on_an_image(grey):
    errors = in_lab(list(pictures.ERRORS.values()), "usual", pictures.ERROR_OPACITY, grey)
    classes = in_lab(pictures.LABEL_COLOURS, "usual", pictures.CLASS_OPACITY, grey)
    assert distances(errors, classes).min() > 18


def test_the_legend_names_labels_as_the_data_set_does_and_painted_values_by_their_regions():
    def painted(labels: dict) -> list[str]:
        names = labels_of({"labels": labels, "file_ending": ".nii.gz"}, "dataset.json").names
        values = sorted({value for key in names for value in key} - {0})
        return [report._name_of_value(value, names) for value in values]

    assert painted({"background": 0, "Anterior": 1, "Posterior": 2}) == ["Anterior", "Posterior"]
    regions = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    assert painted(regions) == [
        "whole tumor without tumor core",
        "tumor core without enhancing tumor",
        "enhancing tumor",
    ]
    assert painted({"background": 0, "whole": [1, 2, 3], "core": [3]}) == [
        "whole without core (label 1)",
        "whole without core (label 2)",
        "core",
    ]
    assert painted({"background": 0, "both": [1, 2], "left": 1, "right": 2}) == ["left", "right"]
    assert painted({"background": 0, "organs": [1, 2, 3], "a": 1, "b": 2}) == ["a", "b", "organs without a or b"]


def test_a_class_has_one_colour_on_the_whole_page_and_a_region_of_several_none(page_3d, tmp_path):
    """The dots of the box plots are those of the legend; what no single colour stands for is grey."""
    found = {"dice": {"left": [0.5, 0.6], "all": [0.7, 0.8]}}
    (tmp_path / "boxes.png").write_bytes(pictures.box_plots(found, {"left": pictures.colour_of(3)}))
    pixels = colours((tmp_path / "boxes.png").read_bytes(), tmp_path).astype(int)
    assert share(pixels, pictures.colour_of(3)) > 0
    assert share(pixels, pictures.colour_of(1)) == 0
    legend = re.findall(r"<i style='background:(#\w{6})'></i>([^<]+)", page_3d.read_text())
    assert [name for _, name in legend] == [
        "whole tumor without tumor core",
        "tumor core without enhancing tumor",
        "enhancing tumor",
        *pictures.ERRORS,
    ]
    assert len({colour for colour, _ in legend}) == len(legend)


def test_planes_go_where_most_is_wrong_and_keep_their_proportions():
    truth = np.zeros((10, 20, 30), int)
    truth[:, 5:15, 5:25] = 1
    prediction = truth.copy()
    prediction[7] = 0
    planes = pictures._planes(pictures.CaseImages(None, truth, prediction, (5.0, 1.0, 1.0)))
    assert planes[0].title == "z = 7"
    assert [plane.truth.shape for plane in planes] == [(20, 30), (10, 30), (10, 20)]
    assert [plane.aspect for plane in planes] == [1.0, 5.0, 5.0]


def test_an_epoch_between_two_without_a_value_is_seen():
    def blue(*losses: float) -> int:
        picture = imread(io.BytesIO(pictures.curves({"train_losses": losses})))[..., :3].astype(int)
        return int((np.abs(picture - (0, 0x72, 0xB2)).sum(-1) < 30).sum())

    nothing = blue(np.nan, np.nan, np.nan)  # but for the legend
    assert blue(-0.1, np.nan, -0.3) > nothing + 20
    assert blue(-0.1) > nothing + 10


def test_large_images_are_thinned():
    masks = np.zeros((100, 5000), int)
    (plane,) = pictures._planes(pictures.CaseImages(masks.astype(float), masks, masks, (1.0, 1.0)))
    assert max(plane.truth.shape) <= pictures.LONGEST_SIDE
    assert plane.image.shape == plane.truth.shape


# The way to a run, and to a browser


def test_a_folder_with_several_runs_lists_them_and_writes_nothing(tmp_path, capsys):
    fold = cells(tmp_path)
    other = write_run(tmp_path / "results", MODEL_2D.replace("LoGVMamba", "NoSSM"), 1, {"a": [0.5, 0.5]})
    (fold.parent / "fold_3").mkdir()
    results = tmp_path / "results"
    for path in (results, fold.parents[1]):
        assert main(["report", str(path)]) == 0
        head, *listed = capsys.readouterr().out.splitlines()
        assert head == "3 runs, each with a report of its own: logvmamba report RUN"
        assert sorted(listed) == sorted([str(fold), f"{fold.parent / 'fold_3'}  (no final validation yet)", str(other)])
    assert main(["report", str(results), "--open"]) == 2
    assert "holds 3 runs, and a report is about one: name its folder" in capsys.readouterr().err
    assert main(["report", str(results), "--output", str(tmp_path / "page.html")]) == 2
    assert not list(tmp_path.rglob("*.html"))


def test_a_folder_with_one_run_is_that_run(tmp_path, capsys, monkeypatch):
    fold = cells(tmp_path)
    monkeypatch.chdir(fold)
    for path in (tmp_path / "results", fold.parent, "."):
        assert main(["report", str(path), "--cases", "0"]) == 0
        assert capsys.readouterr().out.startswith(f"{fold / 'report.html'}: ")
        (fold / "report.html").unlink()


def test_a_run_behind_a_link_has_the_page_of_its_name(tmp_path, capsys):
    fold = cells(tmp_path)
    fold.parent.rename(tmp_path / "run_17")
    fold.parent.symlink_to(tmp_path / "run_17")
    for path in (fold, fold.parent, tmp_path / "results"):
        assert main(["report", str(path), "--cases", "0"]) == 0
        assert capsys.readouterr().out.startswith(f"{fold / 'report.html'}: ")
    assert fold.parent.name.partition("__")[0] in (fold / "report.html").read_text()


def test_the_page_opens_in_the_browser_of_the_user(tmp_path):
    fold, seen = cells(tmp_path / "a b"), tmp_path / "seen"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    program.chmod(0o755)
    words = ["logvmamba", "report", fold, "--cases", 0, "--open"]
    run_command(words, BROWSER=f"{program} %s")
    assert seen.read_text() == (fold / "report.html").as_uri()


def test_a_computer_without_a_browser_is_told_where_the_page_is(tmp_path):
    fold = cells(tmp_path)
    nothing = {"PATH": str(tmp_path), "BROWSER": "", "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    done = run_command(["logvmamba", "report", fold, "--cases", 0, "--open"], check=False, **nothing)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    assert sentence == (
        f"logvmamba: there is no browser to show {fold / 'report.html'}: open it by hand, or copy it to a computer "
        "with a browser"
    )
    assert (fold / "report.html").is_file()


@pytest.mark.parametrize("spelled", [str, float, lambda value: f" 0{value}"])
def test_labels_are_drawn_however_their_numbers_are_written(spelled, tmp_path):
    fold = cells(tmp_path)
    expected = report.build(fold, FoldReader, sources=report.Sources(tmp_path / "images"))
    file = fold.parent / "dataset.json"
    content = json.loads(file.read_text())
    content["labels"] = {name: spelled(value) for name, value in content["labels"].items()}
    file.write_text(json.dumps(content))
    assert report.build(fold, FoldReader, sources=report.Sources(tmp_path / "images")) == expected
    content["labels"]["ignore"] = spelled(2)
    del content["labels"]["boundary"]
    file.write_text(json.dumps(content))
    page = report.build(fold, FoldReader, sources=report.Sources(tmp_path / "images"))
    legend = re.search(r"<p class=legend>(.*?)</p>", page)[1]
    assert "interior" in legend
    assert "label 2" not in legend
    assert "ignore" not in legend


# What is refused


def test_what_is_no_fold_is_refused(tmp_path, refused):
    assert "is not the folder of a fold: name TRAINER__PLANS__CONFIGURATION/fold_0" in refused(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_named_and_nothing_is_written(tmp_path, refused):
    fold = cells(tmp_path)
    images = tmp_path / "images"
    with pytest.raises(UserError, match="there is no channel 4: the images have 1, from 0"):
        report.build(fold, FoldReader, sources=report.Sources(images, channel=4))
    wrong = sitk.GetImageFromArray(np.zeros((8, 8), np.uint8))
    sitk.WriteImage(wrong, str(images / "cell_00000_0000.png"))
    with pytest.raises(UserError, match=r"cell_00000_0000.png has shape .* and the prediction"):
        report.build(fold, FoldReader, sources=report.Sources(images))
    (images / "cell_00000_0000.png").write_text("no image")
    with pytest.raises(UserError, match=r"cell_00000_0000.png cannot be read"):
        report.build(fold, FoldReader, sources=report.Sources(images))
    assert not (fold / "report.html").exists()
    assert f"{tmp_path / 'none'} is not a folder" in refused(fold, "--images", tmp_path / "none")


def test_a_folder_of_images_without_any_is_refused(tmp_path):
    fold = cells(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no images"):
        report.build(fold, FoldReader, sources=report.Sources(tmp_path / "empty"))


def test_the_fixture_is_what_compare_reads(tmp_path):
    """Guards the 2D tests above: their fold is one that nnU-Net could have written."""
    fold = cells(tmp_path)
    assert fold.parents[1].name == DATASET
    assert len(read_run(fold).cases) == 4


def test_what_the_page_lacks_is_said_on_the_command_line_too(tmp_path, capsys, monkeypatch):
    fold = cells(tmp_path)
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["report", str(fold)]) == 0
    page = (fold / "report.html").read_text()
    note = "No images were found: name their folder with --images, or set nnUNet_raw."
    assert note in page
    assert f"note: {note}" in capsys.readouterr().out.splitlines()
    assert main(["report", str(fold), "--images", str(tmp_path / "images")]) == 0
    assert "note:" not in capsys.readouterr().out
    for path in sorted((tmp_path / "images").iterdir())[:-1]:
        path.unlink()
    assert main(["report", str(fold), "--images", str(tmp_path / "images")]) == 0
    assert "note: No image of cell_00000 was found" in capsys.readouterr().out


def test_swapped_folders_files_for_runs_and_pages_of_other_kinds_are_refused(tmp_path, capsys):
    fold, text, target = cells(tmp_path), tmp_path / "report.md", tmp_path / "page.md"
    text.write_text("# Report")
    for words, sentence in (
        ([text], f"{text} is a file, and a report is about a folder: name TRAINER__PLANS__CONFIGURATION/fold_0"),
        ([fold, "--output", target], f"is an HTML page: name a file that ends in .html, not {target}"),
        ([fold, "--references", tmp_path / "images"], f"{tmp_path / 'images'} holds images of the cases: name the fol"),
    ):
        assert main(["report", *map(str, words)]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html")) + list(tmp_path.rglob("page.md"))
