// One copy of equal packed matrices in a process, whichever models hold them; gone with the last of these.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/pack.h"

namespace headcount::cpu {

using SharedPanels = std::shared_ptr<const PackedBuffer>;

// `packed`, or in its place the equal one that is held already: docs/adr/0004. Any thread may call.
SharedPanels share(PackedBuffer packed);

// Bytes of all matrices that are held in this process.
std::int64_t stored_bytes();

// The matrices one model holds.
class Panels {
 public:
  // The view is valid as long as this object, also after it was moved.
  Packed add(PackedBuffer packed) {
    held_.push_back(share(std::move(packed)));
    return held_.back()->view();
  }

  const std::vector<SharedPanels>& held() const { return held_; }

 private:
  std::vector<SharedPanels> held_;
};

// Of the matrices of all parts of one model, each counted once: their bytes, and the bytes others hold too.
struct PanelBytes {
  std::int64_t held, shared;
};
PanelBytes count_bytes(const std::vector<const Panels*>& parts);

}  // namespace headcount::cpu
