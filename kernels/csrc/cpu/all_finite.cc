#include "cpu/all_finite.h"

#include <algorithm>
#include <cstdint>

#include "common/checks.h"

namespace headcount {
namespace {

constexpr std::int64_t block = 4096;  // elements looked at before the answer may end the search

// IEEE 754: a number is infinite or NaN when its exponent bits are all ones.
template <typename Bits, Bits exponent>
bool exponents_finite(const void* data, std::int64_t size) {
  constexpr int lanes =
      64 / sizeof(Bits);  // independent accumulators, so that the inner loop becomes vector instructions
  const Bits* bits = static_cast<const Bits*>(data);
  while (size > 0) {
    const std::int64_t count = std::min(size, block);
    Bits bad[lanes] = {};
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes)
      for (int lane = 0; lane < lanes; ++lane) bad[lane] |= static_cast<Bits>((bits[i + lane] & exponent) == exponent);
    for (; i < count; ++i) bad[0] |= static_cast<Bits>((bits[i] & exponent) == exponent);
    if (std::any_of(bad, bad + lanes, [](Bits lane) { return lane != 0; })) return false;
    bits += count;
    size -= count;
  }
  return true;
}

}  // namespace

bool all_finite(const TensorView& data) {
  check_view(data, "data");
  switch (data.dtype) {
    case DType::float32:
      return exponents_finite<std::uint32_t, 0x7F800000u>(data.data, data.size);
    case DType::float64:
      return exponents_finite<std::uint64_t, 0x7FF0000000000000u>(data.data, data.size);
    case DType::float16:
      return exponents_finite<std::uint16_t, 0x7C00u>(data.data, data.size);
    case DType::bfloat16:
      return exponents_finite<std::uint16_t, 0x7F80u>(data.data, data.size);
  }
  return false;  // check_view has refused every other code
}

}  // namespace headcount
