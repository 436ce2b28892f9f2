#!/usr/bin/env bash
# Many machines without ssh: run this on every one of them, through whatever can start programs there.
#   bash launch/no_ssh.sh NODES NODE_RANK MASTER[:PORT] pretrain run.yaml [KEY.SUB=VALUE]...
# NODE_RANK counts from 0; MASTER is the name of machine 0, by which the others reach it. All machines need as many GPUs
# (else: --hostfile FILE with lines `any-name slots=GPUS`, the same everywhere) and the same run folder.
set -euo pipefail
nodes="${1:?usage: no_ssh.sh NODES NODE_RANK MASTER[:PORT] pretrain run.yaml ...}"
node_rank="${2:?the number of this machine, from 0}"
master="${3:?the name of machine 0}"
shift 3
exec python -m jmp_ds.cli launch --with no-ssh --nodes "$nodes" --node-rank "$node_rank" --master "$master" "$@"
