#!/usr/bin/env bash
# Several processes on this machine, one for each GPU, through the deepspeed launcher:
#   bash launch/local.sh pretrain run.yaml [KEY.SUB=VALUE]...
# Options of `jmp-ds launch` may come first: --per-node 2, --dry-run.
set -euo pipefail
exec python -m jmp_ds.cli launch --with local "$@"
