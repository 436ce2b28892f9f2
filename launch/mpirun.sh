#!/usr/bin/env bash
# Open MPI, MPICH or Intel MPI, whichever `mpirun` is in PATH; MPI only starts the processes, NCCL does the talking.
#   bash launch/mpirun.sh HOSTFILE pretrain run.yaml [KEY.SUB=VALUE]...
# HOSTFILE has lines `host slots=GPUS`, with as many slots everywhere (else: --per-node N).
set -euo pipefail
hostfile="${1:?usage: mpirun.sh HOSTFILE pretrain run.yaml ...}"
shift
exec python -m jmp_ds.cli launch --with mpirun --hostfile "$hostfile" "$@"
