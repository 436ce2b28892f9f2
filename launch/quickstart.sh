#!/usr/bin/env bash
# From a fresh clone to a pre-trained, fine-tuned and compared model: bash launch/quickstart.sh
#   --regenerate   make the demonstration data anew instead of taking the set that comes with the package
#   --help         every option of the driver
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
exec "$PYTHON" launch/quickstart.py "$@"
