// Whether the emulator finds what it is there to find: each fault is planted in a small kernel that is
// right without it.
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/hopper/hopper.h"
#include "cuda/launch.h"
#include "tests/expect.h"

using namespace headcount::test;

namespace {

constexpr int threads = 64;

// What a launch throws, or "".
std::string thrown(const std::function<void()>& launch) {
  try {
    launch();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), size_t shared_bytes, Arguments... arguments) {
  Launch one;
  one.name = "planted";
  one.threads = threads;
  one.shared_bytes = shared_bytes;
  start(one, nullptr, kernel, arguments...);
}

// Each thread reads what its neighbour in the other warp wrote; wait: after a barrier.
void exchange(int* out, bool wait) {
  int* shared = reinterpret_cast<int*>(device::shared_memory());
  shared[threadIdx.x] = threadIdx.x;
  if (wait) device::barrier();
  out[threadIdx.x] = shared[(threadIdx.x + 32) % threads];
}

void test_missing_barrier() {
  for (const bool wait : {true, false}) {
    bool right = true;
    for (const unsigned order : {0u, 1u, 2u, 3u}) {
      emulated_order = order;
      std::vector<int> out(threads, -1);
      launch(exchange, threads * sizeof(int), out.data(), wait);
      for (int i = 0; i < threads; ++i) right = right && out[i] == (i + 32) % threads;
    }
    expect(right == wait, wait ? "an exchange with its barrier" : "a race is seen where the barrier is missing");
  }
  emulated_order = 0;
}

// Copies 8 floats a thread and reads them while closed groups may be under way; leave: ends so.
template <int open>
void copied(const float* source, float* out, bool leave) {
  float* shared = reinterpret_cast<float*>(device::shared_memory()) + threadIdx.x * 8;
  for (int half = 0; half < 2; ++half) {
    device::copy_16(shared + half * 4, source + threadIdx.x * 8 + half * 4, threadIdx.x != 5);
    device::close_copies();
  }
  device::wait_copies<open>();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = shared[i];
  if (!leave) device::wait_copies<0>();
}

void test_missing_wait() {
  alignas(16) float source[threads * 8];
  for (int i = 0; i < threads * 8; ++i) source[i] = static_cast<float>(i);
  std::vector<float> out(threads * 8);
  launch(copied<0>, sizeof source, static_cast<const float*>(source), out.data(), false);
  bool right = true;
  for (int i = 0; i < threads * 8; ++i) right = right && out[i] == (i / 8 == 5 ? 0.0f : source[i]);
  expect(right, "copies that were waited for, zeros where nothing is there");
  launch(copied<1>, sizeof source, static_cast<const float*>(source), out.data(), false);
  bool poisoned = true;
  for (int i = 0; i < threads * 8; ++i) poisoned = poisoned && std::isnan(out[i]) == (i % 8 >= 4);
  expect(poisoned, "the copies of an open group have not arrived: NaN");
}

// Half of the block comes to a barrier of all.
void half_waits(int) {
  if (threadIdx.x < 32) device::barrier();
}
// A bulk copy that is not waited for, or with the fault away the block does.
void brings_bytes(const float* source, bool wait) {
  auto& barrier = *reinterpret_cast<device::Mbarrier*>(device::shared_memory());
  if (threadIdx.x == 0) {
    device::init(barrier, 1);
    device::publish_inits();
    device::arrive_and_expect(barrier, 16);
    device::copy_bulk(device::shared_memory() + 16, source, 16, barrier);
  }
  device::barrier();
  if (wait) device::wait(barrier, 0);
}
// Bytes are expected that no copy brings, or brings with the fault away.
void expects_bytes(const float* source, bool bring) {
  auto& barrier = *reinterpret_cast<device::Mbarrier*>(device::shared_memory());
  if (threadIdx.x == 0) {
    device::init(barrier, 1);
    device::publish_inits();
  }
  device::barrier();
  if (threadIdx.x == 0) {
    device::arrive_and_expect(barrier, 16);
    if (bring) device::copy_bulk(device::shared_memory() + 16, source, 16, barrier);
  }
  device::wait(barrier, 0);
}

void test_copies_at_the_end() {
  alignas(16) float source[threads * 8] = {};
  const float* from = source;
  std::vector<float> out(threads * 8);
  const std::string left = thrown([&] { launch(copied<1>, sizeof source, from, out.data(), true); });
  expect(left.find("block (0, 0, 0): it ends with copies") != std::string::npos,
         "a thread ends before its copies came");
  const auto run = [&](bool wait) { return thrown([&] { launch(brings_bytes, 32, from, wait); }); };
  expect(run(true).empty(), "a bulk copy that was waited for");
  expect(run(false).find("block (0, 0, 0): it ends with copies to its mbarriers") != std::string::npos,
         "a block ends before its bulk copy came");
}

void test_deadlocks() {
  const std::string stuck = thrown([] { launch(half_waits, 0, 0); });
  expect(stuck.find("never come") != std::string::npos, "a barrier half a block uses");
  expect(stuck.find("planted: ") == 0, "an error begins with the kernel's name");
  alignas(16) float source[4] = {};
  const auto run = [&](bool bring) {
    return thrown([&] { launch(expects_bytes, 32, static_cast<const float*>(source), bring); });
  };
  expect(run(true).empty(), "an mbarrier whose bytes come");
  expect(run(false).find("never come") != std::string::npos, "an mbarrier whose bytes never come");
}

// A row of 16 bytes at an offset in bytes.
void loads_at(int offset) {
  uint32_t r[4];
  device::load_matrices(r, device::shared_memory() + threadIdx.x % 32 * 16 + offset);
}
void copies_to(const float* source, int offset) {
  device::copy_16(device::shared_memory() + threadIdx.x * 16 + offset, source, true);
  device::close_copies();
  device::wait_copies<0>();
}

void test_addresses() {
  const auto loaded = [](int offset) { return thrown([&] { launch(loads_at, 1024, offset); }); };
  expect(loaded(0).empty() && loaded(512).empty(), "rows on 16 bytes inside shared memory");
  expect(loaded(8).find("misaligned") != std::string::npos, "a row not on 16 bytes");
  expect(loaded(528).find("outside") != std::string::npos, "a row beyond shared memory");
  alignas(16) const float source[8] = {};
  const auto run = [](const float* from, int offset) { return thrown([&] { launch(copies_to, 1040, from, offset); }); };
  expect(run(source, 0).empty() && run(source, 16).empty(), "a copy onto 16 bytes");
  expect(run(source, 4).find("misaligned") != std::string::npos, "a copy to an odd place");
  expect(run(source + 1, 0).find("misaligned source") != std::string::npos, "a copy from an odd place");
  expect(run(source, 32).find("outside") != std::string::npos, "a copy beyond shared memory");
}

// One lane shuffles where the others multiply.
void disagrees(bool fault) {
  float d[4] = {};
  const uint32_t a[4] = {};
  if (fault && threadIdx.x == 7) {
    device::shuffle_xor(1.0f, 1);
  } else {
    device::mma<bf16>(d, a, 0, 0);
  }
}

void test_warps_act_together() {
  expect(thrown([] { launch(disagrees, 0, false); }).empty(), "a warp that multiplies");
  expect(thrown([] { launch(disagrees, 0, true); }).find("different things") != std::string::npos,
         "a lane that does something else");
}

// d = a · bᵀ of [16, 16] and [8, 16] in shared memory, as the kernels load them.
template <typename T>
void product(const T* a, const T* b, float* out) {
  T* shared = reinterpret_cast<T*>(device::shared_memory());
  if (threadIdx.x < 32) {
    for (int i = threadIdx.x; i < 256; i += 32) shared[i] = a[i];
    for (int i = threadIdx.x; i < 256; i += 32) shared[256 + i] = b[i % 128];
    device::warp_barrier();
    uint32_t left[4], right[4];
    const int lane = threadIdx.x;
    device::load_matrices(left, shared + lane % 16 * 16 + lane / 16 * 8);
    device::load_matrices(right, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    float d[4] = {};
    device::mma<T>(d, left, right[0], right[1]);
    for (int i = 0; i < 4; ++i) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
  }
}

template <typename T>
void test_product(const std::string& name) {
  std::vector<T> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[i] = device::from_float<T>(static_cast<float>(i * 7 % 23 - 11));
  for (int i = 0; i < 128; ++i) b[i] = device::from_float<T>(static_cast<float>(i * 5 % 19 - 9));
  std::vector<float> out(128, not_a_number);
  launch(product<T>, 1024, static_cast<const T*>(a.data()), static_cast<const T*>(b.data()), out.data());
  bool right = true;
  for (int r = 0; r < 16; ++r) {
    for (int c = 0; c < 8; ++c) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += device::to_float(a[r * 16 + k]) * device::to_float(b[c * 16 + k]);
      right = right && out[r * 8 + c] == sum;
    }
  }
  expect(right, "fragments of a product, " + name);
}

template <typename T>
void test_rounding(const std::string& name) {
  bool same = true, nearest = true;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T number{static_cast<uint16_t>(bits)};
    const float value = device::to_float(number);
    if (std::isnan(value)) continue;
    same = same && device::from_float<T>(value).bits == number.bits;
    const T next{static_cast<uint16_t>(bits + 1)};
    if ((bits & 0x7fff) == 0x7fff || !std::isfinite(value) || !std::isfinite(device::to_float(next))) continue;
    const float middle = value / 2 + device::to_float(next) / 2;  // exact in float32
    nearest = nearest && device::from_float<T>(middle).bits == (bits % 2 ? next.bits : number.bits);
  }
  expect(same, "every number is what it is rounded to, " + name);
  expect(nearest, "the middle of two numbers goes to the even one, " + name);
}

}  // namespace

int main() {
  test_missing_barrier();
  test_missing_wait();
  test_copies_at_the_end();
  test_deadlocks();
  test_addresses();
  test_warps_act_together();
  test_product<bf16>("bfloat16");
  test_product<fp16>("float16");
  test_rounding<bf16>("bfloat16");
  test_rounding<fp16>("float16");
  return finish("cuda_emulator");
}
