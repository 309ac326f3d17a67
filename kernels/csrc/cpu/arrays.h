// Named float32 arrays, as a model is built from: each is asked for by name with the shape it must have.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/checks.h"

namespace headcount::cpu {

class Arrays {
 public:
  // Contiguous; must stay alive while a model is built.
  void add(const std::string& name, const float* data, std::vector<std::int64_t> shape) {
    arrays_[name] = {data, std::move(shape)};
  }

  // Throws CheckError unless the array is there with this shape.
  const float* get(const std::string& name, std::initializer_list<std::int64_t> shape) const {
    const auto found = arrays_.find(name);
    check(found != arrays_.end(), name.c_str(), "an array " + text(shape), "nothing");
    const Array& array = found->second;
    check(array.shape == std::vector<std::int64_t>(shape), name.c_str(), "shape " + text(shape), text(array.shape));
    used_.insert(name);
    return array.data;
  }

  // The same, or null where there is no such array.
  const float* find(const std::string& name, std::initializer_list<std::int64_t> shape) const {
    return arrays_.count(name) ? get(name, shape) : nullptr;
  }

  bool has(const std::string& name) const { return arrays_.count(name) != 0; }

  // Throws CheckError for an array that was never asked for: a mistake of the caller's.
  void check_all_used() const {
    for (const auto& [name, array] : arrays_)
      check(used_.count(name) != 0, name.c_str(), "no such array here", text(array.shape));
  }

 private:
  struct Array {
    const float* data;
    std::vector<std::int64_t> shape;
  };

  template <typename Shape>
  static std::string text(const Shape& shape) {
    std::string result = "[";
    for (const std::int64_t size : shape) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
    return result + "]";
  }

  std::map<std::string, Array> arrays_;
  mutable std::set<std::string> used_;
};

// A copy of an optional vector; empty stands for none.
inline std::vector<float> copied(const float* data, std::int64_t size) {
  return data == nullptr ? std::vector<float>() : std::vector<float>(data, data + size);
}

inline const float* data_or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

}  // namespace headcount::cpu
