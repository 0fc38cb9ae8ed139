"""``logvmamba evaluate``: score a folder of predictions and say exactly what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_logvmamba.cli import terminal
from nnunet_logvmamba.cli.options import above_zero, add_scoring, add_working, at_least, examples, metric
from nnunet_logvmamba.errors import UserError
from nnunet_logvmamba.evaluation.metrics import INSTANCE_METRICS, titles
from nnunet_logvmamba.evaluation.metrics import MASK_METRICS as METRICS
from nnunet_logvmamba.evaluation.policies import AVERAGES, POLICIES, policy_for
from nnunet_logvmamba.files import check_target


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``evaluate`` to the sub-commands of ``logvmamba``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score predictions: overlap, surfaces, lesions, instances",
        description="Score the segmentations of one folder with those of another, paired by the names of their files "
        "(NIfTI, NRRD, MHA, GIPL, PNG, BMP, TIFF). Prints a table; with --output also writes scores.csv (a row per "
        "case and label), scores.json (definitions, policy, tolerances, means with case counts) and scores.txt.",
        **examples(
            "how-to/evaluate.md",
            "logvmamba evaluate predictions labelsTs --output scores",
            "logvmamba evaluate maps instancesTs --instances",
        ),
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of predicted segmentations")
    parser.add_argument("references", metavar="REFERENCES", type=Path, help="folder of true ones, e.g. labelsTr")
    parser.add_argument(
        "--dataset-json",
        type=Path,
        metavar="FILE",
        help="labels and regions (default: the dataset.json that nnU-Net left beside either folder, else the values "
        "that occur)",
    )
    parser.add_argument("--instances", action="store_true", help="the files are instance maps, <case>_label.tiff or so")
    parser.add_argument(
        "--metrics",
        nargs="+",
        type=metric(METRICS + INSTANCE_METRICS),
        metavar="METRIC",
        help=f"out of {titles(METRICS)} (default: Dice IoU HD95 NSD), and with --instances also "
        f"{titles(INSTANCE_METRICS)} (default then: F1 object_iou average_precision Dice IoU NSD); in any "
        "capitalisation",
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        help="what empty masks score (default: brats where dataset.json names it, else nnunet)",
    )
    parser.add_argument(
        "--average",
        choices=AVERAGES,
        default="class-first",
        help="over cases, then labels; or over the labels of each case, then cases (default: %(default)s)",
    )
    parser.add_argument(
        "--hd95",
        choices=("joined", "max"),
        default="joined",
        help="percentile of both directions together, or the larger of both percentiles (default: %(default)s)",
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        metavar="VALUE",
        help="of NSD, in mm or pixels: one for all, or as LABEL=VALUE (default: the published one of the structure, "
        "else 2)",
    )
    parser.add_argument(
        "--spacing",
        nargs="+",
        type=above_zero,
        metavar="MM",
        help="voxel size in place of the files', one value or one per axis in nnU-Net's order (slices, rows, columns); "
        "1 scores in voxels",
    )
    parser.add_argument(
        "--ignore-position",
        action="store_true",
        help="compare voxels as they are stored though origin or direction differ",
    )
    parser.add_argument(
        "--reorient",
        action="store_true",
        help="with --ignore-position, still turn predictions that lie on the reference's grid in another orientation, "
        "as nnU-Net's reorienting readers do",
    )
    add_scoring(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write to; new or empty")
    add_working(parser, "--output")


def run(args: argparse.Namespace) -> int:
    """Score, print the table, and write it where asked to.

    Raises:
        UserError: If anything does not fit; nothing is written then.
    """
    from nnunet_logvmamba.cores import usable_cores
    from nnunet_logvmamba.evaluation import folders
    from nnunet_logvmamba.evaluation.scoring import DEFAULT_INSTANCE_METRICS, DEFAULT_METRICS, Settings

    metrics = tuple(dict.fromkeys(args.metrics or (DEFAULT_INSTANCE_METRICS if args.instances else DEFAULT_METRICS)))
    of_instances = [metric for metric in metrics if metric in INSTANCE_METRICS]
    if of_instances and not args.instances:
        raise UserError(f"{of_instances[0]} is a score of instance maps: if the files are, add --instances")
    if args.instances and args.dataset_json is not None:
        raise UserError("--instances takes no --dataset-json: instance maps have no labels")
    tolerances = _tolerances(args.tolerance)
    if args.output is not None:
        check_target(args.output, overwrite=args.overwrite)
    if tolerances is not None and "nsd" not in metrics:
        raise UserError("--tolerance is that of NSD, which is not among the --metrics: add it, or leave the option out")
    processes = args.jobs or usable_cores()
    file = args.dataset_json or folders.find_dataset_json(args.predictions, args.references)
    if not args.instances:
        _refuse_options_of_instances(args)
        _refuse_instance_maps(args.predictions, args.references, labels_known=file is not None)
    pairs, unscored = folders.find_pairs(
        args.predictions,
        args.references,
        suffixes=("_label",) if args.instances else (),
        predicted_only=args.predicted_only,
    )
    labels = None
    if not args.instances:
        labels = folders.read_dataset_json(file) if file else folders.find_labels(pairs, processes=processes)
    names = [*([labels.dataset_name] if labels else []), *(folders.dataset_names(file) if file else [])]
    settings = Settings(
        metrics=metrics,
        policy=args.policy or policy_for(*names),
        joining=args.hd95,
        iou=args.iou,
        border=args.border,
        tile=args.tile,
    )
    evaluation = folders.evaluate(
        pairs,
        labels,
        settings,
        tolerances=tolerances,
        spacing=args.spacing,
        position=not args.ignore_position,
        turn=args.reorient,
        average=args.average,
        processes=processes,
    )
    evaluation.summary.update(
        predictions=str(args.predictions), references=str(args.references), cases_not_scored=unscored
    )
    terminal.show(folders.as_text(evaluation.summary, terminal.width()))
    if args.output is not None:  # after the table, which took its time and is there even if this fails
        evaluation.write(args.output, overwrite=args.overwrite)
        terminal.show(f"\nwritten: {args.output}")
    return 0


def _refuse_options_of_instances(args: argparse.Namespace) -> None:
    for name in ("iou", "border", "tile"):
        if name in getattr(args, "given", ()):
            raise UserError(f"--{name} is of instance maps: if the files are, add --instances, else leave it out")


def _refuse_instance_maps(predictions: Path, references: Path, *, labels_known: bool) -> None:
    """Say what to add for maps that ``logvmamba instances`` or the converter of cells has named or put there."""
    suffix = "_label"
    if predictions.is_dir() and references.is_dir():
        true = {path.name.partition(".")[0] for path in references.iterdir()}
        for path in sorted(predictions.glob(f"*{suffix}.tif*")):
            if path.stem.removesuffix(suffix) in true and path.stem not in true:
                raise UserError(f"{path} is named as an instance map: to score instances, add --instances")
            if path.stem in true and not labels_known:
                raise UserError(
                    f"{path} is named as an instance map: to score instances, add --instances; if it holds classes, "
                    "name their dataset.json with --dataset-json"
                )
    if references.name.startswith("instances") and (references.parent / "dataset.json").is_file():
        raise UserError(
            f"{references} holds true instance maps: make instances of the predictions with logvmamba instances "
            f"PREDICTIONS OUT, then score OUT with --instances"
        )


def _tolerances(words: list[str] | None) -> dict[str, float] | float | None:
    if words is None:
        return None
    values: dict[str, float] = {}
    for word in words:
        name, sign, text = word.rpartition("=")
        try:
            value = at_least(0)(text)
        except argparse.ArgumentTypeError as error:
            raise UserError(f"--tolerance {word}: {error}") from error
        if not sign and len(words) > 1:
            raise UserError(f"--tolerance takes one value, or LABEL=VALUE for each label; '{word}' names no label")
        if not sign:
            return value
        if name in values:
            raise UserError(f"--tolerance names '{name}' twice")
        values[name] = value
    return values
