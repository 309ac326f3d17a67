#include "cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/checks.h"

namespace headcount::cpu {

namespace generic {
extern const Kernels table;
}
#if defined(HEADCOUNT_X86)
namespace avx2 {
extern const Kernels table;
}
#endif
#if defined(HEADCOUNT_WIDE)
namespace avx512 {
extern const Kernels table;
}
namespace avx512_bf16 {
extern const Kernels table;
}
namespace amx {
extern const Kernels table;
}
#endif
#if defined(HEADCOUNT_EMULATED_UNIT)
namespace emulated {
extern const Kernels table;
}
#endif

namespace {

enum Op : int {
  kNarrow,
  kLinear,
  kLayerNorm,
  kAttendRows,
  kAttendPersistent,
  kAttendRing,
  kLogSumExp,
  kAddConstant,
  kOps
};
constexpr const char* kOpNames[kOps] = {"narrow",      "linear",      "layer_norm",  "attend_rows", "attend_persistent",
                                        "attend_ring", "log_sum_exp", "add_constant"};

// Ascending, but for the last: what the widest unit computes, on any CPU, slowly; built for the tests only.
enum Isa : int { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx, kEmulated, kIsas };
constexpr const char* kIsaNames[kIsas] = {"generic", "avx2", "avx512", "avx512_bf16", "amx", "emulated"};

std::array<std::array<std::atomic<std::int64_t>, kOps>, kIsas> counts{};

template <int ISA>
const Kernels& compiled() {
#if defined(HEADCOUNT_X86)
  if constexpr (ISA == kAvx2) return avx2::table;
#endif
#if defined(HEADCOUNT_WIDE)
  if constexpr (ISA == kAvx512) return avx512::table;
  if constexpr (ISA == kAvx512Bf16) return avx512_bf16::table;
  if constexpr (ISA == kAmx) return amx::table;
#endif
#if defined(HEADCOUNT_EMULATED_UNIT)
  if constexpr (ISA == kEmulated) return emulated::table;
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
const Kernels& counted() {
  static const Kernels table = {kIsaNames[ISA],
                                {compiled<ISA>().narrows[0], compiled<ISA>().narrows[1], compiled<ISA>().narrows[2]},
                                &Counted<ISA, kNarrow, &Kernels::narrow>::call,
                                &Counted<ISA, kLinear, &Kernels::linear>::call,
                                &Counted<ISA, kLayerNorm, &Kernels::layer_norm>::call,
                                &Counted<ISA, kAttendRows, &Kernels::attend_rows>::call,
                                &Counted<ISA, kAttendPersistent, &Kernels::attend_persistent>::call,
                                &Counted<ISA, kAttendRing, &Kernels::attend_ring>::call,
                                &Counted<ISA, kLogSumExp, &Kernels::log_sum_exp>::call,
                                &Counted<ISA, kAddConstant, &Kernels::add_constant>::call};
  return table;
}

const Kernels& table_of(int isa) {
  switch (isa) {
    case kAvx2:
      return counted<kAvx2>();
    case kAvx512:
      return counted<kAvx512>();
    case kAvx512Bf16:
      return counted<kAvx512Bf16>();
    case kAmx:
      return counted<kAmx>();
    case kEmulated:
      return counted<kEmulated>();
    default:
      return counted<kGeneric>();
  }
}

#if defined(HEADCOUNT_WIDE)
// Linux keeps the tile registers of a process only after it asked for them, once for all its threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool may = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return may;
#else
  return false;
#endif
}
#endif

// The flags the unit is compiled with, all of them; libgcc also asks whether the system saves the registers.
bool cpu_has(int isa) {
#if defined(HEADCOUNT_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == kAvx2) return avx2;
#endif
#if defined(HEADCOUNT_WIDE)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (isa == kAvx512) return avx512;
  if (isa == kAvx512Bf16) return bf16;
  if (isa == kAmx)
    return bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles();
#endif
#if defined(HEADCOUNT_EMULATED_UNIT)
  if (isa == kEmulated) return true;
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
  int best = kAmx;
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
