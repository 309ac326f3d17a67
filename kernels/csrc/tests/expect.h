// What the Python-free tests share: counting failures, exactly sized noise, NaN-poisoned outputs.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "common/checks.h"

namespace headcount::test {

inline int failures = 0;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  if (++failures <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// The argument the refusal names, or "" where nothing was refused.
template <typename Act>
std::string refused(Act act) {
  try {
    act();
  } catch (const CheckError& error) {
    return error.argument;
  }
  return "";
}

// Reproducible values in (-1, 1).
class Noise {
 public:
  explicit Noise(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}

  float next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<float>(static_cast<std::int64_t>(state_) >> 32) / 2147483648.0f;
  }

  std::vector<float> vector(std::int64_t size) {
    std::vector<float> values(static_cast<std::size_t>(size));  // ends where it ends: one read too many is caught
    for (float& value : values) value = next();
    return values;
  }

 private:
  std::uint64_t state_;
};

inline int finish(const char* name) {
  std::printf("%s: %s\n", name, failures == 0 ? "passed" : "failed");
  return failures == 0 ? 0 : 1;
}

}  // namespace headcount::test
