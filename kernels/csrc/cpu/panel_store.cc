#include "cpu/panel_store.h"

#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace headcount::cpu {
namespace {

struct Store {
  std::mutex mutex;
  std::unordered_multimap<std::uint64_t, std::weak_ptr<const PackedBuffer>> by_mark;
  std::int64_t bytes = 0;
};

// Never destroyed: a model may outlive every static object.
Store& store() {
  static Store& one = *new Store;
  return one;
}

void forget(const PackedBuffer* packed) {
  {
    const std::lock_guard<std::mutex> lock(store().mutex);
    auto [at, end] = store().by_mark.equal_range(packed->mark());
    while (at != end) at = at->second.expired() ? store().by_mark.erase(at) : std::next(at);
    store().bytes -= packed->bytes();
  }
  delete packed;
}

}  // namespace

SharedPanels share(PackedBuffer packed) {
  std::vector<SharedPanels> seen;  // let go behind the lock: were one the last, forget would wait for it
  const std::lock_guard<std::mutex> lock(store().mutex);
  const auto [begin, end] = store().by_mark.equal_range(packed.mark());
  for (auto at = begin; at != end; ++at) {
    SharedPanels other = at->second.lock();
    if (other == nullptr) continue;
    seen.push_back(other);
    if (other->equals(packed)) return other;
  }
  auto owned = std::make_unique<PackedBuffer>(std::move(packed));
  auto place = store().by_mark.emplace(owned->mark(), SharedPanels());
  store().bytes += owned->bytes();
  SharedPanels shared(owned.release(), &forget);
  place->second = shared;
  return shared;
}

std::int64_t stored_bytes() {
  const std::lock_guard<std::mutex> lock(store().mutex);
  return store().bytes;
}

PanelBytes count_bytes(const std::vector<const Panels*>& parts) {
  std::map<const PackedBuffer*, std::pair<long, long>> uses;  // by this model, by all
  for (const Panels* part : parts)
    for (const SharedPanels& panels : part->held()) {
      auto& [own, all] = uses[panels.get()];
      ++own;
      all = panels.use_count();
    }
  PanelBytes bytes{0, 0};
  for (const auto& [panels, count] : uses) {
    bytes.held += panels->bytes();
    if (count.second > count.first) bytes.shared += panels->bytes();
  }
  return bytes;
}

}  // namespace headcount::cpu
