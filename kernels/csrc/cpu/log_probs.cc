// The vocabulary of a head: whole log-softmaxes, or the target's log-probability alone.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/head.h"

namespace headcount::cpu {
namespace {

constexpr std::int64_t chunk_rows = 48;      // rows of a chunk of logits: whole register tiles of 6 and of 12
constexpr std::int64_t chunk_columns = 512;  // columns: the chunk's logits stay in the second cache

std::int64_t pieces(std::int64_t whole, std::int64_t piece) { return (whole + piece - 1) / piece; }

}  // namespace

// hidden [rows, hidden] → [rows, width of the cluster]; hidden itself where nothing projects it.
const float* Head::projected(const float* hidden, std::int64_t rows, std::int64_t cluster) {
  if (!shape_.clusters[cluster].projected) return hidden;
  const Packed w = clusters_[cluster].projection;
  float* y = projected_.need(rows * w.n);
  compute_.linear({hidden, hidden_, rows, &w, nullptr, nullptr, y, w.n, Activation::none});
  return y;
}

void Head::logits(const float* hidden, std::int64_t rows, float* out) {
  const Packed words = clusters_[0].rows;
  compute_.linear({projected(hidden, rows, 0), words.k, rows, &words, data_or_null(clusters_[0].bias), nullptr, out,
                   words.n, Activation::none});
}

void Head::head_log_probs(const float* hidden, std::int64_t rows, float* out) {
  const float* first = projected(hidden, rows, 0);
  const Packed words = clusters_[0].rows;
  compute_.linear(
      {first, words.k, rows, &words, data_or_null(clusters_[0].bias), nullptr, out, head_width(), Activation::none});
  if (tails() > 0) {
    const Packed entries = entries_;
    const float* x = shape_.clusters_read_hidden ? hidden : first;
    compute_.linear({x, entries.k, rows, &entries, data_or_null(entries_bias_), nullptr, out + words.n, head_width(),
                     Activation::none});
  }
  compute_.log_softmax(out, rows, head_width());
}

void Head::tail_log_probs(const float* hidden, std::int64_t rows, std::int64_t cluster, float* out) {
  const std::int64_t width = tail_width(cluster);
  const float* x = projected(hidden, rows, cluster);
  const Packed words = clusters_[cluster].rows;
  compute_.linear(
      {x, words.k, rows, &words, data_or_null(clusters_[cluster].bias), nullptr, out, width, Activation::none});
  compute_.log_softmax(out, rows, width);
}

// For logits = x · Wᵀ + bias: mass[2 · row], mass[2 · row + 1] = their maximum and Σ exp(logit - maximum);
// logits[row] = the one of column wanted[row], untouched where that is not a column.
void Head::log_mass(const Packed& w, const float* bias, const float* x, std::int64_t rows, const std::int64_t* wanted,
                    float* mass, float* logits) {
  const std::int64_t blocks = pieces(w.n, chunk_columns), chunks = blocks * pieces(rows, chunk_rows);
  float* partials = partials_.need(2 * rows * blocks);
  float* scratch = compute_.for_threads(chunk_rows * chunk_columns);
  const std::int64_t stride = compute_.thread_stride;
  const Linear whole =
      compute_.narrowed({x, w.k, rows, &w, nullptr, nullptr, nullptr, chunk_columns, Activation::none});
  compute_.pool.run(chunks, [&](std::int64_t chunk, int thread) {
    const std::int64_t block = chunk % blocks, column = block * chunk_columns, first = chunk / blocks * chunk_rows;
    const std::int64_t count = std::min(chunk_rows, rows - first);
    const Packed part =
        panel_range(w, column / panel_width, std::min(panels(w.n), (column + chunk_columns) / panel_width));
    float* y = scratch + thread * stride;
    Linear logit = whole;
    logit.x += first * whole.ldx;
    logit.rows = count;
    logit.w = &part;
    logit.bias = bias == nullptr ? nullptr : bias + column;
    logit.y = y;
    if (logit.x_scale != nullptr) logit.x_scale += first;
    compute_.kernels.linear(logit, 0, panels(part.n));
    for (std::int64_t row = 0; row < count; ++row) {
      float* own = partials + 2 * ((first + row) * blocks + block);
      compute_.kernels.log_sum_exp(y + row * chunk_columns, part.n, own, own + 1);
      const std::int64_t at = wanted[first + row] - column;
      if (at >= 0 && at < part.n) logits[first + row] = y[row * chunk_columns + at];
    }
  });
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* own = partials + 2 * row * blocks;
    float maximum = own[0], sum = own[1];
    for (std::int64_t block = 1; block < blocks; ++block) join(maximum, sum, own[2 * block], own[2 * block + 1]);
    mass[2 * row] = maximum;
    mass[2 * row + 1] = sum;
  }
}

// members_ = the rows whose target is in cluster c, or, for the first, in any; their hidden states side by side.
const float* Head::choose(const float* hidden, std::int64_t rows, const std::int64_t* targets, std::int64_t c) {
  const ClusterShape& cluster = shape_.clusters[c];
  const std::int64_t stop = c == 0 ? size() : cluster.start + cluster.size;
  members_.clear();
  for (std::int64_t row = 0; row < rows; ++row)
    if (targets[row] >= cluster.start && targets[row] < stop) members_.push_back(row);
  float* x = chosen_.need(static_cast<std::int64_t>(members_.size()) * hidden_);
  for (std::size_t m = 0; m < members_.size(); ++m)
    std::copy_n(hidden + members_[m] * hidden_, hidden_, x + m * hidden_);
  return x;
}

// The column of the tails' entries that leads to a target, -1 for a word of the first cluster.
std::int64_t Head::entry_column(std::int64_t target) const {
  std::int64_t c = tails();
  while (target < shape_.clusters[c].start) --c;
  return c == 0 ? -1 : shape_.clusters[c].entry - shape_.clusters[0].size;
}

// -log p within cluster c of the chosen rows, the entries counting as words of the first; masses and logits as
// log_mass.
void Head::add_nll(const float* x, const std::int64_t* targets, std::int64_t c, float* out) {
  const auto count = static_cast<std::int64_t>(members_.size());
  float* mass = results_.need(5 * count);
  float *logits = mass + 2 * count, *entry_mass = mass + 3 * count;
  const float* narrow = projected(x, count, c);
  wanted_.resize(count);
  for (std::int64_t m = 0; m < count; ++m) wanted_[m] = targets[members_[m]] - shape_.clusters[c].start;
  log_mass(clusters_[c].rows, data_or_null(clusters_[c].bias), narrow, count, wanted_.data(), mass, logits);
  if (c == 0 && tails() > 0) {
    for (std::int64_t m = 0; m < count; ++m) wanted_[m] = entry_column(targets[members_[m]]);
    log_mass(entries_, data_or_null(entries_bias_), shape_.clusters_read_hidden ? x : narrow, count, wanted_.data(),
             entry_mass, logits);
    for (std::int64_t m = 0; m < count; ++m)
      join(mass[2 * m], mass[2 * m + 1], entry_mass[2 * m], entry_mass[2 * m + 1]);
  }
  for (std::int64_t m = 0; m < count; ++m) out[members_[m]] += mass[2 * m] + std::log(mass[2 * m + 1]) - logits[m];
}

void Head::target_nll(const float* hidden, std::int64_t rows, const std::int64_t* targets, float* out) {
  words();  // refuses a model that has none
  for (std::int64_t row = 0; row < rows; ++row)
    check(targets[row] >= -1 && targets[row] < size(), "targets",
          "ids from 0 to " + std::to_string(size() - 1) + ", or -1", std::to_string(targets[row]));
  for (std::int64_t row = 0; row < rows; ++row)
    out[row] = targets[row] < 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  for (std::int64_t c = 0; c <= tails(); ++c) {
    const float* x = choose(hidden, rows, targets, c);
    if (!members_.empty()) add_nll(x, targets, c, out);
  }
}

}  // namespace headcount::cpu
