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
find kernels/csrc -name '*.cc' -o -name '*.h' | xargs clang-format --dry-run --Werror

stage "everything without a warning"
cmake -S . -B "$out/strict" -G Ninja --log-level=ERROR -DHEADCOUNT_STRICT=ON -DHEADCOUNT_TESTS=ON \
    -DPython_EXECUTABLE="$bin/python" -Dpybind11_DIR="$(python -m pybind11 --cmakedir)" >/dev/null
cmake --build "$out/strict"
ctest --test-dir "$out/strict" --output-on-failure

stage "C++ tests under the address and undefined behaviour sanitizers"
if echo 'int main() {}' | "${CXX:-c++}" -x c++ -fsanitize=address,undefined -o "$out/probe" - 2>/dev/null && "$out/probe"; then
    cmake -S . -B "$out/sanitize" -G Ninja --log-level=ERROR -DHEADCOUNT_STRICT=ON -DHEADCOUNT_TESTS=ON -DHEADCOUNT_PYTHON=OFF \
        -DHEADCOUNT_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
    cmake --build "$out/sanitize"
    ctest --test-dir "$out/sanitize" --output-on-failure
else
    skip "sanitizers" "the compiler here cannot build and run with -fsanitize=address,undefined"
fi

stage "source distribution → wheel → import away from the checkout"
rm -rf "$out/dist" "$out/installed"
python -m build --no-isolation --outdir "$out/dist" . >"$out/build.log" 2>&1 || { cat "$out/build.log"; exit 1; }
pip install --quiet --disable-pip-version-check --no-deps --target "$out/installed" "$out"/dist/*.whl
python -S tools/try_wheel.py "$out/installed" "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

stage "CUDA kernels"
skip "CUDA kernels" "there are none yet"
