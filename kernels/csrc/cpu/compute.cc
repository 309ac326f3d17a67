#include "cpu/compute.h"

#include <algorithm>
#include <cmath>

namespace headcount::cpu {
namespace {

constexpr std::int64_t linear_rows = 96;        // rows of a chunk: whole register tiles of 6 and of 12
constexpr std::int64_t linear_weights = 32768;  // weights of a chunk: some microseconds to read
constexpr std::int64_t norm_rows = 16;          // rows of a chunk of layer_norm and narrow
constexpr std::int64_t softmax_columns = 8192;  // columns of a chunk of log_softmax

std::int64_t pieces(std::int64_t whole, std::int64_t piece) { return (whole + piece - 1) / piece; }

// Which rows and which weights chunk number `chunk` is of.
struct Chunk {
  std::int64_t row, block;
};

// Up to 192 rows stay in the second cache, so the chunks of the same weights follow one another and those are read from
// memory once; of more rows the weights are what stays.
Chunk chunk_at(std::int64_t chunk, std::int64_t blocks, std::int64_t rows) {
  const std::int64_t heights = pieces(rows, linear_rows);
  if (heights <= 2) return {chunk % heights * linear_rows, chunk / heights};
  return {chunk / blocks * linear_rows, chunk % blocks};
}

}  // namespace

void Compute::linear(const Linear& given) {
  const Linear call = narrowed(given);
  const std::int64_t all = panels(call.w->n);
  const std::int64_t block =
      std::max<std::int64_t>(1, linear_weights / (panel_width * std::max<std::int64_t>(1, call.w->k)));
  const std::int64_t blocks = pieces(all, block);
  const std::int64_t chunks = blocks * pieces(call.rows, linear_rows);
  pool.run(chunks, [&](std::int64_t chunk, int) {
    const Chunk at = chunk_at(chunk, blocks, call.rows);
    const std::int64_t row = at.row, first = at.block * block;
    Linear part = call;
    part.rows = std::min(linear_rows, call.rows - row);
    part.x += row * call.ldx;
    part.y += row * call.ldy;
    if (part.x_scale != nullptr) part.x_scale += row;
    if (part.residual != nullptr) part.residual += row * call.ldy;
    kernels.linear(part, first, std::min(all, first + block));
  });
}

void Compute::linear(const Linear& given, const std::vector<Packed>& pieces) {
  Linear call = given;
  call.w = pieces.data();
  if (pieces.size() == 1) return linear(call);
  call = narrowed(call);
  const std::int64_t n = pieces[0].n, count = static_cast<std::int64_t>(pieces.size());
  const std::int64_t group = std::max<std::int64_t>(1, linear_weights / std::max<std::int64_t>(1, n * pieces[0].k));
  const std::int64_t groups = (count + group - 1) / group;
  pool.run(groups * ((call.rows + linear_rows - 1) / linear_rows), [&](std::int64_t chunk, int) {
    const Chunk at = chunk_at(chunk, groups, call.rows);
    const std::int64_t row = at.row, first = at.block * group;
    for (std::int64_t i = first; i < std::min(count, first + group); ++i) {
      Linear part = call;
      part.w = &pieces[i];
      part.rows = std::min(linear_rows, call.rows - row);
      part.x += row * call.ldx;
      part.y += row * call.ldy + i * n;
      if (part.bias != nullptr) part.bias += i * n;
      if (part.residual != nullptr) part.residual += row * call.ldy + i * n;
      if (part.x_scale != nullptr) part.x_scale += row;
      kernels.linear(part, 0, panels(n));
    }
  });
}

Linear Compute::narrowed(const Linear& call) {
  const Kind kind = call.w->kind;
  if (!kernels.narrows[static_cast<int>(kind)]) return call;
  Linear narrow = call;
  narrow.ldx = narrowed_stride(call.w->k);
  float* to = narrowed_.need(call.rows * (narrow.ldx + 1));
  float* scale = to + call.rows * narrow.ldx;
  pool.run(pieces(call.rows, norm_rows), [&](std::int64_t chunk, int) {
    const std::int64_t row = chunk * norm_rows;
    kernels.narrow(call.x + row * call.ldx, call.ldx, std::min(norm_rows, call.rows - row), call.w->k, kind,
                   to + row * narrow.ldx, scale + row);
  });
  narrow.x = to;
  narrow.x_scale = scale;
  return narrow;
}

void Compute::layer_norm(const float* x, const float* gain, const float* bias, std::int64_t rows, std::int64_t width,
                         float eps, float* y) {
  const std::int64_t chunks = pieces(rows, norm_rows);
  pool.run(chunks, [&](std::int64_t chunk, int) {
    const std::int64_t row = chunk * norm_rows, at = row * width;
    kernels.layer_norm(x + at, gain, bias, std::min(norm_rows, rows - row), width, eps, y + at);
  });
}

void Compute::log_softmax(float* x, std::int64_t rows, std::int64_t width) {
  const std::int64_t blocks = pieces(width, softmax_columns), chunks = rows * blocks;
  float* partial = partials_.need(2 * chunks);  // maximum and sum of each chunk, then log Σ exp of each row
  const auto columns = [&](std::int64_t block) { return std::min(softmax_columns, width - block * softmax_columns); };
  const auto at = [&](std::int64_t chunk) { return x + chunk / blocks * width + chunk % blocks * softmax_columns; };
  pool.run(chunks, [&](std::int64_t chunk, int) {
    kernels.log_sum_exp(at(chunk), columns(chunk % blocks), partial + 2 * chunk, partial + 2 * chunk + 1);
  });
  for (std::int64_t row = 0; row < rows; ++row) {
    float* own = partial + 2 * row * blocks;
    float maximum = own[0], sum = own[1];
    for (std::int64_t block = 1; block < blocks; ++block) join(maximum, sum, own[2 * block], own[2 * block + 1]);
    own[0] = maximum + std::log(sum);
  }
  pool.run(chunks, [&](std::int64_t chunk, int) {
    kernels.add_constant(at(chunk), columns(chunk % blocks), -partial[2 * (chunk / blocks * blocks)]);
  });
}

float* Compute::for_threads(std::int64_t floats) {
  thread_stride = whole_lines(floats) + line_floats;  // a line apart, so that two threads never share one
  return threads_.need(thread_stride * pool.threads());
}

Packed panel_range(const Packed& w, std::int64_t begin, std::int64_t end) {
  Packed part = w;
  part.data = static_cast<const char*>(w.data) + begin * panel_bytes(w.k, w.kind);
  if (part.scale != nullptr) part.scale += begin * panel_width;
  part.n = std::min(w.n, end * panel_width) - begin * panel_width;
  return part;
}

void join(float& maximum, float& sum, float other_maximum, float other_sum) {
  const float larger = std::max(maximum, other_maximum);
  sum = sum * std::exp(maximum - larger) + other_sum * std::exp(other_maximum - larger);
  maximum = larger;
}

}  // namespace headcount::cpu
