#!/usr/bin/env bash
# Everything that is due on a GPU, in steps of at most eight minutes: bash benchmarks/gpu_proof.sh [options]
#
# A step whose result is there is not run again, so an interrupted proof goes on where it was. Each step writes
# gpu_<step>.json; those in benchmarks/results are what docs/benchmarks.md is made from (python benchmarks/tables.py).
# Options are those of benchmarks/gpu_proof.py, among them --into FOLDER, --again and --commit. PYTHON names the
# interpreter; torch and triton are enough for the scan, and a step that misses a package says so and is left out.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=()
for step in $("$python" benchmarks/gpu_proof.py --list); do
	timeout 480 "$python" benchmarks/gpu_proof.py "$step" "$@"
	status=$?
	if [ "$status" -ne 0 ]; then
		[ "$status" -eq 124 ] && echo "gpu_proof: $step took longer than eight minutes" >&2
		failed+=("$step")
	fi
done
if [ "${#failed[@]}" -gt 0 ]; then
	echo "gpu_proof: failed: ${failed[*]}" >&2
	exit 1
fi
