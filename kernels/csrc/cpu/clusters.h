// The vocabulary in clusters of token ids, of the embedding and of the head: names as in engine_kernels/shapes.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/checks.h"

namespace headcount::cpu {

// Token ids start .. start + size - 1; rows of `width`. entry: the cluster's place in the first cluster's softmax.
struct ClusterShape {
  std::int64_t start, size, width;
  bool projected;
  std::int64_t entry;
  bool tied, tied_projection;  // of the head: its rows, or its projection, are the embedding's own

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("start", start);
    visit("size", size);
    visit("width", width);
    visit("projected", projected);
    visit("entry", entry);
    visit("tied", tied);
    visit("tied_projection", tied_projection);
  }
};

// Throws CheckError naming `side`.
inline void check_clusters(const std::vector<ClusterShape>& clusters, const char* side) {
  std::int64_t start = 0;
  for (const ClusterShape& cluster : clusters) {
    check(cluster.start == start && cluster.size >= 1 && cluster.width >= 1, side, "clusters that follow one another",
          std::to_string(cluster.size) + " ids from " + std::to_string(cluster.start));
    start += cluster.size;
  }
}

inline std::string numbered(const char* name, std::int64_t cluster) { return name + std::to_string(cluster); }

}  // namespace headcount::cpu
