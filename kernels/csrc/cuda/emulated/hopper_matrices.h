// The names of hopper/matrices.h on the host. A product is formed as late as it may be, when a thread waits for it,
// from what shared memory holds then; until then its results read as NaN. Descriptors are decoded bit by bit and
// operands read from where they lie swizzled.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <memory>
#include <vector>

#include "cuda/emulated/device.h"

namespace device {

// Shared memory as products see it begins at 0.
inline uint64_t swizzled_matrix(const void* start) {
  const auto offset = static_cast<const unsigned char*>(start) - emulated::current->block->shared;
  return swizzled_at(static_cast<uint32_t>(offset));
}

// A matrix descriptor (PTX ISA 9.7.15.5.1): bits 0 .. 13 where it begins, 16 .. 29 the leading and 32 .. 45
// the stride byte offset, all in units of 16 bytes, 49 .. 51 the base offset, 62 .. 63 the swizzle.
struct Described {
  uint32_t start, leading, stride;

  explicit Described(uint64_t bits)
      : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1) emulated::fail("a matrix that does not have the 128-byte swizzle, the only one played here");
    if (bits >> 49 & 7) emulated::fail("a matrix that does not begin in a whole group of eight rows");
  }
  // Of number (n, k): b [n, 16] in rows, or, transposed, b [16, n] in rows of 64 numbers.
  const void* at(int n, int k, bool transposed) const {
    const uint32_t plain = transposed ? start + n / 64 * leading + n % 64 * 2 + k % 8 * 128 + k / 8 * stride
                                      : start + n / 8 * stride + n % 8 * 128 + k * 2;
    const unsigned char* address = emulated::current->block->shared + (plain ^ ((plain >> 7 & 7) << 4));
    expect_shared(address, 2, 2);
    if (emulated::current->block->unfenced[piece_of_shared(address)])
      emulated::fail("a product with what a thread copied and did not fence for it");
    return address;
  }
};

struct Product {
  std::array<float*, 32> d;  // of the lanes of a warp
  float a[16][16];
  uint64_t b;
  int blocks;
  bool transposed, add;
  float (*number)(const void*);
};

// The results of a product that is under way, as the lanes will see them.
struct Held {
  std::array<float*, 32> d;
  std::vector<float> numbers[32];
};

// Of one warp.
struct Products {
  bool begun = false;
  std::vector<std::vector<Product>> groups{1};  // the last one open
  std::vector<Held> held;

  static Products& mine() {
    std::shared_ptr<void>& kept = emulated::current->block->products[emulated::current->number / 32];
    if (!kept) kept = std::make_shared<Products>();
    return *static_cast<Products*>(kept.get());
  }

  Held& hold(const Product& product) {
    for (Held& h : held) {
      if (h.d == product.d) return h;
    }
    held.push_back({product.d, {}});
    for (int lane = 0; lane < 32; ++lane) {
      float* d = product.d[lane];
      held.back().numbers[lane].assign(d, d + product.blocks * 4);
      std::fill(d, d + product.blocks * 4, std::numeric_limits<float>::quiet_NaN());
    }
    return held.back();
  }

  void form(const Product& product) {
    Held& h = hold(product);
    const Described matrix(product.b);
    for (int n = 0; n < product.blocks * 8; ++n) {
      float b[16];
      for (int k = 0; k < 16; ++k) b[k] = product.number(matrix.at(n, k, product.transposed));
      for (int row = 0; row < 16; ++row) {
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += product.a[row][k] * b[k];
        float& d = h.numbers[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
        d = product.add ? d + sum : sum;
      }
    }
  }

  void wait(size_t open) {
    begun = false;
    while (groups.size() > open + 1) {
      for (const Product& product : groups.front()) form(product);
      groups.erase(groups.begin());
    }
    const auto under_way = [&](const Held& h) {
      for (const auto& group : groups) {
        for (const Product& product : group) {
          if (product.d == h.d) return true;
        }
      }
      return false;
    };
    for (size_t i = held.size(); i-- > 0;) {
      if (under_way(held[i])) continue;
      for (int lane = 0; lane < 32; ++lane)
        std::copy(held[i].numbers[lane].begin(), held[i].numbers[lane].end(), held[i].d[lane]);
      held.erase(held.begin() + i);
    }
  }
};

struct Started {
  float* d;
  const uint32_t* a;
  uint64_t b;
  int blocks;
  bool transposed, add;
  float (*number)(const void*);
  float (*half)(uint32_t both, int which);

  static void compute(void** all, int) {
    const Started& first = *static_cast<Started*>(all[0]);
    Products& products = Products::mine();
    if (!products.begun) emulated::fail("a product of matrices without begin_products before it");
    Product product{{}, {}, first.b, first.blocks, first.transposed, first.add, first.number};
    for (int lane = 0; lane < 32; ++lane) {
      const Started& mine = *static_cast<Started*>(all[lane]);
      if (mine.b != first.b || mine.blocks != first.blocks || mine.transposed != first.transposed ||
          mine.add != first.add)
        emulated::fail("threads of a warp that start different products");
      product.d[lane] = mine.d;
      for (int part = 0; part < 4; ++part) {
        for (int which = 0; which < 2; ++which) {
          const int row = lane / 4 + part % 2 * 8, column = lane % 4 * 2 + part / 2 * 8 + which;
          product.a[row][column] = mine.half(mine.a[part], which);
        }
      }
    }
    products.hold(product);
    products.groups.back().push_back(product);
  }
  static void begin(void**, int) { Products::mine().begun = true; }
  static void close(void**, int) { Products::mine().groups.emplace_back(); }
  template <int open>
  static void wait(void**, int) {
    Products::mine().wait(open);
  }
};

inline void begin_products() { emulated::meet(warp(), lane(), nullptr, Started::begin); }
inline void close_products() { emulated::meet(warp(), lane(), nullptr, Started::close); }
template <int open, int blocks>
void wait_products(float (&d)[blocks][4]) {
  emulated::meet(warp(), lane(), nullptr, Started::wait<open>);
  for (const Held& h : Products::mine().held) {
    if (h.d[lane()] == d[0]) emulated::fail("a wait for a product that it leaves under way");
  }
}

template <typename T>
float number_at(const void* at) {
  T x;
  std::memcpy(&x, at, sizeof x);
  return to_float(x);
}
template <typename T, int blocks>
void start_product(float (&d)[blocks][4], const uint32_t (&a)[4], uint64_t b, bool transposed, bool add) {
  Started mine{d[0], a, b, blocks, transposed, add, number_at<T>, unpack<T>};
  emulated::meet(warp(), lane(), &mine, Started::compute);
}
template <typename T, int blocks>
void multiply_rows(float (&d)[blocks][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  start_product<T>(d, a, b, false, add);
}
template <typename T>
void multiply_columns(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  start_product<T>(d, a, b, true, add);
}

inline emulated::Group& warpgroup() { return emulated::current->block->warpgroups[emulated::current->number / 128]; }

template <int count>
void give_registers() {
  static_assert(count % 8 == 0 && count >= 24 && count <= 256, "as setmaxnreg wants it");
  emulated::meet(warpgroup(), emulated::current->number % 128, nullptr, nullptr);
}
template <int count>
void take_registers() {
  give_registers<count>();
}

}  // namespace device
