#include "cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>

#include "common/checks.h"

namespace headcount::cpu {

namespace generic {
extern const Kernels table;
}
#if defined(HEADCOUNT_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

enum Op : int { kLinear, kLayerNorm, kAttendRows, kAttendPersistent, kAttendRing, kLogSumExp, kAddConstant, kOps };
constexpr const char* kOpNames[kOps] = {"linear",      "layer_norm",  "attend_rows", "attend_persistent",
                                        "attend_ring", "log_sum_exp", "add_constant"};

enum Isa : int { kGeneric, kAvx2, kAvx512, kIsas };
constexpr const char* kIsaNames[kIsas] = {"generic", "avx2", "avx512"};
// avx512 is the same source and compiles, but its tests have not run on a CPU that has it: only ENGINE_CPU_ISA chooses
// it.
constexpr Isa kProven = kAvx2;

std::array<std::array<std::atomic<std::int64_t>, kOps>, kIsas> counts{};

template <int ISA>
const Kernels& compiled() {
#if defined(HEADCOUNT_X86)
  if constexpr (ISA == kAvx2) return avx2::table;
  if constexpr (ISA == kAvx512) return avx512::table;
#endif
  return generic::table;
}

// A kernel that counts its call and goes on to the unit's.
template <int ISA, int OP, auto MEMBER>
struct Counted;

template <int ISA, int OP, typename... Arguments, void (*Kernels::*MEMBER)(Arguments...)>
struct Counted<ISA, OP, MEMBER> {
  static void call(Arguments... arguments) {
    counts[ISA][OP].fetch_add(1, std::memory_order_relaxed);
    (compiled<ISA>().*MEMBER)(arguments...);
  }
};

template <int ISA>
const Kernels counted = {kIsaNames[ISA],
                         &Counted<ISA, kLinear, &Kernels::linear>::call,
                         &Counted<ISA, kLayerNorm, &Kernels::layer_norm>::call,
                         &Counted<ISA, kAttendRows, &Kernels::attend_rows>::call,
                         &Counted<ISA, kAttendPersistent, &Kernels::attend_persistent>::call,
                         &Counted<ISA, kAttendRing, &Kernels::attend_ring>::call,
                         &Counted<ISA, kLogSumExp, &Kernels::log_sum_exp>::call,
                         &Counted<ISA, kAddConstant, &Kernels::add_constant>::call};

const Kernels& table_of(int isa) {
  return isa == kAvx512 ? counted<kAvx512> : isa == kAvx2 ? counted<kAvx2> : counted<kGeneric>;
}

// The flags the unit is compiled with, all of them; libgcc also asks whether the system saves the registers.
bool cpu_has(int isa) {
#if defined(HEADCOUNT_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == kAvx2) return avx2;
  if (isa == kAvx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == kGeneric;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels& chosen(const std::string& name, const char* argument) {
  for (int isa = 0; isa < kIsas; ++isa) {
    if (name != kIsaNames[isa]) continue;
    check(cpu_has(isa), argument, "an instruction set of this CPU: " + joined(isa_names()), name);
    return table_of(isa);
  }
  throw CheckError(argument, "one of " + joined({kIsaNames, kIsaNames + kIsas}), "'" + name + "'");
}

}  // namespace

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int isa = 0; isa < kIsas; ++isa)
    if (cpu_has(isa)) names.emplace_back(kIsaNames[isa]);
  return names;
}

const Kernels& kernels_named(const std::string& name) { return chosen(name, "isa"); }

const Kernels& kernels() {
  const char* forced = std::getenv("ENGINE_CPU_ISA");
  if (forced != nullptr && *forced != '\0') return chosen(forced, "ENGINE_CPU_ISA");
  int best = kProven;
  while (!cpu_has(best)) --best;
  return table_of(best);
}

std::vector<CallCount> call_counts() {
  std::vector<CallCount> all;
  for (int isa = 0; isa < kIsas; ++isa)
    for (int op = 0; op < kOps; ++op)
      all.push_back({kIsaNames[isa], kOpNames[op], counts[isa][op].load(std::memory_order_relaxed)});
  return all;
}

}  // namespace headcount::cpu
