"""Time ``logvmamba doctor DATASET`` beside the mere reading of its files by nnU-Net's reader, in turns.

``python benchmarks/bench_dataset.py [--cases 12] [--channels 4] [--plain] [--jobs N] [--rounds 3]`` generates cases of
240 x 240 x 155 voxels in 16 bits with a mask, about as hard to compress as real ones, and prints both times and their
ratio. ``--plain`` writes .nii in place of .nii.gz. Neither figure holds the start of Python and of its processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measure import side_by_side

from nnunet_logvmamba.cores import usable_cores
from nnunet_logvmamba.evaluation.parallel import map_cases
from nnunet_logvmamba.plugin import raw_dataset

SHAPE = (155, 240, 240)
DISTINCT = 2  # so many cases are generated, the others are links to their files


def write(folder: Path, cases: int, channels: int, ending: str) -> None:
    """A data set of ellipsoids of noise in nothing, a sixth of the volume, with a mask of three labels."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    z, y, x = np.ogrid[tuple(slice(size) for size in SHAPE)]
    brain = ((z - 75) / 65) ** 2 + ((y - 120) / 80) ** 2 + ((x - 120) / 65) ** 2 < 1
    tumour = np.select([((z - 80) ** 2 + (y - 110) ** 2 + (x - 140) ** 2) < r**2 for r in (9, 15, 24)], [1, 3, 2])
    for case in range(cases):
        files = [folder / "imagesTr" / f"case_{case:04d}_{channel:04d}{ending}" for channel in range(channels)]
        files.append(folder / "labelsTr" / f"case_{case:04d}{ending}")
        for number, file in enumerate(files):
            if case >= DISTINCT:
                os.link(str(file).replace(f"case_{case:04d}", f"case_{case % DISTINCT:04d}"), file)
                continue
            noise = np.random.default_rng((case, number)).standard_normal(SHAPE, dtype=np.float32)
            values = tumour.astype(np.uint8) if file is files[-1] else np.where(brain, 400 + 40 * noise, 0)
            sitk.WriteImage(
                sitk.GetImageFromArray(values.astype(np.uint8 if file is files[-1] else np.int16)), str(file)
            )
    content = {
        "channel_names": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": {"background": 0, "core": 1, "oedema": 2, "enhancing": 3},
        "numTraining": cases,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def read(case: tuple[list[str], str]) -> tuple[int, ...]:
    """Read one case as nnU-Net's planning and preprocessing do."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    images, label = case
    return SimpleITKIO().read_images(images)[0].shape + SimpleITKIO().read_seg(label)[0].shape


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="files that are not compressed")
    parser.add_argument("--jobs", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the data set goes; by default a temporary folder")
    args = parser.parse_args()
    ending = ".nii" if args.plain else ".nii.gz"
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        folder = Path(root) / "Dataset123_Ellipsoids"
        write(folder, args.cases, args.channels, ending)
        cases = [
            (
                [
                    str(folder / "imagesTr" / f"{label.name[: -len(ending)]}_{channel:04d}{ending}")
                    for channel in range(args.channels)
                ],
                str(label),
            )
            for label in sorted((folder / "labelsTr").iterdir())
        ]
        candidates = {
            "reading": functools.partial(map_cases, read, cases, processes=args.jobs, text="reading"),
            "doctor": functools.partial(raw_dataset.examine, folder, processes=args.jobs),
        }
        found = raw_dataset.examine(folder, processes=args.jobs)
        if found.cases != args.cases or found.seen:
            raise SystemExit(f"bench_dataset: a sound data set is not found so: {found.seen[:1]}")
        seconds = side_by_side(candidates, rounds=args.rounds, slow_rounds=args.rounds)
        reading, doctor = (seconds[name]["seconds"] for name in candidates)
        print(f"{args.cases} cases, {args.channels} channels and a mask each, {ending}, {args.jobs} process(es)")
        print(f"reading {reading:.2f} s, doctor {doctor:.2f} s, ratio {doctor / reading:.2f}")
        pairs = zip(*(seconds[name]["rounds"] for name in ("doctor", "reading")))
        print("ratio by round:", " ".join(f"{one / other:.2f}" for one, other in pairs))


if __name__ == "__main__":
    main()
