#!/usr/bin/env bash
# One Slurm step, in an allocation that is there (salloc, sbatch) or with options that ask for one:
#   bash launch/srun.sh pretrain run.yaml [KEY.SUB=VALUE]...
#   bash launch/srun.sh --nodes 2 --per-node 4 pretrain run.yaml ...
# One task for each GPU. For a job that is put back into the queue when its time is over: job.sbatch.
set -euo pipefail
exec python -m jmp_ds.cli launch --with srun "$@"
