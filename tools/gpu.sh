#!/bin/sh
# The first minutes on a GPU in two commands, `sh tools/gpu.sh first OUT` and `sh tools/gpu.sh second OUT [--from OUT_OF_THE_FIRST]`:
# build, smoke tests, replays, tests, then figures; at most eight files in OUT, written as things happen. Nothing is fetched.
# --rehearse does the same without a GPU, in the emulator and in Triton's interpreter, with faults planted.
set -eu
HEADCOUNT_GPU_CWD=$PWD
export HEADCOUNT_GPU_CWD
cd "$(dirname "$0")/.."
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
export PATH
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
exec "$python" -m tools.gpu "$@"
