#!/usr/bin/env bash
# The test suite, in the same environment as the quickstart. Arguments go to pytest: bash launch/test.sh -k graphs
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$ROOT"
# Two test processes of one thread each: the suite is many small computations.
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest -n 2 --dist loadfile "$@"
