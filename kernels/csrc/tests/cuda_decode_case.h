// A small model for the test of the decode kernel, and its layers by loops in double from the equations of
// engine_kernels/ops.py, exactly or rounded wherever numbers of 16 bits are multiplied.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/decode/decode.h"
#include "cuda/device.h"

namespace headcount::test {

using Doubles = std::vector<double>;

// Weights of a layer: what the kernel is given, whose values the loops read.
template <typename T>
struct LayerCase {
  cuda::decode::LayerShape shape;
  std::vector<T> query, key, value, output, distances, persistent_keys, persistent_values, zero_key, zero_value;
  std::vector<float> query_bias, key_bias, value_bias, output_bias, gain, shift, content_bias, position_bias, spans;
};

template <typename T>
struct ModelCase {
  ModelCase(int hidden, int head_dim, const std::vector<cuda::decode::LayerShape>& layers, unsigned seed)
      : random(seed) {
    shape = {hidden, head_dim, layers};
    for (size_t i = 0; i < layers.size(); ++i) this->layers.push_back(make(layers[i], i));
  }

  std::vector<float> floats(size_t count, float size) {
    std::normal_distribution<float> normal(0, size);
    std::vector<float> values(count);
    for (float& x : values) x = normal(random);
    return values;
  }
  std::vector<T> numbers(size_t count, float size) {
    std::vector<T> values;
    for (const float x : floats(count, size)) values.push_back(device::from_float<T>(x));
    return values;
  }

  LayerCase<T> make(const cuda::decode::LayerShape& s, size_t index) {
    LayerCase<T> l;
    l.shape = s;
    const size_t d = shape.head_dim, n = s.heads * d, hidden = shape.hidden;
    const float small = 1 / std::sqrt(float(hidden));
    for (auto* matrix : {&l.query, &l.key, &l.value}) *matrix = numbers(n * hidden, 1.5f * small);
    l.output = numbers(hidden * n, s.heads ? 1 / std::sqrt(float(n)) : 1);
    l.distances = numbers(s.distance_tables * s.visibility.reach * d, 1);
    l.persistent_keys = numbers(s.heads * s.persistent * d, 1.5f / std::sqrt(float(d)));
    l.persistent_values = numbers(s.heads * s.persistent * d, 1);
    l.zero_key = numbers(n, 0.5f);
    l.zero_value = numbers(n, 0.5f);
    if (index % 2 == 0) {
      for (auto* bias : {&l.query_bias, &l.key_bias, &l.value_bias}) *bias = floats(n, 0.3f);
    }
    if (index % 3 != 2) l.output_bias = floats(hidden, 0.3f);
    l.gain = floats(hidden, 0.3f);
    for (float& x : l.gain) x += 1;
    l.shift = floats(hidden, 0.2f);
    if (s.distance_tables) l.content_bias = floats(n, 0.3f);
    if (s.distance_tables) l.position_bias = floats(n, 0.3f);
    for (int h = 0; h < s.heads; ++h) l.spans.push_back(float(h) * 2.3f - 0.7f);
    return l;
  }

  cuda::decode::LayerWeights weights(size_t index) const {
    const LayerCase<T>& l = layers[index];
    const auto words = [](const std::vector<T>& v) { return reinterpret_cast<const uint16_t*>(v.data()); };
    const auto maybe = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
    return {words(l.query),
            words(l.key),
            words(l.value),
            maybe(l.query_bias),
            maybe(l.key_bias),
            maybe(l.value_bias),
            words(l.output),
            maybe(l.output_bias),
            l.gain.data(),
            l.shift.data(),
            words(l.distances),
            maybe(l.content_bias),
            maybe(l.position_bias),
            words(l.persistent_keys),
            words(l.persistent_values)};
  }

  cuda::decode::Shape shape;
  std::vector<LayerCase<T>> layers;
  std::mt19937 random;
};

// The layers over one sequence: its keys and values at all positions from -history on.
template <typename T>
class Loops {
 public:
  static constexpr int history = 100;  // positions before 0, as a source that attends zeros has them

  Loops(const ModelCase<T>& model, bool rounds) : model_(model), rounds_(rounds) {
    for (const LayerCase<T>& l : model.layers) {
      Kept& kept = kept_.emplace_back();
      for (int position = -history; position < 0; ++position) {
        kept.keys.push_back(doubles(l.zero_key));
        kept.values.push_back(doubles(l.zero_value));
      }
    }
  }

  // Keys and values of the next position of a layer as if they had been computed.
  void remember(size_t layer, const std::vector<T>& keys, const std::vector<T>& values) {
    kept_[layer].keys.push_back(doubles(keys));
    kept_[layer].values.push_back(doubles(values));
  }
  const Doubles& key(size_t layer, int position) const { return kept_[layer].keys[position + history]; }
  const Doubles& value(size_t layer, int position) const { return kept_[layer].values[position + history]; }

  Doubles step(Doubles x, int position) {
    for (size_t i = 0; i < model_.layers.size(); ++i) {
      const LayerCase<T>& l = model_.layers[i];
      const Doubles attention = attend(i, l.shape.norm_first ? normed(l, x) : x, position);
      for (size_t c = 0; c < x.size(); ++c) x[c] += attention[c] + (l.output_bias.empty() ? 0 : l.output_bias[c]);
      if (!l.shape.norm_first) x = normed(l, x);
    }
    return x;
  }

 private:
  struct Kept {
    std::vector<Doubles> keys, values;
  };

  static Doubles doubles(const std::vector<T>& numbers) {
    Doubles values;
    for (const T x : numbers) values.push_back(device::to_float(x));
    return values;
  }
  double round(double x) const { return rounds_ ? device::to_float(device::from_float<T>(float(x))) : x; }
  Doubles round(Doubles values) const {
    for (double& x : values) x = round(x);
    return values;
  }

  Doubles normed(const LayerCase<T>& l, const Doubles& x) const {
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / x.size();
    for (const double v : x) variance += (v - mean) * (v - mean) / x.size();
    Doubles out;
    for (size_t c = 0; c < x.size(); ++c)
      out.push_back((x[c] - mean) / std::sqrt(variance + l.shape.norm_eps) * l.gain[c] + l.shift[c]);
    return out;
  }

  Doubles linear(const std::vector<T>& weight, const std::vector<float>& bias, const Doubles& x, size_t rows) const {
    Doubles out(rows);
    for (size_t r = 0; r < rows; ++r) {
      for (size_t c = 0; c < x.size(); ++c) out[r] += x[c] * device::to_float(weight[r * x.size() + c]);
      if (!bias.empty()) out[r] += bias[r];
    }
    return out;
  }

  Doubles attend(size_t layer, const Doubles& input, int position) {
    const LayerCase<T>& l = model_.layers[layer];
    const cuda::Visibility& visibility = l.shape.visibility;
    const size_t d = model_.shape.head_dim, n = l.shape.heads * d;
    const Doubles x = round(input);
    const Doubles query = round(linear(l.query, l.query_bias, x, n));
    Kept& kept = kept_[layer];
    kept.keys.push_back(round(linear(l.key, l.key_bias, x, n)));
    kept.values.push_back(round(linear(l.value, l.value_bias, x, n)));
    int limit =
        std::min(visibility.reach, visibility.window + (visibility.segment ? position % visibility.segment : 0));
    if (!visibility.attended_zeros) limit = std::min(limit, position - visibility.first_distance + 1);
    Doubles attended;
    for (int head = 0; head < l.shape.heads; ++head) {
      Doubles scores, ramps;
      std::vector<std::function<double(size_t)>> values;
      for (int near = 0; near < limit; ++near) {
        const int table = l.shape.distance_tables == 1 ? 0 : head;
        const Doubles& key = this->key(layer, position - visibility.first_distance - near);
        const Doubles& value = this->value(layer, position - visibility.first_distance - near);
        double score = 0;
        for (size_t k = 0; k < d; ++k) {
          const double q = query[head * d + k];
          score += round(q + (l.content_bias.empty() ? 0 : l.content_bias[head * d + k])) * key[head * d + k];
          if (l.shape.distance_tables == 0) continue;
          const double by = round(q + l.position_bias[head * d + k]);
          score += by * device::to_float(l.distances[(size_t(table) * visibility.reach + near) * d + k]);
        }
        scores.push_back(score / std::sqrt(double(d)));
        const double ramp = (1.0 - (near + visibility.first_distance) + l.spans[head]) / l.shape.span_ramp + 1;
        ramps.push_back(l.shape.span_ramp > 0 ? std::clamp(ramp, 0.0, 1.0) : 1.0);
        values.push_back([&value, head, d](size_t k) { return value[head * d + k]; });
      }
      for (int v = 0; v < l.shape.persistent; ++v) {
        const size_t at = (size_t(head) * l.shape.persistent + v) * d;
        double score = 0;
        for (size_t k = 0; k < d; ++k) score += query[head * d + k] * device::to_float(l.persistent_keys[at + k]);
        scores.push_back(score);
        ramps.push_back(1);
        values.push_back([&l, at](size_t k) { return double(device::to_float(l.persistent_values[at + k])); });
      }
      const double top = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
      double all = 0, share = 0;
      for (double& s : scores) all += s = std::exp(s - top);
      for (size_t i = 0; i < scores.size(); ++i) share += scores[i] * ramps[i];
      if (l.shape.span_ramp > 0) share += 1e-8 * all;
      for (size_t k = 0; k < d; ++k) {
        double sum = 0;
        for (size_t i = 0; i < scores.size(); ++i) sum += round(scores[i] * ramps[i] / share) * values[i](k);
        attended.push_back(round(sum));
      }
    }
    return linear(l.output, {}, attended, input.size());
  }

  const ModelCase<T>& model_;
  const bool rounds_;
  std::vector<Kept> kept_;
};

}  // namespace headcount::test
