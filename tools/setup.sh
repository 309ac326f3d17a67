#!/bin/sh
# Set-up: look for what the machine must have, then make .venv, install the pinned versions and build. A second call returns at once.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
ready=.venv/headcount-ready
if [ -n "${ENGINE_CUDA:-}" ]; then
    echo "set-up: ENGINE_CUDA is set: this is called HEADCOUNT_CUDA now, and is OFF, ON or AUTO; unset ENGINE_CUDA" >&2
    exit 1
fi
# The CUDA kernels take nvcc minutes: only where a GPU would run them, unless HEADCOUNT_CUDA=ON or OFF is said.
if [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; then cuda=${HEADCOUNT_CUDA:-AUTO}; else cuda=${HEADCOUNT_CUDA:-OFF}; fi

# What the installed project was made from: this folder, this interpreter, these files. Python files are used in place.
state() {
    pwd
    "$python" --version
    echo "CUDA $cuda"
    find pyproject.toml constraints.txt CMakeLists.txt kernels/CMakeLists.txt kernels/cuda.cmake kernels/csrc tools/setup.sh -type f | LC_ALL=C sort | xargs cksum
}

missing=""
need() { missing="$missing
  $1 (Debian package: $2)"; }

look_for_requirements() {
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        need "Python 3.10 or newer as '$python'; another can be named by PYTHON=" python3
    else
        "$python" -c 'import venv, ensurepip' 2>/dev/null || need "Python's venv and ensurepip" python3-venv
        "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' ||
            need "Python.h, the headers of $("$python" --version)" python3-dev
    fi
    for compiler in ${CXX:-c++ g++ clang++}; do
        if command -v "$compiler" >/dev/null; then return; fi
    done
    need "a C++ compiler; it can be named by CXX=" g++
}

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
install() { pip install --quiet --constraint constraints.txt "$@"; }

# Whether the pinned torch is there already, or pip, as it is configured, finds it as a CPU build and so prefers that.
needs_no_cuda() {
    pip show --quiet torch 2>/dev/null || pip index versions torch 2>/dev/null | grep -F "$(sed -n 's/^torch==//p' constraints.txt)+cpu" >/dev/null
}

install_torch() {
    if [ -n "${TORCH_INDEX_URL:-}" ]; then
        echo "set-up: torch from $TORCH_INDEX_URL"
        install --no-deps --index-url "$TORCH_INDEX_URL" torch
    elif [ "$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! needs_no_cuda; then
        echo "set-up: there is no GPU here, but torch from pip's index brings its CUDA packages (gigabytes)."
        echo "        To fetch the CPU build instead: stop, and set TORCH_INDEX_URL to PyTorch's index of CPU wheels."
    fi
}

look_for_requirements
if [ -n "$missing" ]; then
    echo "set-up: this machine lacks:$missing" >&2
    exit 1
fi
state=$(state)
if [ -f "$ready" ] && [ "$(cat "$ready")" = "$state" ]; then exit 0; fi

if [ ! -f "$ready" ] || [ "$(head -n 2 "$ready")" != "$(echo "$state" | head -n 2)" ]; then
    echo "set-up: a Python environment in .venv (a minute or more)"
    "$python" -m venv --clear .venv # new, moved, interrupted or of another Python
fi
rm -f "$ready"
install pip scikit-build-core pybind11 cmake ninja # the build below finds these instead of fetching its own
install_torch
echo "set-up: dependencies and build"
install seqeval # a source package: built in an environment of its own, unlike ours
install --no-build-isolation -Ccmake.define.HEADCOUNT_CUDA="$cuda" -Ccmake.define.HEADCOUNT_EMULATED_CUDA=ON --editable '.[torch,prune,bench,dev]'
echo "$state" >"$ready"
echo "set-up: done"
