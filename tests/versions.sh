#!/usr/bin/env bash
# Runs the quick tests with the oldest and the newest packages that pyproject.toml allows, one environment per row.
#
#   bash tests/versions.sh FOLDER [ROW ...]      ROW: <oldest|newest>-<Python>, such as oldest-3.10; default: all below
#
# Environments and logs stay in FOLDER (about 6 GB each, since PyPI's torch for Linux brings CUDA along), and a row that
# has passed is not run again. Python itself must be there; a row whose interpreter is missing is listed as not run.
# The last lines are the table of docs/reference/versions.md.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?"give a folder for the environments, such as: bash tests/versions.sh ../versions"}
shift
rows=("$@")
[ ${#rows[@]} -gt 0 ] || rows=(oldest-3.10 newest-3.10 oldest-3.11 newest-3.11 newest-3.12 newest-3.13 newest-3.14)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
[ -x "$folder/uv/bin/uv" ] || { python3 -m venv "$folder/uv" && "$folder/uv/bin/pip" install -q uv==0.13.9; }
uv="$folder/uv/bin/uv"
export UV_CACHE_DIR="$folder/cache" UV_PYTHON_DOWNLOADS=never
declare -A lowest=([oldest]=lowest-direct [newest]=highest)

table=()
for row in "${rows[@]}"; do
    age=${row%%-*} python=${row#*-} place="$folder/$row"
    [ -n "${lowest[$age]:-}" ] || { echo "there is no row '$row': write oldest-3.10 or newest-3.13" >&2; exit 2; }
    mkdir -p "$place"
    if ! "$uv" python find -q "$python" >/dev/null 2>&1; then
        table+=("| $python | $age | | not run: no Python $python here |")
        continue
    fi
    if ! grep -qs " passed" "$place/result"; then
        rm -f "$place/result"
        "$uv" pip compile -q "$here/pyproject.toml" --resolution "${lowest[$age]}" --python-version "$python" \
            --no-header --no-annotate -o "$place/requirements.txt"
        [ -x "$place/venv/bin/python" ] || "$uv" venv -q --python "$python" "$place/venv"
        "$uv" pip install -q --python "$place/venv/bin/python" -r "$place/requirements.txt"
        "$uv" pip install -q --python "$place/venv/bin/python" -r "$place/requirements.txt" "pip>=23.1" setuptools \
            hatchling hatch-fancy-pypi-readme
        "$uv" pip install -q --python "$place/venv/bin/python" --no-build-isolation -c "$place/requirements.txt" \
            -e "$here[dev]"
        "$place/venv/bin/python" -m nnunet_logvmamba.plugin.environment
        (cd "$here" && "$place/venv/bin/python" -m pytest -q -n "${WORKERS:-2}" --dist loadfile -m "not slow" \
            -p no:cacheprovider >"$place/log" 2>&1) || true
        tail -1 "$place/log" | tr -d = | sed -E 's/^ +| in .*$//g' >"$place/result"
    fi
    named=$("$place/venv/bin/python" - <<'PY'
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in ("torch", "nnunetv2", "monai", "numpy", "numba", "SimpleITK")))
PY
    )
    table+=("| $python | $age | $named | $(cat "$place/result") |")
done
printf '%s\n' "| Python | Packages | Among them | Quick tests |" "| --- | --- | --- | --- |" "${table[@]}"
