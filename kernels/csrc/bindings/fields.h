// A struct filled by name from a dict of Python. The struct lists its fields once, in a member
//   template <typename Visit> void each_field(const Visit& visit) { visit("heads", heads); .. }
// and the dict has a value for each of these names and for no other. A field may be a number, a bool, an enum told by
// its word (names_of(Enum), found in the enum's namespace), a struct with fields of its own told by a dict, a
// std::vector of these told by a sequence, or a std::optional, for which None is nothing.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/checks.h"

namespace headcount {

struct AnyField {
  template <typename Field>
  void operator()(const char*, Field&) const {}
};

template <typename T, typename = void>
struct HasFields : std::false_type {};
template <typename T>
struct HasFields<T, std::void_t<decltype(std::declval<T&>().each_field(AnyField{}))>> : std::true_type {};

[[noreturn]] inline void refuse_field(const std::string& where, const std::string& expected, pybind11::handle found) {
  throw CheckError(where, expected, pybind11::cast<std::string>(pybind11::repr(found)));
}

template <typename Struct>
Struct filled(pybind11::handle given, const std::string& where);

// Numbers and bools.
template <typename T, std::enable_if_t<std::is_arithmetic_v<T>, int> = 0>
void fill_field(T& field, pybind11::handle given, const std::string& where) {
  const char* expected = std::is_same_v<T, bool> ? "True or False" : std::is_integral_v<T> ? "an integer" : "a number";
  if (std::is_same_v<T, bool> != pybind11::isinstance<pybind11::bool_>(given)) refuse_field(where, expected, given);
  try {
    field = pybind11::cast<T>(given);
  } catch (const pybind11::cast_error&) {
    refuse_field(where, expected, given);
  }
}

// Enumerators.
template <typename T, std::enable_if_t<std::is_enum_v<T>, int> = 0>
void fill_field(T& field, pybind11::handle given, const std::string& where) {
  std::string all;
  int number = 0;
  for (const char* name : names_of(T{})) {
    if (pybind11::isinstance<pybind11::str>(given) && pybind11::cast<std::string>(given) == name) {
      field = static_cast<T>(number);
      return;
    }
    all += (number++ > 0 ? ", " : "") + std::string(name);
  }
  refuse_field(where, all, given);
}

template <typename T, std::enable_if_t<HasFields<T>::value, int> = 0>
void fill_field(T& field, pybind11::handle given, const std::string& where) {
  field = filled<T>(given, where);
}

template <typename T>
void fill_field(std::vector<T>& field, pybind11::handle given, const std::string& where) {
  if (!pybind11::isinstance<pybind11::sequence>(given)) refuse_field(where, "a sequence", given);
  field.clear();
  for (const auto& value : pybind11::cast<pybind11::sequence>(given)) {
    const std::string path = where + "[" + std::to_string(field.size()) + "]";
    fill_field(field.emplace_back(), value, path);
  }
}

template <typename T>
void fill_field(std::optional<T>& field, pybind11::handle given, const std::string& where) {
  field.reset();
  if (!given.is_none()) fill_field(field.emplace(), given, where);
}

// The struct `given` tells of. Throws CheckError naming `where` and the field: one that is missing, unknown, or of
// another type.
template <typename Struct>
Struct filled(pybind11::handle given, const std::string& where) {
  if (!pybind11::isinstance<pybind11::dict>(given)) refuse_field(where, "a dict of fields", given);
  const auto values = pybind11::cast<pybind11::dict>(given);
  std::set<std::string> known;
  Struct result{};
  result.each_field([&](const char* name, auto& field) {
    const std::string path = where + "." + name;
    if (!values.contains(name)) throw CheckError(path, "a value", "nothing");
    fill_field(field, values[name], path);
    known.insert(name);
  });
  for (const auto& [key, value] : values) {
    const auto name = pybind11::cast<std::string>(pybind11::str(key));
    if (known.count(name) == 0) refuse_field(where + "." + name, "no such field", value);
  }
  return result;
}

}  // namespace headcount
