# Sourced by quickstart.sh and test.sh: leaves a ready Python in $PYTHON, or ends with a clear message. By itself:
#   bash launch/setup_env.sh          # makes the environment; then: source .venv/bin/activate
#   bash launch/setup_env.sh --gpu    # for machines with NVIDIA GPUs, on one without (a login node)
#
# An active virtual environment or conda environment is used as it is; otherwise .venv is made beside the package.
# What is installed: the package (editable) with the extras train, kernels, demo and dev, at the versions of constraints.txt.
# The marker file is written last: without it the environment counts as half built.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CONSTRAINTS="$ROOT/launch/constraints.txt"
EXTRAS="train,kernels,demo,dev"

die() {
    echo "error: $*" >&2
    exit 2
}

is_supported() { # a Python of 3.11 to 3.13
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in python3 python3.12 python3.13 python3.11 python; do
        if is_supported "$name"; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

choose_environment() { # sets ENV_DIR and PYTHON
    if [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; then
        ENV_DIR="${VIRTUAL_ENV:-$CONDA_PREFIX}"
        PYTHON="$ENV_DIR/bin/python"
        [ -x "$PYTHON" ] || die "the active environment $ENV_DIR has no bin/python; deactivate it (deactivate) and run again"
        is_supported "$PYTHON" || die "the active environment $ENV_DIR has $("$PYTHON" --version 2>&1); Python 3.11 to 3.13 is needed"
        echo "environment: $ENV_DIR (active)"
    else
        ENV_DIR="$ROOT/.venv"
        PYTHON="$ENV_DIR/bin/python"
        echo "environment: $ENV_DIR"
    fi
    MARKER="$ENV_DIR/.jmp-ds-installed"
    STAMP="$(cat "$CONSTRAINTS" "$ROOT/pyproject.toml" "$ROOT/setup.py" | cksum | cut -d' ' -f1) $EXTRAS $ROOT"
}

make_venv() {
    local base
    base="$(find_python)" || die "no Python 3.11, 3.12 or 3.13 found; install one, or activate an environment that has it"
    [ -w "$ROOT" ] || die "cannot write to $ROOT, where .venv would be made; clone into a folder of yours, or activate an environment"
    echo "making .venv with $base ($("$base" --version 2>&1))"
    "$base" -m venv "$ENV_DIR" || {
        rm -rf "$ENV_DIR"
        die "python -m venv failed (on Debian and Ubuntu: apt install python3-venv); or activate an environment of your own"
    }
}

has_nvidia_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

has_cpu_torch() { "$PYTHON" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' 2>/dev/null; }

install_torch() { # PyTorch's CPU build where there is no GPU and one can be had: it is ten times smaller
    local version pytorch_index="https://download.pytorch.org/whl/cpu"
    version="$(sed -n 's/^torch==//p' "$CONSTRAINTS")"
    if "$PYTHON" -c "import torch, sys; sys.exit(torch.__version__.split('+')[0] != '$version')" 2>/dev/null; then
        return 0
    fi
    if [ "$(uname -s)" != Linux ] || [ -n "$FOR_GPU" ] || has_nvidia_gpu; then
        "$PYTHON" -m pip install -c "$CONSTRAINTS" "torch==$version"
        return
    fi
    echo "no NVIDIA GPU: installing the CPU build of PyTorch $version"
    "$PYTHON" -m pip install -c "$CONSTRAINTS" "torch==$version+cpu" 2>/dev/null ||
        "$PYTHON" -m pip install --retries 1 --timeout 20 -c "$CONSTRAINTS" --extra-index-url "$pytorch_index" "torch==$version+cpu" 2>/dev/null ||
        {
            echo "the CPU build cannot be had from here: installing the general build (some GB)"
            "$PYTHON" -m pip install -c "$CONSTRAINTS" "torch==$version"
        }
}

prepare_environment() {
    choose_environment
    if [ -n "$FOR_GPU" ] && [ -x "$PYTHON" ] && has_cpu_torch; then
        die "$ENV_DIR has PyTorch's CPU build; rebuild it: rm -rf $ENV_DIR (deactivate it first), then run this again"
    fi
    if [ -f "$MARKER" ] && [ "$(cat "$MARKER")" = "$STAMP" ]; then
        "$PYTHON" -c 'import torch, jmp_ds' 2>/dev/null && return 0
        die "$ENV_DIR is marked as installed, but importing torch or jmp_ds fails; rebuild it: rm -rf $ENV_DIR"
    fi
    if [ "$ENV_DIR" = "$ROOT/.venv" ] && [ -d "$ENV_DIR" ] && [ ! -f "$MARKER" ]; then
        die "$ENV_DIR is half built (an installation was interrupted, or something else made it); rebuild it: rm -rf $ENV_DIR, then run this again"
    fi
    [ -d "$ENV_DIR" ] || make_venv
    (: >"$ENV_DIR/.jmp-ds-write-test") 2>/dev/null || die "cannot write to $ENV_DIR; deactivate it to use .venv, or activate an environment of yours"
    rm -f "$ENV_DIR/.jmp-ds-write-test" "$MARKER"
    echo "installing jmp-ds with [$EXTRAS]; some minutes the first time"
    install_torch || die "installing PyTorch failed (message above); check the network, then rm -rf $ENV_DIR and run this again"
    "$PYTHON" -m pip install -c "$CONSTRAINTS" -e "$ROOT[$EXTRAS]" ||
        die "installing jmp-ds failed (message above); check the network and the free disk space, then rm -rf $ENV_DIR and run this again"
    echo "$STAMP" >"$MARKER"
}

FOR_GPU=""
if [ "${BASH_SOURCE[0]}" = "$0" ] && [ $# -gt 0 ]; then
    [ "$*" = --gpu ] || die "usage: bash launch/setup_env.sh [--gpu]"
    FOR_GPU=yes
fi
prepare_environment
export PATH="$ENV_DIR/bin:$PATH"
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "ready; now: source $ENV_DIR/bin/activate"
fi
