#!/usr/bin/env bash
# The paper's ablations and its rivals at reduced size on open data: bash benchmarks/tables.sh TABLE... [options]
#
# Tables: components (6 in the paper), placement (7), directions (8), window, squeeze, states, input, fair (the same
# recipes for all), peers (every network with its published recipe and with nnU-Net's), or all. Each is run by
# `logvmamba study`, here or with --on slurm, so an interrupted table goes on where it was. Options are those of
# benchmarks/paper_tables.py, among them --data hippocampus|cells, --seeds, --folds, --epochs, --iterations,
# --patch-size, --holdout, --device, --folder and --dry-run. PYTHON names the interpreter.
#
# `bash benchmarks/tables.sh long_range [options]` is another task, on generated images: who sees how far. Its options are
# those of benchmarks/long_range.py. `bash benchmarks/tables.sh scan_at_work MODEL...` says what the blocks of trained
# models do, with those of benchmarks/scan_at_work.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
case "${1:-}" in long_range | scan_at_work)
    script=$here/$1.py
    shift
    exec "${PYTHON:-python3}" "$script" "$@"
    ;;
esac
exec "${PYTHON:-python3}" "$here/paper_tables.py" "$@"
