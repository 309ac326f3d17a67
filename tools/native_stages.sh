#!/bin/sh
# The stages of `make ci` around the native core. A stage that cannot run here is skipped with its reason, listed again in build/ci/skipped.
set -eu
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
out=$PWD/build/ci
PATH=$bin:$PATH
mkdir -p "$out"
: >"$out/skipped"

stage() { echo "== $1"; }
skip() { echo "skipped: $1: $2" | tee -a "$out/skipped"; }

stage "clang-format"
find kernels/csrc -name '*.cc' -o -name '*.h' -o -name '*.cu' | xargs clang-format --dry-run --Werror

stage "everything without a warning"
cmake -S . -B "$out/strict" -G Ninja --log-level=ERROR -DHEADCOUNT_STRICT=ON -DHEADCOUNT_TESTS=ON \
    -DPython_EXECUTABLE="$bin/python" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build "$out/strict"
ctest --test-dir "$out/strict" --output-on-failure

# Without the AVX-512 and AMX units: the emulated one is their source.
stage "C++ tests under the address and undefined behaviour sanitizers"
if echo 'int main() {}' | "${CXX:-c++}" -x c++ -fsanitize=address,undefined -o "$out/probe" - 2>/dev/null && "$out/probe"; then
    cmake -S . -B "$out/sanitize" -G Ninja --log-level=ERROR -DHEADCOUNT_STRICT=ON -DHEADCOUNT_TESTS=ON -DHEADCOUNT_PYTHON=OFF \
        -DHEADCOUNT_WIDE=OFF -DHEADCOUNT_SANITIZE=address,undefined -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
    cmake --build "$out/sanitize"
    ctest --test-dir "$out/sanitize" --output-on-failure
else
    skip "sanitizers" "the compiler here cannot build and run with -fsanitize=address,undefined"
fi

stage "the pool of threads and the store of panels under the thread sanitizer"
if echo 'int main() {}' | "${CXX:-c++}" -x c++ -fsanitize=thread -o "$out/probe" - 2>/dev/null && "$out/probe"; then
    for name in pool panel_store; do
        "${CXX:-c++}" -std=c++17 -O1 -g -Wall -Wextra -Werror -fsanitize=thread -Ikernels/csrc -pthread \
            "kernels/csrc/tests/${name}_test.cc" kernels/csrc/cpu/pool.cc kernels/csrc/cpu/pack.cc kernels/csrc/cpu/panel_memory.cc \
            kernels/csrc/cpu/panel_store.cc -o "$out/${name}_thread_test"
        "$out/${name}_thread_test"
    done
else
    skip "thread sanitizer" "the compiler here cannot build and run with -fsanitize=thread"
fi

# A tool of these stages: installed when this is root on Debian; success only where it is there in the end.
have() {
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { timeout 300 apt-get update && DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y --no-install-recommends "$2"; } >"$out/apt.log" 2>&1 || true
    fi
    command -v "$1" >/dev/null
}
lacks() { echo "$1 is not installed (Debian package: $2; installed here when this runs as root)"; }

# Without the pool's test: qemu-user 7.2 fails assertions of its own when a forked child starts threads. The argument asks for less work.
stage "AVX2 and generic kernels on an emulated Haswell, where any AVX-512 instruction is illegal"
if [ "$(uname -m)" != x86_64 ]; then
    skip "emulated Haswell" "this machine is $(uname -m)"
elif have qemu-x86_64 qemu-user; then
    for name in isa pack rows linear attend stack; do
        qemu-x86_64 -cpu Haswell "$out/strict/kernels/${name}_test" 20 2>"$out/qemu.log" || { cat "$out/qemu.log"; exit 1; }
    done
else
    skip "emulated Haswell" "$(lacks qemu-x86_64 qemu-user)"
fi

stage "generic kernels on an emulated aarch64"
if ! have qemu-aarch64 qemu-user; then
    skip "emulated aarch64" "$(lacks qemu-aarch64 qemu-user)"
elif ! have aarch64-linux-gnu-g++ g++-aarch64-linux-gnu; then
    skip "emulated aarch64" "$(lacks aarch64-linux-gnu-g++ g++-aarch64-linux-gnu)"
else
    cmake -S . -B "$out/aarch64" -G Ninja --log-level=ERROR -DHEADCOUNT_STRICT=ON -DHEADCOUNT_TESTS=ON -DHEADCOUNT_PYTHON=OFF -DHEADCOUNT_EMULATED_CUDA=OFF \
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
    cmake --build "$out/aarch64"
    for name in all_finite isa pack rows linear attend stack; do
        qemu-aarch64 -L /usr/aarch64-linux-gnu "$out/aarch64/kernels/${name}_test" 20
    done
fi

# Runs a command without a network: in a namespace that has none, else with pip's index and every proxy pointing nowhere.
offline() {
    for namespace in "unshare --net" "unshare --map-root-user --net"; do
        if $namespace true 2>/dev/null; then
            $namespace "$@"
            return
        fi
    done
    nowhere=http://127.0.0.1:9
    PIP_NO_INDEX=1 http_proxy=$nowhere https_proxy=$nowhere HTTP_PROXY=$nowhere HTTPS_PROXY=$nowhere "$@"
}

stage "source distribution → install with the network off → import away from the checkout"
rm -rf "$out/dist" "$out/installed"
python -m build --sdist --no-isolation --outdir "$out/dist" . >"$out/build.log" 2>&1 || { cat "$out/build.log"; exit 1; }
# Whether it can be built, not how fast it is.
offline pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index -C cmake.define.HEADCOUNT_CUDA=OFF \
    -C cmake.define.HEADCOUNT_UNIT_LEVEL=-O1 --target "$out/installed" "$out"/dist/*.tar.gz
offline python -S tools/try_wheel.py "$out/installed" "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# About 200 MB and of use only here and on GPUs, so that set-up leaves it out; where PyTorch brought its own, that one is tested.
stage "Triton, for the tests of its kernels"
if ! python -c 'import triton' 2>/dev/null && ! pip install --quiet --disable-pip-version-check triton==3.9.0 >"$out/triton.log" 2>&1; then
    skip "Triton kernels" "triton cannot be installed here: $(tail -n 1 "$out/triton.log")"
fi

# Their results are tested on the emulated GPU, by ctest above and by the tests that follow.
stage "CUDA kernels by nvcc for sm_80 and sm_90a: nothing spills, no more registers than docs/kernel-log.md has, waits before loads"
if command -v nvcc >/dev/null; then
    python -m tests.kernels.cuda.ahead --check
    python -m tests.kernels.cuda.machine_code >/dev/null || skip "machine code of the CUDA kernels" "cuobjdump is neither beside nvcc, nor on PATH, nor in Triton's package"
else
    skip "nvcc" "it is not on PATH: the CUDA kernels were compiled for the emulated GPU only"
fi
