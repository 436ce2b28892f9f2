#!/usr/bin/env bash
# All that needs a GPU, in one run of under nine minutes: kernel tests, microbenchmarks, training steps, training curves.
#   bash launch/gpu_suite.sh OUTDIR [--cpu-smoke]
# Needs a Python with torch >= 2.11, triton >= 3.6 and numpy; nothing is installed or downloaded, nothing of this checkout needs
# to be installed. Goes on after a part that fails; the exit code is 1 then. $PYTHON names another Python than python3.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$ROOT/kernels:$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m jmp_ds.bench.suite "$@"
