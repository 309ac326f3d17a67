// The choice of the instruction set: names, the variable that forces one, refusals, call counters.
#include "cpu/isa.h"

#include <algorithm>
#include <cstdlib>

#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;

namespace {

std::int64_t calls(const std::string& isa, const std::string& op) {
  for (const CallCount& count : call_counts())
    if (count.isa == isa && count.op == op) return count.calls;
  return -1;
}

}  // namespace

int main() {
  const std::vector<std::string> names = isa_names();
  expect(!names.empty() && names.front() == "generic", "generic is everywhere");
  unsetenv("HEADCOUNT_CPU_ISA");
  const std::string best = names[names.size() - (names.back() == "emulated" ? 2 : 1)];
  expect(kernels().name == best, "the best one by default");
  setenv("HEADCOUNT_CPU_ISA", "", 1);
  expect(kernels().name == best, "an empty variable is none");
  for (const std::string& name : names) {
    setenv("HEADCOUNT_CPU_ISA", name.c_str(), 1);
    expect(kernels().name == name, "forced to " + name);
    expect(&kernels_named(name) == &kernels(), "one table per name");
    const std::int64_t before = calls(name, "add_constant");
    float x = 1.0f;
    kernels().add_constant(&x, 1, 1.0f);
    expect(x == 2.0f && calls(name, "add_constant") == before + 1, "the call of " + name + " is counted");
    expect(calls(name, "linear") == 0, "and no other");
  }
  for (const char* name : {"avx2", "avx512", "avx512_bf16", "amx"}) {
    bool has = false;
    for (const std::string& known : names) has = has || known == name;
    setenv("HEADCOUNT_CPU_ISA", name, 1);
    expect(refused([] { kernels(); }) == (has ? "" : "HEADCOUNT_CPU_ISA"),
           std::string("refused what the CPU lacks: ") + name);
  }
  setenv("HEADCOUNT_CPU_ISA", "AVX2", 1);
  expect(refused([] { kernels(); }) == "HEADCOUNT_CPU_ISA", "unknown name in the variable refused");
  expect(refused([] { kernels_named("sse"); }) == "isa", "unknown name refused");
  setenv("HEADCOUNT_CPU_ISA", "generic", 1);
  setenv("ENGINE_CPU_ISA", "generic", 1);
  expect(refused([] { kernels(); }) == "ENGINE_CPU_ISA", "the variable's old name refused");
  setenv("ENGINE_CPU_ISA", "", 1);
  expect(kernels().name == std::string("generic"), "an empty variable of the old name is none");
  return finish("isa");
}
