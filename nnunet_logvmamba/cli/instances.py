"""``logvmamba instances``: three-class predictions of cells become instance maps, scores and a gallery."""

from __future__ import annotations

import argparse
import shutil
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import add_scoring, add_working, at_least, examples
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.metrics import title_of
from nnunet_logvmamba.files import replacing, staged_files

if TYPE_CHECKING:
    from nnunet_logvmamba.evaluation.cells import CellFiles, CellSettings

IMAGE_SUFFIXES = ("_0000",)
SCORES, SUMMARY = "scores.csv", "scores.json"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``instances`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "instances",
        help="turn three-class predictions of cells into instance maps, score and show them",
        description="Turn a folder of predictions (0 background, 1 interior, 2 boundary) into instance maps, "
        "OUT/<case>_label.tiff. With --references, score them into OUT/scores.csv and OUT/scores.json; with --images, "
        "draw a gallery of outlines.",
        **examples(
            "how-to/cells.md",
            "logvmamba instances predictions maps",
            "logvmamba instances predictions maps --references truth --images imagesTs",
        ),
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of PNG or TIFF predictions")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to; new or empty")
    recover = parser.add_argument_group("from classes to instances")
    recover.add_argument(
        "--grow",
        type=at_least(0),
        default=2,
        metavar="PX",
        help="widen every piece of interior by so many pixels; 0 is comparable with published tables "
        "(default: %(default)s)",
    )
    recover.add_argument(
        "--min-size",
        type=at_least(0, int),
        default=16,
        metavar="PX",
        help="drop pieces of fewer pixels before they are widened (default: %(default)s)",
    )
    recover.add_argument("--fill-holes", action="store_true", help="fill what a piece of interior encloses")
    recover.add_argument("--watershed", action="store_true", help="cut pieces of interior at their waists")
    score = parser.add_argument_group("scores")
    score.add_argument("--references", metavar="DIR", type=Path, help="folder of true instance maps, <case>_label.tiff")
    add_scoring(score)
    score.add_argument(
        "--tolerance", type=at_least(0), default=2, metavar="PX", help="of the surface Dice (default: %(default)s)"
    )
    look = parser.add_argument_group("gallery")
    look.add_argument("--images", metavar="DIR", type=Path, help="folder of the images, <case>.png or <case>_0000.png")
    look.add_argument("--gallery", metavar="FILE.png", type=Path, help="where to draw it (default: OUT/gallery.png)")
    look.add_argument(
        "--gallery-cases",
        type=at_least(1, int),
        default=8,
        metavar="N",
        help="rows, spread over the cases in the order of their names (default: %(default)s)",
    )
    add_working(parser, "OUT")


def run(args: argparse.Namespace) -> int:
    """Write the instance maps, and scores and gallery where asked for.

    Raises:
        UserError: If any file does not fit; nothing is written then.
    """
    from nnunet_logvmamba.cores import usable_cores
    from nnunet_logvmamba.evaluation.cases import (
        FOLD_ALL,
        GALLERY,
        PICTURE_ENDINGS,
        check_pairs,
        find_cases,
        is_of_training_cases,
    )
    from nnunet_logvmamba.evaluation.cells import LABEL_SUFFIXES, CellFiles, CellSettings, recover_and_score
    from nnunet_logvmamba.evaluation.parallel import map_cases

    if args.gallery is not None and args.images is None:
        raise UserError("--gallery needs the images: name their folder with --images")
    if args.gallery is not None and args.gallery.suffix.lower() != ".png":
        raise UserError(f"--gallery writes a PNG, so '{args.gallery}' must end in .png")
    if args.gallery is not None and args.gallery.exists() and not args.overwrite:
        raise UserError(f"{args.gallery} exists; name another file, or replace it with --overwrite")
    predictions = find_cases(args.predictions, endings=PICTURE_ENDINGS)
    made = {f"{case}{suffix}" for case in predictions for suffix in LABEL_SUFFIXES}  # by a call with OUT there
    if made & predictions.keys():
        drawn = {case for case, path in predictions.items() if path.name == GALLERY}
        predictions = {case: path for case, path in predictions.items() if case not in made | drawn}
    references, images, unscored = {}, {}, []
    if args.references is not None:
        maps = args.references.parent / args.references.name.replace("labels", "instances", 1)
        if args.references.name.startswith("labels") and maps.is_dir():
            raise UserError(f"{args.references} holds the classes of nnU-Net; the true instance maps are in {maps}")
        references = find_cases(args.references, endings=PICTURE_ENDINGS, suffixes=LABEL_SUFFIXES)
        unscored = check_pairs(
            predictions, references, args.predictions, args.references, predicted_only=args.predicted_only
        )
    if args.images is not None:
        images = find_cases(args.images, endings=PICTURE_ENDINGS, suffixes=IMAGE_SUFFIXES)
    shown = _spread(list(predictions), args.gallery_cases) if args.images is not None else []
    for case in shown:
        if case not in images:
            raise UserError(f"{args.images} holds no image of the case '{case}'")

    settings = CellSettings(**{field.name: getattr(args, field.name) for field in fields(CellSettings)})
    # The gallery elsewhere is written with the rest, and gets its name once all of that is in place.
    elsewhere = replacing(args.gallery) if args.gallery is not None else nullcontext()
    last = (SCORES, SUMMARY, GALLERY)
    with elsewhere as gallery, staged_files(args.out, overwrite=args.overwrite, last=last) as staged:
        targets = {case: staged / f"{case}_label.tiff" for case in predictions}
        cases = [CellFiles(case, path, references.get(case), targets[case]) for case, path in predictions.items()]
        do_case = partial(recover_and_score, settings)
        rows = map_cases(do_case, cases, processes=args.jobs or usable_cores(), text="instances")
        if references:
            notes = [FOLD_ALL] * is_of_training_cases(args.predictions)
            terminal.show(_write_scores(settings, rows, unscored, notes, staged))
        if shown:
            chosen = {case.case: case for case in cases}
            scores = {row["case"]: row for row in rows}
            exhibits = [(chosen[case], targets[case], images[case], scores[case]) for case in shown]
            _draw(exhibits, staged / GALLERY, settings)
        if gallery is not None:
            gallery.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(staged / GALLERY, gallery)  # perhaps to another disk
    terminal.show(f"{len(rows)} instance map(s) with {sum(row['predicted'] for row in rows):,} instances: {args.out}")
    if shown:
        terminal.show(f"gallery of {len(shown)} case(s): {args.gallery or args.out / GALLERY}")
    return 0


def _spread(cases: list[str], number: int) -> list[str]:
    step = max(1.0, len(cases) / number)
    return [cases[int(index * step)] for index in range(min(number, len(cases)))]


def _write_scores(settings: CellSettings, rows: list[dict], unscored: list[str], notes: list[str], folder: Path) -> str:
    """Write the table and the summary, and give the summary as text."""
    from nnunet_logvmamba.evaluation.cells import summarize
    from nnunet_logvmamba.evaluation.report import as_text_table, write_csv, write_json
    from nnunet_logvmamba.evaluation.scoring import matched_in_words, totals

    summary = summarize(settings, rows)
    write_csv(folder / SCORES, rows, list(rows[0]))
    write_json(folder / SUMMARY, {**summary, "cases_not_scored": unscored} | ({"notes": notes} if notes else {}))
    table = [
        [title_of(name), one["mean"], one["std"], one["cases"], one["cases_left_out"]]
        for name, one in summary["mean"].items()
    ]
    recipe = f"grow {settings.grow:g} px, pieces from {settings.min_size} px on"
    recipe += ", holes filled" * settings.fill_holes + ", cut at waists" * settings.watershed
    recipe += f"; {matched_in_words(settings.iou, settings.border, settings.tile)}"
    header = ["score", "mean", "std", "images", "left out"]
    lines = [f"total: {totals(summary['sum'])}", recipe, *(f"note: {note}" for note in notes)]
    return "\n".join([as_text_table(header, table, terminal.width()), *lines, ""])


def _draw(cases: list[tuple[CellFiles, Path, Path, dict]], path: Path, settings: CellSettings) -> None:
    from nnunet_logvmamba.evaluation.cases import read_labels, read_picture
    from nnunet_logvmamba.evaluation.gallery import Exhibit, draw_gallery

    exhibits = []
    for case, instances_file, image_file, row in cases:
        image, instances = read_picture(image_file), read_labels(instances_file).values
        if image.ndim not in (2, 3) or image.shape[:2] != instances.shape:
            raise UserError(
                f"{image_file} has the shape {image.shape} but its prediction {case.prediction} {instances.shape}"
            )
        truth = read_labels(case.reference).values if case.reference else None
        scores = "" if truth is None else f"F1 {row['f1']:.2f} (TP {row['tp']}, FP {row['fp']}, FN {row['fn']})"
        exhibits.append(Exhibit(case.case, image, instances, truth, scores))
    draw_gallery(exhibits, path, iou=settings.iou, border=settings.border, tile=settings.tile)
