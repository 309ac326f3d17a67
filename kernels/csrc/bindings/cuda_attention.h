// Attention of one layer and one step as Python drives it: tensors are checked once, then its kernels are started.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

#include "bindings/device_call.h"
#include "cuda/attention/attention.h"
#include "cuda/hopper/attend.h"

namespace headcount {

class CudaAttention {
 public:
  using object = pybind11::object;

  // query and out [rows, H, D], rings [slots, H, capacity, D], tables as engine_kernels/ops.py has them. outs [splits,
  // H, rows, D] and states [2, splits, H, rows] float32 and scores [H, rows, pitch] or None are room for what
  // attend_constants writes; None where it is not called.
  CudaAttention(const object& query, const object& ring_keys, const object& ring_values, const object& distances,
                const object& content_bias, const object& position_bias, const object& persistent_keys,
                const object& persistent_values, const object& spans, float span_ramp, int window, int segment,
                int reach, int first_distance, bool attended_zeros, const object& outs, const object& states,
                const object& scores, const object& out) {
    const PythonArray& queries = call_.take(query.ptr(), "query", {-1, -1, -1}, Holds::number, true);
    const std::int64_t rows = queries.shape[0], heads = queries.shape[1], d = queries.shape[2];
    check(d % 8 == 0 && d > 0 && d <= 128, "head_dim", "a multiple of 8 up to 128", std::to_string(d));
    check(rows > 0 && rows < 1 << 24 && heads > 0 && heads < 1 << 16, "query", "rows and heads a grid can have",
          shape_text(queries.shape));
    check(window > 0 && segment >= 0 && reach > 0 && (first_distance == 0 || first_distance == 1), "visibility",
          "a window of 1 or more", "window " + std::to_string(window) + ", reach " + std::to_string(reach));
    told_.number = call_.number();
    told_.rows = static_cast<int>(rows);
    told_.heads = static_cast<int>(heads);
    told_.head_dim = static_cast<int>(d);
    told_.query = queries.data;
    told_.visibility = {window, segment, reach, first_distance, attended_zeros};

    if (!distances.is_none()) {
      const PythonArray& tables = call_.take(distances.ptr(), "distances", {-1, reach, d}, Holds::number, true);
      check(tables.shape[0] == 1 || tables.shape[0] == heads, "distances", "1 table, or one for each head",
            std::to_string(tables.shape[0]));
      told_.distances = tables.data;
      told_.distance_tables = static_cast<int>(tables.shape[0]);
    }
    told_.content_bias = floats(content_bias, "content_bias", {heads, d});
    told_.position_bias = floats(position_bias, "position_bias", {heads, d});
    told_.spans = floats(spans, "spans", {heads});
    told_.span_ramp = span_ramp;
    if (!persistent_keys.is_none()) {
      const PythonArray& keys =
          call_.take(persistent_keys.ptr(), "persistent_keys", {heads, -1, d}, Holds::number, true);
      told_.persistent = static_cast<int>(keys.shape[1]);
      told_.persistent_keys = keys.data;
      told_.persistent_values =
          call_.take(persistent_values.ptr(), "persistent_values", keys.shape, Holds::number, true).data;
    }

    const PythonArray& kept = call_.take(ring_keys.ptr(), "ring keys", {-1, heads, -1, d}, Holds::number, true);
    told_.ring_keys = kept.data;
    told_.ring_values = call_.take(ring_values.ptr(), "ring values", kept.shape, Holds::number, true).data;
    told_.capacity = static_cast<int>(kept.shape[2]);
    check(told_.capacity >= reach, "ring keys", "a slot for each of " + std::to_string(reach) + " keys",
          std::to_string(told_.capacity));

    told_.splits = cuda::splits_of(told_.rows, told_.heads, told_.persistent);
    told_.outs = floats(outs, "outs", {told_.splits, heads, rows, d});
    told_.peaks = floats(states, "states", {2, told_.splits, heads, rows});
    if (told_.peaks != nullptr) told_.totals = told_.peaks + told_.splits * heads * rows;
    if (!scores.is_none()) {
      told_.pitch = (reach + 15) / 16 * 16;
      told_.scores = call_.take(scores.ptr(), "scores", {heads, rows, told_.pitch}, Holds::number, true).data;
    }
    told_.attended = call_.take(out.ptr(), "out", queries.shape, Holds::number, true).data;
  }

  // Whether hopper_attend pays for sequences of several rows that have this many tiles of hopper_tile_rows.
  static bool hopper_fits(int head_dim, int heads, int tiles) {
    cuda::Attention attention{};
    attention.head_dim = head_dim;
    attention.heads = heads;
    return cuda::hopper_attend_fits(attention, tiles);
  }

  void constants(std::uintptr_t stream) { cuda::attend_constants(told_, reinterpret_cast<Stream>(stream)); }

  // Each [sequences]; engine_kernels/gpu_ops.py's Sequences.
  void ring(const object& first_rows, const object& lengths, const object& slots, const object& offsets,
            const object& positions, std::uintptr_t stream) {
    check(told_.scores != nullptr || told_.distances == nullptr, "scores", "room for them", "None");
    cuda::attend_ring(told_, sequences(first_rows, lengths, slots, offsets, positions),
                      reinterpret_cast<Stream>(stream));
  }

  // The same with new keys and values [rows, H, 1, D], and tiles of tile_rows rows [tiles]; those of hopper_tile_rows
  // are for hopper_attend, which needs no constants.
  void rows(const object& first_rows, const object& lengths, const object& slots, const object& offsets,
            const object& positions, const object& new_keys, const object& new_values, const object& tile_sequence,
            const object& tile_row, int tile_rows, std::uintptr_t stream) {
    const std::vector<std::int64_t> shape{told_.rows, told_.heads, 1, told_.head_dim};
    cuda::NewRows fresh{};
    fresh.keys = call_.take(new_keys.ptr(), "new keys", shape, Holds::number, true).data;
    fresh.values = call_.take(new_values.ptr(), "new values", shape, Holds::number, true).data;
    const PythonArray& of_tiles = call_.take(tile_sequence.ptr(), "tile_sequence", {-1}, Holds::int32);
    fresh.tile_sequence = static_cast<const int32_t*>(of_tiles.data);
    fresh.tile_row =
        static_cast<const int32_t*>(call_.take(tile_row.ptr(), "tile_row", of_tiles.shape, Holds::int32).data);
    fresh.tiles = static_cast<int>(of_tiles.shape[0]);
    fresh.tile_rows = tile_rows;
    const auto attend = tile_rows == cuda::hopper_tile_rows ? cuda::hopper_attend : cuda::attend_rows;
    attend(told_, sequences(first_rows, lengths, slots, offsets, positions), fresh, reinterpret_cast<Stream>(stream));
  }

 private:
  float* floats(const object& tensor, const char* name, const std::vector<std::int64_t>& shape) {
    return static_cast<float*>(call_.take_pointer(tensor.ptr(), name, shape, Holds::float32));
  }

  cuda::Sequences sequences(const object& first_rows, const object& lengths, const object& slots, const object& offsets,
                            const object& positions) {
    const PythonArray& first = call_.take(first_rows.ptr(), "first_rows", {-1}, Holds::int64);
    const auto take = [&](const object& tensor, const char* name) {
      return static_cast<const int64_t*>(call_.take(tensor.ptr(), name, first.shape, Holds::int64).data);
    };
    return {static_cast<int>(first.shape[0]), static_cast<const int64_t*>(first.data),
            take(lengths, "lengths"),         take(slots, "slots"),
            take(offsets, "offsets"),         take(positions, "positions")};
  }

  DeviceCall call_;
  cuda::Attention told_{};
};

}  // namespace headcount
