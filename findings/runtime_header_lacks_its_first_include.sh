#!/usr/bin/env bash
# The CUDA headers that torch brings along cannot be included: the first file that cuda_runtime.h asks for is elsewhere.
#
# Expected: nvidia-cuda-runtime, which PyPI's torch for Linux installs with its header cuda_runtime.h, has or requires
#   what that header includes, so that an extension which needs the API alone compiles against it.
# Seen with 13.0.96 and, for CUDA 12, with 12.8.90: "crt/host_config.h: No such file or directory". The package requires
#   nothing; a folder that looks whole is not. With the headers of nvidia-cuda-crt, which neither it nor torch asks for,
#   the same program compiles.
# Source: the wheels' lists of files and their metadata; torch 2.11.0 requires cuda-toolkit[cudart,...], without [crt].
# Cost: builds of mamba-ssm and its like that put these folders on the include path, for cuBLAS or cuSPARSE, before the
#   toolkit of nvcc: they fail after minutes though the toolkit is there and whole.
# Remedy: the toolkit's include folder before those of pip.
# Needs: g++ on x86-64 Linux.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
cd "$folder"
for package in nvidia-cuda-runtime==13.0.96 nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-crt==13.0.88; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "${package%%==*}" "$package"
done
echo "Versions: nvidia-cuda-runtime 13.0.96 and (CUDA 12) 12.8.90, nvidia-cuda-crt 13.0.88, $(g++ --version | head -1)"
printf '#include <cuda_runtime.h>\nint main() { return cudaSuccess; }\n' >program.cpp

compiles() {  # FOLDER...
    g++ -c "${@/#/-I}" program.cpp -o program.o 2>error
}

cuda13=nvidia-cuda-runtime/nvidia/cu13/include cuda12=nvidia-cuda-runtime-cu12/nvidia/cuda_runtime/include
changed=0
for headers in "$cuda13" "$cuda12"; do
    echo "Expected: a program that includes cuda_runtime.h of ${headers%%/*} compiles"
    if compiles "$headers"; then
        echo "Seen: it does"
        changed=1
    else
        echo "Seen: $(grep -m1 -o 'fatal error: .*' error)"
        grep -q "crt/host_config.h" error || changed=1
    fi
done
compiles "$cuda13" nvidia-cuda-crt/nvidia/cu13/include && echo "Seen with nvidia-cuda-crt: it compiles" || changed=1
[ "$changed" = 0 ] || { echo "the behaviour has changed" >&2; exit 1; }
