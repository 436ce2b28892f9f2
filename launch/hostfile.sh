#!/usr/bin/env bash
# Many machines through ssh, started once, on one of them:
#   bash launch/hostfile.sh HOSTFILE pretrain run.yaml [KEY.SUB=VALUE]...
# HOSTFILE has lines `host slots=GPUS`; the first host's name is where the others find the first process (else: --master).
# Needs pdsh here, ssh to every host without a password, and this environment, the data and the run folder under the
# same paths everywhere. Settings of libraries (NCCL_*, OMP_*, …) go along; see docs/launching.md for others.
set -euo pipefail
hostfile="${1:?usage: hostfile.sh HOSTFILE pretrain run.yaml ...}"
shift
exec python -m jmp_ds.cli launch --with hostfile --hostfile "$hostfile" "$@"
