"""``logvmamba instances``: three-class predictions of cells become instance maps, scores and a gallery."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nnunet_logvmamba.plugin.cli.options import add_scoring, add_working, at_least
from nnunet_logvmamba.plugin.errors import UserError

IMAGE_SUFFIXES = ("_0000",)
LABEL_SUFFIXES = ("_label",)
SCORES, SUMMARY = "scores.csv", "scores.json"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``instances`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "instances",
        help="turn three-class predictions of cells into instance maps, score and show them",
        description="Turn a folder of predictions (0 background, 1 interior, 2 boundary) into instance maps, "
        "OUT/<case>_label.tiff. With --references, score them into OUT/scores.csv and OUT/scores.json; with --images, "
        "draw a gallery of outlines.",
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
        "--tolerance",
        type=at_least(0),
        default=2,
        metavar="PX",
        help="of the surface Dice (default: %(default)s)",
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


@dataclass(frozen=True)
class Job:
    """One case and its files."""

    case: str
    prediction: Path
    reference: Path | None
    target: Path


def run(args: argparse.Namespace) -> int:
    """Write the instance maps, and scores and gallery where asked for.

    Raises:
        UserError: If any file does not fit; nothing is written then.
    """
    from nnunet_logvmamba.evaluation.cases import CaseError

    try:
        return _run(args)
    except CaseError as error:
        raise UserError(str(error)) from error


def _run(args: argparse.Namespace) -> int:
    from nnunet_logvmamba.evaluation.cases import PICTURE_ENDINGS, CaseError, check_pairs, find_cases
    from nnunet_logvmamba.evaluation.parallel import default_processes, map_cases
    from nnunet_logvmamba.evaluation.report import staged_files

    if args.gallery is not None and args.images is None:
        raise UserError("--gallery needs the images: name their folder with --images")
    if args.gallery is not None and args.gallery.suffix.lower() != ".png":
        raise UserError(f"--gallery writes a PNG, so '{args.gallery}' must end in .png")
    if args.gallery is not None and args.gallery.exists() and not args.overwrite:
        raise UserError(f"{args.gallery} exists; name another file, or replace it with --overwrite")
    predictions = find_cases(args.predictions, endings=PICTURE_ENDINGS)
    references, images, unscored = {}, {}, []
    if args.references is not None:
        references = find_cases(args.references, endings=PICTURE_ENDINGS, suffixes=LABEL_SUFFIXES)
        unscored = check_pairs(
            predictions, references, args.predictions, args.references, predicted_only=args.predicted_only
        )
    if args.images is not None:
        images = find_cases(args.images, endings=PICTURE_ENDINGS, suffixes=IMAGE_SUFFIXES)
    shown = _spread(list(predictions), args.gallery_cases) if args.images is not None else []
    for case in shown:
        if case not in images:
            raise CaseError(f"{args.images} holds no image of the case '{case}'")

    with staged_files(args.out, overwrite=args.overwrite, last=(SCORES, SUMMARY)) as staged:
        jobs = [
            Job(case, path, references.get(case), staged / f"{case}_label.tiff") for case, path in predictions.items()
        ]
        rows = map_cases(partial(_do_case, args), jobs, processes=args.jobs or default_processes(), text="instances")
        if references:
            print(_write_scores(args, rows, unscored, staged))
        if shown:
            chosen = {job.case: job for job in jobs}
            scores = {row["case"]: row for row in rows}
            picture = staged / "gallery.png"
            _draw([(chosen[case], images[case], scores[case]) for case in shown], picture, args.iou)
            if args.gallery is not None:
                args.gallery.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(picture, args.gallery)
    print(f"{len(rows)} instance map(s) with {sum(row['predicted'] for row in rows):,} instances: {args.out}")
    if shown:
        print(f"gallery of {len(shown)} case(s): {args.gallery or args.out / 'gallery.png'}")
    return 0


def _spread(cases: list[str], number: int) -> list[str]:
    step = max(1.0, len(cases) / number)
    return [cases[int(index * step)] for index in range(min(number, len(cases)))]


def _do_case(args: argparse.Namespace, job: Job) -> dict:
    """Recover, write and score one case; give its row."""
    import numpy as np
    from tifffile import imwrite

    from nnunet_logvmamba.evaluation.cases import CaseError, check_same_grid, read_labels
    from nnunet_logvmamba.evaluation.instances import recover_instances
    from nnunet_logvmamba.evaluation.scoring import instance_scores, semantic_scores

    classes = read_labels(job.prediction)
    try:
        instances = recover_instances(
            classes.values,
            grow=args.grow,
            min_size=args.min_size,
            fill_holes=args.fill_holes,
            watershed=args.watershed,
        )
    except ValueError as error:
        raise CaseError(f"{job.prediction}: {error}") from error
    number = int(instances.max())
    row = {"case": job.case, "label": "instances", "predicted": number}
    if job.reference is not None:
        truth = read_labels(job.reference)
        check_same_grid(truth, classes, job.reference, job.prediction)
        row["true"] = len(np.unique(truth.values[truth.values > 0]))
        row |= instance_scores(truth.values, instances, iou=args.iou, border=args.border, tile=args.tile)
        row |= semantic_scores(truth.values, instances, classes=classes.values, tolerance_px=args.tolerance)
    dtype = np.uint16 if number <= np.iinfo(np.uint16).max else np.int32
    imwrite(job.target, instances.astype(dtype), compression="zlib")
    return row


def _write_scores(args: argparse.Namespace, rows: list[dict], unscored: list[str], folder: Path) -> str:
    """Write the table and the summary, and give the summary as text."""
    from nnunet_logvmamba.evaluation.report import as_text_table, describe, write_csv, write_json

    definitions = _definitions(args)
    means = {name: describe([row[name] for row in rows]) for name in definitions}
    write_csv(folder / SCORES, rows, list(rows[0]))
    write_json(
        folder / SUMMARY,
        {
            "settings": {
                "grow_px": args.grow,
                "min_size_px": args.min_size,
                "fill_holes": args.fill_holes,
                "watershed": args.watershed,
                "iou": args.iou,
                "border_px": args.border,
                "tile_px": args.tile,
                "tolerance_px": args.tolerance,
            },
            "definitions": definitions,
            "average": "mean of per-image values; images in which a score is undefined are left out and counted",
            "mean": means,
            "cases": [row["case"] for row in rows],
            "cases_not_scored": unscored,
        },
    )
    table = [[name, one["mean"], one["std"], one["cases"], one["cases_left_out"]] for name, one in means.items()]
    recipe = f"grow {args.grow:g} px, IoU {args.iou:g}, instances within {args.border} px of the border left out"
    return f"{as_text_table(['score', 'mean', 'std', 'images', 'left out'], table)}\n{recipe}\n"


def _definitions(args: argparse.Namespace) -> dict[str, str]:
    """Say for every score what it is, with this run's settings."""
    from nnunet_logvmamba.evaluation.scoring import INSTANCE_METRICS, instance_definitions

    matched = instance_definitions(args.iou, args.border, args.tile)
    near = f"share of both outlines, by length, within {args.tolerance:g} px of the other"
    return {
        **{name: matched[name] for name in INSTANCE_METRICS},
        "dice_foreground": "Dice of all true instances and all predicted instances",
        "nsd_foreground": f"{near}; all true instances against all predicted instances",
        "dice_interior": "Dice of all true instances and the predicted interior class",
        "nsd_interior": f"{near}; all true instances against the predicted interior class",
    }


def _draw(cases: list[tuple[Job, Path, dict]], path: Path, iou: float) -> None:
    from nnunet_logvmamba.evaluation.cases import CaseError, read_labels, read_picture
    from nnunet_logvmamba.evaluation.gallery import Exhibit, draw_gallery

    exhibits = []
    for job, image_file, row in cases:
        image, instances = read_picture(image_file), read_labels(job.target).values
        if image.ndim not in (2, 3) or image.shape[:2] != instances.shape:
            raise CaseError(
                f"{image_file} has the shape {image.shape} but its prediction {job.prediction} {instances.shape}"
            )
        truth = read_labels(job.reference).values if job.reference else None
        scores = "" if truth is None else f"F1 {row['f1']:.2f} (TP {row['tp']}, FP {row['fp']}, FN {row['fn']})"
        exhibits.append(Exhibit(job.case, image, instances, truth, scores))
    draw_gallery(exhibits, path, iou=iou)
