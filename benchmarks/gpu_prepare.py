"""Gather what a bare machine with a GPU lacks into one folder: ``bash benchmarks/gpu_proof.sh prepare [options]``.

The folder, ``.gpu``, is at most 56 MiB and git ignores it: packages for the machine's Python, kernels compiled for its
GPU, data that are planned and preprocessed, mamba-ssm. A part that cannot be made here is left out and a line says why;
the exit code is then 1, but for mamba-ssm, which the proof can do without.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from checkout import commit_of_checkout, digest_of_code
from gpu_proof import PREPARED

HERE = Path(__file__).resolve().parent
HIPPOCAMPUS_SOURCE = HERE.parents[1] / "shared" / "data" / "hippocampus"
LARGEST_BYTES = 56 * 2**20
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux1")
# What nnU-Net, its networks and ours import and an image for deep learning lacks. It is expected to have, besides torch
# and Triton: einops, httpx, joblib, matplotlib, msgpack, numba, pandas, scikit-image, scikit-learn, SciPy, seaborn and
# tqdm.
WHEELS = (
    *("SimpleITK", "blosc2", "connected-components-3d", "ndindex", "numexpr"),
    *("monai", "nibabel", "shtab", "yacs", "requests", "urllib3", "charset-normalizer"),
)
# Published as source; in pure Python, so that a wheel made here fits there.
SOURCES = ("nnunetv2", "dynamic-network-architectures", "acvl-utils", "batchgenerators", "batchgeneratorsv2")


def run(command: list, **options) -> subprocess.CompletedProcess:
    """Run a command, and end with the end of what it says if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command[:6]))} …: {done.stderr[-1500:] or done.stdout[-1500:]}")
    return done


def packed(folder: Path, archive: Path) -> None:
    """Write a folder into an archive under its name, as small as it gets: machine code loses two fifths to a wheel."""
    with tarfile.open(archive, "w:xz", preset=6) as file:
        file.add(folder, folder.name)


def packages(into: Path, scratch: Path) -> str:
    """Wheels of the versions that are installed here, unpacked side by side as they are to be imported."""
    wheels, made, site = scratch / "wheels", scratch / "made", scratch / "site"
    of_here = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    ours = ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    run([*pip, "download", "--no-deps", "-q", "-d", wheels, *ours, *of_here])
    sources = [f"{name}=={importlib.metadata.version(name)}" for name in SOURCES]
    run([*pip, "wheel", "--no-deps", "-q", "-w", made, *sources])
    found = sorted([*wheels.glob("*.whl"), *made.glob("*.whl")])
    for wheel in found:
        if wheel.parent == made and not wheel.name.endswith("-any.whl"):
            raise RuntimeError(f"{wheel.name} was compiled for this machine's Python")
        with zipfile.ZipFile(wheel) as file:
            file.extractall(site)
    for folder in [path for path in site.rglob("tests") if path.is_dir()]:
        shutil.rmtree(folder, ignore_errors=True)
    packed(site, into / "site.tar.xz")
    return f"{len(found)} packages for Python {PYTHON}"


def kernels(into: Path, scratch: Path, python: str | None, gpu: str) -> str:
    """Triton's cache, filled by an interpreter with the version of Python, torch and Triton of the machine."""
    if python is None:
        raise RuntimeError(f"no python{PYTHON} with torch and Triton is named by --python")
    cache = scratch / "triton"
    if not (scratch / "site").exists() and (into / "site.tar.xz").exists():
        with tarfile.open(into / "site.tar.xz") as file:
            file.extractall(scratch, filter="data")
    # Imports what the machine will import, not what is installed here.
    path = os.pathsep.join([str(HERE.parent), str(scratch / "site"), str(HERE), str(HERE.parent / "tests" / "ops")])
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    done = run([python, HERE / "gpu_prepare.py", "--kernels-for", gpu], env=environment)
    packed(cache, into / "triton.tar.xz")
    return done.stdout.splitlines()[-1]


def compile_kernels(gpu: str) -> None:
    """Compile what all steps need, in the process that ``kernels`` starts."""
    import time

    import gpu_steps
    import torch
    import triton
    from compile_kernels import absent_gpu

    from nnunet_logvmamba.ops.scan import triton_launch

    scans = gpu_steps.scans_of_all_steps("cpu", tiny=False)
    begin = time.perf_counter()
    made = triton_launch.compile_ahead(scans, absent_gpu(int(gpu.replace(".", ""))))
    seconds = time.perf_counter() - begin
    versions = (
        f"Python {sys.version_info[0]}.{sys.version_info[1]}, torch {torch.__version__}, Triton {triton.__version__}"
    )
    print(f"{len(made)} kernels for {gpu}, {versions}; {seconds:.0f} s on {os.cpu_count()} cores")


def mamba(into: Path, scratch: Path, python: str | None, gpu: str, patience_s: float) -> str:
    """mamba-ssm's kernel for one GPU, or its source, to be built on the machine beside the first steps."""
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    # Its setup asks torch for the version of CUDA, which is None here, unless it is told to build nothing.
    run([*download, "-q", "-d", scratch, "mamba-ssm"], env=os.environ | {"MAMBA_SKIP_CUDA_BUILD": "TRUE"})
    source = next(scratch.glob("mamba_ssm-*.tar.gz"))
    try:
        if python is None or shutil.which("nvcc") is None:
            raise RuntimeError("no nvcc, or no interpreter with the machine's torch")
        command = [python, HERE / "mamba_kernel.py", source, scratch / "mamba", "--gpu", gpu]
        run(command, timeout=patience_s, env=os.environ | {"PATH": f"{Path(python).parent}:{os.environ['PATH']}"})
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        shutil.copy(source, into)
        return f"source of {source.name}, to be built there ({str(error).splitlines()[-1][:200]})"
    packed(scratch / "mamba", into / "mamba.tar.xz")
    return f"kernel of {source.name}"


def hippocampus(into: Path, scratch: Path, cases: int) -> str:
    """The hippocampus data, planned and preprocessed by stock nnU-Net, the first so many cases."""
    if not HIPPOCAMPUS_SOURCE.is_dir():
        raise RuntimeError("there is no shared/data/hippocampus beside the clone")
    source, root = scratch / "source", scratch / "nnunet"
    for part in ("imagesTr", "labelsTr"):
        (source / part).mkdir(parents=True)
        for path in sorted((HIPPOCAMPUS_SOURCE / part).glob("*.nii*"))[:cases]:
            shutil.copy(path, source / part)
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        Path(folder).mkdir(parents=True)
    environment = os.environ | folders | {"nnUNet_def_n_proc": "2", "nnUNet_n_proc_DA": "2"}  # planning refuses 0
    run([sys.executable, "-m", "dataset_conversion.Dataset004_Hippocampus", source], env=environment, cwd=HERE.parent)
    planning = (
        "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e; e()"
    )
    options = ["-d", "4", "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
    run([sys.executable, "-c", planning, *options], env=environment)
    for file in (root / "nnUNet_preprocessed").rglob("*.npy"):
        file.unlink()
    # nnU-Net's own folds, which trainings that begin together would otherwise read half-written from each other.
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    home = next((root / "nnUNet_preprocessed").glob("Dataset004*"))
    names = sorted(path.name.split(".")[0] for path in (home / "gt_segmentations").iterdir())
    (home / "splits_final.json").write_text(json.dumps(generate_crossval_split(names)))
    shutil.rmtree(root / "nnUNet_raw")  # a training reads nothing of it
    with tarfile.open(into / "nnunet.tar", "w") as file:  # compressed as it is
        file.add(root, root.name)
    return f"hippocampus, {cases} cases"


def listing(folder: Path) -> str:
    """Everything in the folder with its size, and the sum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [(path.stat().st_size, path.relative_to(folder)) for path in files]
    lines = [f"{size / 2**20:8.2f} MiB  {path}" for size, path in sizes]
    return "\n".join([*lines, f"{sum(size for size, _ in sizes) / 2**20:8.2f} MiB  of {LARGEST_BYTES / 2**20:.0f}"])


PARTS = ("packages", "kernels", "mamba", "hippocampus")


def main() -> int:
    """Make all parts that can be made, and check their size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=PREPARED, help="where, default .gpu")
    parser.add_argument("--python", help=f"interpreter like the machine's: Python {PYTHON}, its torch, Triton, joblib")
    parser.add_argument("--gpu", default="9.0", help="compute capability of the GPU, default 9.0 (H100, H200)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"only these, by commas, of {', '.join(PARTS)}")
    parser.add_argument("--cases", type=int, default=45, help="of the hippocampus data, default 45")
    parser.add_argument("--build-s", type=float, default=1800, help="most seconds for mamba-ssm's kernel, default 1800")
    parser.add_argument("--kernels-for", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kernels_for:
        compile_kernels(args.kernels_for)
        return 0
    python = shutil.which(args.python or f"python{PYTHON}")
    if python and subprocess.run([python, "-c", "import torch, triton"], capture_output=True, check=False).returncode:
        python = None
    args.folder.mkdir(parents=True, exist_ok=True)
    commit = commit_of_checkout()
    (args.folder / "commit").write_text(f"{commit} {digest_of_code()}\n")
    if commit is None or commit.endswith("-dirty"):
        print(f"prepare: the commit is {commit}: figures of it come into no table; commit first", flush=True)
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        parts = {
            "packages": lambda: packages(args.folder, scratch),
            "kernels": lambda: kernels(args.folder, scratch, python, args.gpu),
            "mamba": lambda: mamba(args.folder, scratch, python, args.gpu, args.build_s),
            "hippocampus": lambda: hippocampus(args.folder, scratch, args.cases),
        }
        lacking = False
        for name in args.parts.split(","):
            try:
                print(f"prepare: {name}: {parts[name]()}", flush=True)
            except (RuntimeError, importlib.metadata.PackageNotFoundError) as error:
                print(f"prepare: {name}: left out: {error}", flush=True)
                lacking = lacking or name != "mamba"
    (args.folder / "listing.txt").write_text(listing(args.folder) + "\n")
    print(listing(args.folder))
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    if size > LARGEST_BYTES:
        most = f"{LARGEST_BYTES / 2**20:.0f}"
        print(
            f"prepare: {size / 2**20:.0f} MiB are more than {most}: make fewer --cases or leave out --parts",
            file=sys.stderr,
        )
        return 1
    return int(lacking)


if __name__ == "__main__":
    sys.exit(main())
