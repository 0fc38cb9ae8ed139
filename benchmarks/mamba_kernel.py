"""Build the scan of mamba-ssm from its source distribution for one GPU: ``mamba_kernel.py SDIST FOLDER [--gpu 9.0]``.

FOLDER then holds the package and its extension; it belongs on Python's path. The package's own build is for
all generations of GPUs there are, and takes an hour. Runs under the interpreter, the torch and the nvcc that it is for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FLAGS = [
    "-O3",
    "-std=c++17",
    *(f"-U__CUDA_NO_{kind}__" for kind in ("HALF_OPERATORS", "HALF_CONVERSIONS")),
    *(f"-U__CUDA_NO_BFLOAT16_{kind}__" for kind in ("OPERATORS", "CONVERSIONS")),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
]


def toolkit() -> Path:
    """Where CUDA lies, as nvcc says: torch takes the folder above nvcc, which may be a link or a script elsewhere."""
    told = subprocess.run(["nvcc", "--dryrun", "-E", "none.cu"], capture_output=True, text=True, check=True).stderr
    top = next(line.partition("TOP=")[2] for line in told.splitlines() if line.startswith("#$ TOP="))
    return Path(top).resolve()


def build(sdist: Path, folder: Path, gpu: str) -> None:
    """Compile the extension with mamba-ssm's own flags and lay the package beside it."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = gpu
    home = os.environ.setdefault("CUDA_HOME", str(toolkit()))  # torch reads it as it is imported

    from torch.utils import cpp_extension

    nvidia = Path(sys.prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages", "nvidia")
    # cuBLAS and others, where CUDA itself lacks them; behind CUDA's own, of which some packages have a part.
    headers = [str(Path(home, "include")), *map(str, sorted(nvidia.glob("*/include")))]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        source = next(Path(scratch).glob("mamba_ssm-*"))
        kernel = source / "csrc" / "selective_scan"
        objects = Path(scratch, "build")
        objects.mkdir()
        cpp_extension.load(
            "selective_scan_cuda",
            [str(path) for path in sorted(kernel.glob("*.c*")) if path.suffix in {".cpp", ".cu"}],
            extra_cuda_cflags=FLAGS,
            extra_include_paths=[str(kernel), *headers],
            build_directory=str(objects),
            is_python_module=False,
            is_standalone=False,
            verbose=True,
        )
        shutil.copy(objects / "selective_scan_cuda.so", folder)
        lay_out(source, folder)


def lay_out(source: Path, folder: Path) -> None:
    """Put the package where Python finds it, with the metadata that tell its version."""
    metadata = folder / f"{source.name}.dist-info"
    metadata.mkdir()
    shutil.copy(source / "PKG-INFO", metadata / "METADATA")
    # In one step: somebody may look for it meanwhile.
    Path(shutil.copytree(source / "mamba_ssm", folder / "unfinished")).rename(folder / "mamba_ssm")


def main() -> None:
    """Build; that it has ended, well or not, is said by a file beside the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sdist", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", default="9.0", help="compute capability")
    args = parser.parse_args()
    try:
        build(args.sdist, args.folder, args.gpu)
    finally:
        args.folder.with_suffix(".ended").touch()


if __name__ == "__main__":
    main()
