// Python-free test of all_finite, run under the sanitizers: every size around a block edge, a bad value at each end.
#include "cpu/all_finite.h"

#include <cstdint>
#include <cstdio>
#include <vector>

#include "common/checks.h"

using headcount::DType;
using headcount::TensorView;

namespace {

int failures = 0;

void expect(bool condition, const char* what, DType dtype, std::size_t size) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s, dtype %d, size %zu\n", what, static_cast<int>(dtype), size);
  ++failures;
}

template <typename Bits>
void try_sizes(DType dtype, Bits largest, Bits infinite, Bits negative_nan) {
  for (const std::size_t size : {0, 1, 2, 3, 7, 15, 16, 17, 63, 65, 4095, 4096, 4097, 8193}) {
    std::vector<Bits> values(size, largest);  // exactly `size` elements on the heap: one read too many is caught
    const TensorView view{values.data(), static_cast<std::int64_t>(size), dtype};
    expect(headcount::all_finite(view), "finite", dtype, size);
    for (std::size_t at = 0; at < size; at += (size < 100 ? 1 : size - 1)) {
      for (const Bits bad : {infinite, negative_nan}) {
        values[at] = bad;
        expect(!headcount::all_finite(view), "not finite", dtype, size);
        values[at] = largest;
      }
    }
  }
}

bool refused(const TensorView& view) {
  try {
    headcount::all_finite(view);
  } catch (const headcount::CheckError&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  try_sizes<std::uint32_t>(DType::float32, 0x7F7FFFFFu, 0x7F800000u, 0xFFC00001u);
  try_sizes<std::uint64_t>(DType::float64, 0x7FEFFFFFFFFFFFFFu, 0x7FF0000000000000u, 0xFFF8000000000001u);
  try_sizes<std::uint16_t>(DType::float16, 0x7BFFu, 0x7C00u, 0xFE01u);
  try_sizes<std::uint16_t>(DType::bfloat16, 0x7F7Fu, 0x7F80u, 0xFFC1u);

  const std::uint64_t word = 0;
  const char* misaligned = reinterpret_cast<const char*>(&word) + 1;
  expect(refused({&word, 1, static_cast<DType>(9)}), "unknown dtype refused", DType::float32, 1);
  expect(refused({&word, -1, DType::float32}), "negative size refused", DType::float32, 1);
  expect(refused({nullptr, 1, DType::float32}), "null refused", DType::float32, 1);
  expect(refused({misaligned, 1, DType::float32}), "misaligned refused", DType::float32, 1);

  std::printf("all_finite: %s\n", failures == 0 ? "passed" : "failed");
  return failures == 0 ? 0 : 1;
}
