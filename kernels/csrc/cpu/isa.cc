#include "cpu/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>

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

enum class Op : int {
  narrow,
  linear,
  layer_norm,
  attend_rows,
  attend_persistent,
  attend_ring,
  log_sum_exp,
  add_constant
};
constexpr const char* op_names[] = {"narrow",      "linear",      "layer_norm",  "attend_rows", "attend_persistent",
                                    "attend_ring", "log_sum_exp", "add_constant"};
constexpr int ops = static_cast<int>(std::size(op_names));

// Ascending, but for the last: what the widest unit computes, on any CPU, slowly; built for the tests only.
enum class Isa : int { generic, avx2, avx512, avx512_bf16, amx, emulated };
constexpr const char* all_isa_names[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx", "emulated"};
constexpr int isas = static_cast<int>(std::size(all_isa_names));

constexpr const char *isa_variable = "HEADCOUNT_CPU_ISA", *old_isa_variable = "ENGINE_CPU_ISA";

std::array<std::array<std::atomic<std::int64_t>, ops>, isas> counts{};

template <Isa ISA>
const Kernels& compiled() {
#if defined(HEADCOUNT_X86)
  if constexpr (ISA == Isa::avx2) return avx2::table;
#endif
#if defined(HEADCOUNT_WIDE)
  if constexpr (ISA == Isa::avx512) return avx512::table;
  if constexpr (ISA == Isa::avx512_bf16) return avx512_bf16::table;
  if constexpr (ISA == Isa::amx) return amx::table;
#endif
#if defined(HEADCOUNT_EMULATED_UNIT)
  if constexpr (ISA == Isa::emulated) return emulated::table;
#endif
  return generic::table;
}

// A kernel that counts its call and goes on to the unit's.
template <Isa ISA, Op OP, auto MEMBER>
struct Counted;

template <Isa ISA, Op OP, typename... Arguments, void (*Kernels::*MEMBER)(Arguments...)>
struct Counted<ISA, OP, MEMBER> {
  static void call(Arguments... arguments) {
    counts[static_cast<int>(ISA)][static_cast<int>(OP)].fetch_add(1, std::memory_order_relaxed);
    (compiled<ISA>().*MEMBER)(arguments...);
  }
};

template <Isa ISA>
const Kernels& counted() {
  static const Kernels table = {all_isa_names[static_cast<int>(ISA)],
                                {compiled<ISA>().narrows[0], compiled<ISA>().narrows[1], compiled<ISA>().narrows[2]},
                                &Counted<ISA, Op::narrow, &Kernels::narrow>::call,
                                &Counted<ISA, Op::linear, &Kernels::linear>::call,
                                &Counted<ISA, Op::layer_norm, &Kernels::layer_norm>::call,
                                &Counted<ISA, Op::attend_rows, &Kernels::attend_rows>::call,
                                &Counted<ISA, Op::attend_persistent, &Kernels::attend_persistent>::call,
                                &Counted<ISA, Op::attend_ring, &Kernels::attend_ring>::call,
                                &Counted<ISA, Op::log_sum_exp, &Kernels::log_sum_exp>::call,
                                &Counted<ISA, Op::add_constant, &Kernels::add_constant>::call};
  return table;
}

const Kernels& table_of(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return counted<Isa::avx2>();
    case Isa::avx512:
      return counted<Isa::avx512>();
    case Isa::avx512_bf16:
      return counted<Isa::avx512_bf16>();
    case Isa::amx:
      return counted<Isa::amx>();
    case Isa::emulated:
      return counted<Isa::emulated>();
    default:
      return counted<Isa::generic>();
  }
}

#if defined(HEADCOUNT_WIDE)
// Linux keeps the tile registers of a process only after it asked for them, once for all its threads.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool may = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return may;
#else
  return false;
#endif
}
#endif

// The flags the unit is compiled with, all of them; libgcc also asks whether the system saves the registers.
bool cpu_has(Isa isa) {
#if defined(HEADCOUNT_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
#endif
#if defined(HEADCOUNT_WIDE)
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::avx512_bf16) return bf16;
  if (isa == Isa::amx)
    return bf16 && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && may_use_tiles();
#endif
#if defined(HEADCOUNT_EMULATED_UNIT)
  if (isa == Isa::emulated) return true;
#endif
  return isa == Isa::generic;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Kernels& chosen(const std::string& name, const char* argument) {
  for (int number = 0; number < isas; ++number) {
    if (name != all_isa_names[number]) continue;
    const auto isa = static_cast<Isa>(number);
    check(cpu_has(isa), argument, "an instruction set of this CPU: " + joined(isa_names()), name);
    return table_of(isa);
  }
  throw CheckError(argument, "one of " + joined({std::begin(all_isa_names), std::end(all_isa_names)}),
                   "'" + name + "'");
}

}  // namespace

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (int isa = 0; isa < isas; ++isa)
    if (cpu_has(static_cast<Isa>(isa))) names.emplace_back(all_isa_names[isa]);
  return names;
}

const Kernels& kernels_named(const std::string& name) { return chosen(name, "isa"); }

const Kernels& kernels() {
  const char *forced = std::getenv(isa_variable), *old = std::getenv(old_isa_variable);
  check(old == nullptr || *old == '\0', old_isa_variable, std::string("its new name ") + isa_variable, "the old one");
  if (forced != nullptr && *forced != '\0') return chosen(forced, isa_variable);
  int best = static_cast<int>(Isa::amx);
  while (!cpu_has(static_cast<Isa>(best))) --best;
  return table_of(static_cast<Isa>(best));
}

std::vector<CallCount> call_counts() {
  std::vector<CallCount> all;
  for (int isa = 0; isa < isas; ++isa)
    for (int op = 0; op < ops; ++op)
      all.push_back({all_isa_names[isa], op_names[op], counts[isa][op].load(std::memory_order_relaxed)});
  return all;
}

}  // namespace headcount::cpu
