// Python-free test of hopper_attend and of the warpgroup products it is made of, on the emulator: against
// loops in double, in two orders of threads and with copies that arrive at once, which must change nothing.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/hopper/attend.h"
#include "cuda/hopper/hopper.h"
#include "cuda/hopper/rows.h"
#include "tests/cuda_attend_case.h"
#include "tests/expect.h"

using namespace headcount::test;
namespace cuda = headcount::cuda;

namespace {

// ---- products of a warpgroup

enum class Slip { none, next_row, no_wait, no_begin, wrong_wait };

// d [64, 64] = left [64, 64] · right, transposed or not; `early`: a number of d while the product is under way.
template <bool transposed>
__global__ void product_kernel(const bf16* left, TensorMap right, float* d, float* early, Slip slip) {
  unsigned char* matrix = device::shared_memory();
  device::Mbarrier& full = *reinterpret_cast<device::Mbarrier*>(matrix + 64 * 128);
  if (threadIdx.x == 0) {
    device::init(full, 1);
    device::publish_inits();
    device::arrive_and_expect(full, 64 * 128);
    device::copy_box(matrix, right, 1, 0, full);
  }
  device::barrier();
  device::wait(full, 0);
  const int top = threadIdx.x / 32 * 16 + cuda::row_of_thread(), column = cuda::column_of_thread();
  uint32_t query[4][4];
  cuda::load_queries<bf16, 64>(query, 64, nullptr, [&](int r) { return left + (threadIdx.x / 32 * 16 + r) * 64; });
  float sums[8][4] = {}, other[8][4] = {};
  const unsigned char* from = matrix + (slip == Slip::next_row ? 128 : 0);
  if (slip != Slip::no_begin) device::begin_products();
  for (int k = 0; k < 4; ++k) {
    if (transposed) {
      device::multiply_rows<bf16>(sums, query[k], device::swizzled_matrix(from + k * 32), k > 0);
    } else {
      device::multiply_columns<bf16>(sums, query[k], device::swizzled_matrix(from + k * 16 * 128), true);
    }
  }
  device::close_products();
  if (threadIdx.x == 0) *early = sums[7][3];
  if (slip == Slip::wrong_wait) device::wait_products<1>(sums);
  slip == Slip::no_wait ? device::wait_products<1>(other) : device::wait_products<0>(sums);
  for (int i = 0; i < 8; ++i) {
    for (int e = 0; e < 4; ++e) d[(top + e / 2 * 8) * 64 + i * 8 + column + e % 2] = sums[i][e];
  }
}

// Whether the numbers are right.
template <bool transposed>
bool multiply(Slip slip) {
  Noise noise(3);
  std::vector<float> left = noise.vector(64 * 64), right = noise.vector(2 * 64 * 64), d(64 * 64, not_a_number);
  std::vector<bf16> left_numbers = rounded<bf16>(left), right_numbers = rounded<bf16>(right);
  left_numbers.resize(64 * 64);
  float early = 0;
  Launch launch;
  launch.shared_bytes = 64 * 128 + 1024;
  start(launch, nullptr, product_kernel<transposed>, static_cast<const bf16*>(left_numbers.data()),
        describe_tables(right_numbers.data(), 2, 64, 64), d.data(), &early, slip);
  expect(std::isnan(early), "results that are read too early");
  bool right_numbers_came = true;
  for (int r = 0; r < 64; ++r) {
    for (int n = 0; n < 64; ++n) {
      double sum = 0;
      for (int k = 0; k < 64; ++k) {
        sum += double(left[r * 64 + k]) * right[64 * 64 + (transposed ? n * 64 + k : k * 64 + n)];
      }
      right_numbers_came = right_numbers_came && std::fabs(d[r * 64 + n] - sum) < 1e-4;
    }
  }
  return right_numbers_came;
}

template <typename Act>
bool fails(Act act) {
  try {
    act();
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

void check_products() {
  expect(multiply<true>(Slip::none), "a product with rows");
  expect(multiply<false>(Slip::none), "a product with columns");
  expect(!multiply<true>(Slip::next_row), "a matrix that begins a row too late");
  expect(!multiply<false>(Slip::next_row), "a matrix that begins a row too late, by columns");
  expect(!multiply<true>(Slip::no_wait), "a product that was not waited for");
  expect(fails([] { multiply<true>(Slip::no_begin); }), "a product without begin_products");
  expect(fails([] { multiply<true>(Slip::wrong_wait); }), "a wait that leaves what it is for under way");
}

// ---- attention

// The bits of all rows; sequences of one row are left out where `several_only`.
template <typename T>
std::vector<T> attend(Material<T>& m, bool several_only) {
  const Case& c = m.c;
  std::vector<T> attended(m.query_numbers.size(), device::from_float<T>(not_a_number));
  const cuda::Attention a = told(m, attended);
  std::vector<int32_t> tile_sequence, tile_row;
  for (size_t i = 0; i < m.lengths.size(); ++i) {
    if (several_only && m.lengths[i] == 1) continue;
    for (int row = 0; row < m.lengths[i]; row += cuda::hopper_tile_rows) {
      tile_sequence.push_back(static_cast<int32_t>(i));
      tile_row.push_back(row);
    }
  }
  const cuda::Sequences all = {static_cast<int>(m.lengths.size()),
                               m.first_rows.data(),
                               m.lengths.data(),
                               m.slots.data(),
                               m.offsets.data(),
                               m.positions.data()};
  const cuda::NewRows fresh = {m.new_keys.data(),
                               m.new_values.data(),
                               tile_sequence.data(),
                               tile_row.data(),
                               static_cast<int>(tile_row.size()),
                               cuda::hopper_tile_rows};
  expect(cuda::hopper_attend_fits(a, fresh.tiles), c.name + ": fits");
  cuda::hopper_attend(a, all, fresh, nullptr);
  return attended;
}

template <typename T>
void check(const Case& c, bool several_only) {
  Material<T> m(c);
  emulated_order = 0;
  const std::vector<T> attended = attend(m, several_only);
  const std::string what = c.name + (std::is_same_v<T, bf16> ? ", bfloat16" : ", float16");
  const auto of_no_sequence = [&](size_t i) {
    const size_t row = i / (c.heads * c.head_dim);
    for (size_t n = 0; n < m.lengths.size(); ++n) {
      if (m.first_rows[n] == static_cast<int64_t>(row)) return several_only && m.lengths[n] == 1;
    }
    return false;
  };
  int wrong = 0;
  double worst = 0;
  for (size_t i = 0; i < attended.size(); ++i) {
    const double error = std::fabs(device::to_float(attended[i]) - m.expected[i]);
    if (of_no_sequence(i)) {
      expect(std::isnan(error), what + ": a row of no sequence was written");
      continue;
    }
    wrong += !(error <= m.allowed[i]);
    worst = std::max(worst, error / m.allowed[i]);
  }
  expect(wrong == 0, what + ": " + std::to_string(wrong) + " of " + std::to_string(attended.size()) +
                         " numbers wrong, the worst " + std::to_string(worst) + " times what is allowed");
  emulated_order = 20261;
  const std::vector<T> again = attend(m, several_only);
  expect(std::memcmp(attended.data(), again.data(), attended.size() * sizeof(T)) == 0,
         what + ": another order of threads changes bits");
  emulated::copies_at_once = true;
  const std::vector<T> early = attend(m, several_only);
  emulated::copies_at_once = false;
  expect(std::memcmp(attended.data(), early.data(), attended.size() * sizeof(T)) == 0,
         what + ": copies that arrive at once change bits");
}

// Heads of 64; steps of 128 persistent vectors and 64 keys on six stages.
std::vector<Case> cases() {
  std::vector<Case> all(9);
  all[0] = {"round the stages twice", 2, 64, 700, 200};
  all[0].sequences = {{1, 3}, {130, 500}, {65, 0}};
  all[1] = {"whole steps, rings without a spare slot", 1, 64, 256, 64};
  all[1].sequences = {{64, 640}, {128, 64}, {1, 63}};
  all[1].spare = 0;
  all[2] = {"no persistent vectors", 1, 64, 0, 70};
  all[2].sequences = {{3, 9}, {66, 31}};
  all[3] = {"previous tokens, spans", 3, 64, 20, 90, 0, 1};
  all[3].tables = 1;
  all[3].content_bias = all[3].position_bias = false;
  all[3].ramp = 40;
  all[3].sequences = {{70, 2}, {2, 400}, {3, 0}};
  all[4] = {"segments of zeros", 1, 64, 9, 30, 50, 0, true};
  all[4].sequences = {{75, 0}, {9, 4}, {140, 33}};
  all[5] = {"segments", 1, 64, 0, 67, 70};
  all[5].sequences = {{171, 5}, {6, 99}};
  all[6] = {"nothing relative", 2, 64, 129, 300};
  all[6].tables = 0;
  all[6].position_bias = false;
  all[6].sequences = {{200, 700}, {33, 50}};
  all[7] = {"peaks far apart", 1, 64, 40, 150};
  all[7].size = 6;
  all[7].sequences = {{135, 200}};
  all[8] = {"a window shorter than a step", 1, 64, 1, 3};
  all[8].sequences = {{129, 64}, {5, 1}};
  return all;
}

}  // namespace

int main() {
  check_products();
  for (const Case& c : cases()) {
    check<bf16>(c, true);
    check<fp16>(c, false);
  }
  return finish("cuda_hopper");
}
