// Equal matrices stand once, whoever packs them and on whatever thread; their memory goes with the last holder.
#include "cpu/panel_store.h"

#include <cstring>
#include <string>
#include <thread>

#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;

namespace {

PackedBuffer matrix(std::int64_t n, std::int64_t k, std::uint64_t seed, Kind kind = Kind::float32) {
  Pool pool(1);
  return pack(Noise(seed).vector(n * k).data(), n, k, k, 1, kind, pool);
}

void try_sharing() {
  Panels first, second;
  const Packed one = first.add(matrix(33, 7, 1)), same = second.add(matrix(33, 7, 1));
  expect(one.data == same.data, "equal matrices stand once");
  expect(second.add(matrix(33, 7, 2)).data != one.data, "other numbers");
  expect(second.add(matrix(33, 7, 1, Kind::bfloat16)).data != one.data, "another kind");
  std::vector<float> w = Noise(1).vector(33 * 7);
  Pool pool(1);
  expect(second.add(pack(w.data(), 21, 11, 11, 1, Kind::float32, pool)).data != one.data, "another shape");
  w.back() = -w.back();
  expect(second.add(pack(w.data(), 33, 7, 7, 1, Kind::float32, pool)).data != one.data, "the last number alone");
}

void try_equal_marks() {
  PackedBuffer one = matrix(16, 4, 1), other = matrix(16, 4, 2);
  other.set_mark(one.mark());
  Panels panels;
  const Packed first = panels.add(std::move(one)), second = panels.add(std::move(other));
  expect(first.data != second.data, "an equal mark is not trusted");
  expect(std::memcmp(first.data, second.data, 16 * 4 * 4) != 0, "each has its own numbers");
}

void try_scales() {  // rows that differ by their scale alone have the same int8 numbers
  const std::vector<float> w{1, 2, 4, 8}, twice{2, 4, 8, 16};
  Pool pool(1);
  Panels panels;
  const Packed one = panels.add(pack(w.data(), 1, 4, 4, 1, Kind::int8, pool));
  const Packed other = panels.add(pack(twice.data(), 1, 4, 4, 1, Kind::int8, pool));
  expect(one.data != other.data && one.scale[0] * 2 == other.scale[0], "scales count");
}

void try_bytes() {
  const std::int64_t before = stored_bytes(), size = matrix(64, 512, 3).bytes();
  expect(stored_bytes() == before, "what is only packed is not stored");
  {
    Panels first;
    first.add(matrix(64, 512, 3));
    first.add(matrix(64, 512, 3));
    expect(stored_bytes() == before + size, "once");
    expect(count_bytes({&first}).held == size && count_bytes({&first}).shared == 0, "its own twice is not shared");
    Panels second;
    second.add(matrix(64, 512, 3));
    second.add(matrix(64, 512, 4));
    expect(stored_bytes() == before + 2 * size, "one more");
    expect(count_bytes({&second}).held == 2 * size && count_bytes({&second}).shared == size, "one of two is shared");
    expect(count_bytes({&first, &second}).held == 2 * size, "parts of one model");
  }
  expect(stored_bytes() == before, "gone with the last");
  Panels again;
  again.add(matrix(64, 512, 3));
  expect(stored_bytes() == before + size, "and back");
}

// Larger than a slab takes, so many that slabs follow one another, let go in any order, taken again.
void try_memory() {
  for (int round = 0; round < 3; ++round) {
    std::vector<PackedBuffer> kept;
    for (int i = 0; i < 40; ++i) {
      PackedBuffer packed(i == 7 ? 6000 : 512, 500 + i, Kind::float32);
      std::memset(packed.data(), i + 1, packed.bytes());
      if (i % 3 != round) kept.push_back(std::move(packed));
    }
    for (std::size_t i = 0; i < kept.size(); i += 2) kept[i] = PackedBuffer();
    for (const PackedBuffer& packed : kept) {
      const Packed view = packed.view();
      if (view.n == 0) continue;
      const auto* bytes = static_cast<const char*>(view.data);
      const char expected = static_cast<char>(view.k - 500 + 1);
      bool whole = reinterpret_cast<std::uintptr_t>(bytes) % 64 == 0;
      for (std::int64_t at = 0; at < packed.bytes(); ++at) whole = whole && bytes[at] == expected;
      expect(whole, "its own bytes, k " + std::to_string(view.k));
    }
  }
}

void try_threads() {
  const std::int64_t before = stored_bytes();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([] {
      for (std::uint64_t round = 0; round < 50; ++round) {
        Panels panels;
        for (std::uint64_t seed = 0; seed < 4; ++seed) panels.add(matrix(48, 9, seed));
        const Packed last = panels.add(matrix(700, 64, round % 3));
        expect(last.n == 700, "a view");
      }
    });
  for (std::thread& thread : threads) thread.join();
  expect(stored_bytes() == before, "nothing is left");
}

}  // namespace

int main() {
  try_sharing();
  try_equal_marks();
  try_scales();
  try_bytes();
  try_memory();
  try_threads();
  return finish("panel_store");
}
