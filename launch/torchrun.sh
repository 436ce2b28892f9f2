#!/usr/bin/env bash
# The same as no_ssh.sh by torchrun, where that is what the site knows:
#   bash launch/torchrun.sh NODES NODE_RANK MASTER[:PORT] pretrain run.yaml [KEY.SUB=VALUE]...
set -euo pipefail
nodes="${1:?usage: torchrun.sh NODES NODE_RANK MASTER[:PORT] pretrain run.yaml ...}"
node_rank="${2:?the number of this machine, from 0}"
master="${3:?the name of machine 0}"
shift 3
exec python -m jmp_ds.cli launch --with torchrun --nodes "$nodes" --node-rank "$node_rank" --master "$master" "$@"
