#!/usr/bin/env bash
# Everything that is due on a GPU, in eleven minutes of it.
#
#   bash benchmarks/gpu_proof.sh prepare [options]              beforehand, on any machine with the network
#   bash benchmarks/gpu_proof.sh run [--budget-s 660] [options] on the machine with the GPU, which needs no network
#
# `prepare` puts what a bare machine lacks into one folder, .gpu: packages, kernels, preprocessed data. `run` goes through
# its steps, each in its share of the time, and writes gpu_proof.jsonl row by row; run again, it goes on with the steps that
# have not ended, so two commands with a part of the budget each do the same as one. That file in benchmarks/results is
# what docs/benchmarks.md is made from (python benchmarks/tables.py).
# Options are those of benchmarks/gpu_prepare.py and gpu_proof.py. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
case "${1:-}" in
prepare | run)
	script="$1"
	shift
	[ "$script" = run ] && script=proof
	exec "${PYTHON:-python3}" "benchmarks/gpu_$script.py" "$@"
	;;
*)
	sed -n '4,5s/^# *//p' "benchmarks/gpu_proof.sh" >&2
	exit 2
	;;
esac
