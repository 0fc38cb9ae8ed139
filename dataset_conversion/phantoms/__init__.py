"""Generated miniature sources in each data owner's layout, traps included, for the demo and the tests.

They stand for no patient. Equal arguments give byte-identical files; a case depends on seed, shape and its number only,
so cases beyond those trained on can be generated later and are new to the network.

Run from a checkout: ``python -m dataset_conversion.phantoms brats2020 TARGET --cases 12``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from dataset_conversion.core import command_line
from dataset_conversion.phantoms.acdc import write_acdc
from dataset_conversion.phantoms.anatomy import MAX_EDGE
from dataset_conversion.phantoms.brats2020 import write_brats2020
from dataset_conversion.phantoms.cells import write_cells
from dataset_conversion.phantoms.endovis2017 import write_endovis2017
from dataset_conversion.phantoms.hippocampus import write_hippocampus
from dataset_conversion.phantoms.long_range import write_long_range

LAYOUTS: dict[str, Callable[..., Path]] = {
    "brats2020": write_brats2020,
    "brats2021": partial(write_brats2020, release="2021"),
    "brats2023": partial(write_brats2020, release="2023-GLI"),
    "hippocampus": write_hippocampus,
    "acdc": write_acdc,
    "endovis2017": write_endovis2017,
    "cells": write_cells,
    "long_range": write_long_range,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write one phantom source into an empty or new folder."""
    parser = command_line.Parser(
        prog="python -m dataset_conversion.phantoms",
        description=__doc__,
        epilog=command_line.examples("python -m dataset_conversion.phantoms brats2020 TARGET --cases 12"),
        formatter_class=command_line.HelpFormatter,
    )
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("target", type=Path, help="new or empty folder")
    parser.add_argument(
        "--cases",
        type=int,
        default=12,
        help="default 12; acdc: patients; endovis2017: frames of each sequence; cells: pictures",
    )
    parser.add_argument(
        "--test-cases",
        type=command_line.natural,
        help="acdc: test patients; endovis2017: test sequences; cells: tuning; long_range: images in imagesTs",
    )
    parser.add_argument("--first-number", type=int, help="3D only: number of the first case, default 1")
    parser.add_argument("--unlabelled", action="store_true", help="BraTS only: the validation layout, without masks")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help=f"3D only: voxels, 16 to {MAX_EDGE} each"
    )
    parser.add_argument("--seed", type=command_line.natural)
    pairs = parser.add_argument_group("long_range", "pairs of a cue and a target that is named by it")
    pairs.add_argument("--distance", type=int, help="voxels between them, default 44")
    pairs.add_argument("--dims", type=int, choices=(2, 3), help="axes of the images, default 2")
    pairs.add_argument("--along", choices=("fast", "slow"), help="the last axis (default) or the first")
    pairs.add_argument("--control", action="store_true", default=None, help="the class stands in the target itself")
    arguments = parser.parse_args(argv)
    tests = {
        "acdc": "num_test_patients",
        "endovis2017": "test_sequences",
        "cells": "num_tuning",
        "long_range": "num_tests",
    }
    of_pairs = {name: getattr(arguments, name) for name in ("distance", "dims", "along", "control")}
    if arguments.layout != "long_range" and any(value is not None for value in of_pairs.values()):
        parser.error("--distance, --dims, --along and --control are for long_range only")
    if arguments.layout == "long_range" and arguments.shape:
        parser.error("--shape is not for long_range, whose images are of one size")
    if arguments.unlabelled and not arguments.layout.startswith("brats"):
        parser.error("--unlabelled is for BraTS only")
    if arguments.test_cases is not None and arguments.layout not in tests:
        parser.error(f"--test-cases is for {', '.join(tests)} only")
    if arguments.layout in ("endovis2017", "cells") and (arguments.shape or arguments.first_number is not None):
        parser.error("--shape and --first-number are for the 3D layouts only")
    given = {
        "shape": arguments.shape and tuple(arguments.shape),
        "seed": arguments.seed,
        "first_number": arguments.first_number,
        "labelled": False if arguments.unlabelled else None,
        **of_pairs,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if arguments.test_cases is not None:
        count = arguments.test_cases
        options[tests[arguments.layout]] = range(1, count + 1) if arguments.layout == "endovis2017" else count

    def command() -> None:
        folder = LAYOUTS[arguments.layout](arguments.target, arguments.cases, **options)
        print(f"{arguments.cases} generated case(s): {folder}")

    return command_line.run(command)
