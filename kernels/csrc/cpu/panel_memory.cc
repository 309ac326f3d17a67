#include "cpu/panel_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace headcount::cpu {
namespace {

constexpr std::int64_t line_bytes = 64;
constexpr std::int64_t small_bytes = 64 * 1024;       // below: from the heap
constexpr std::int64_t large_page = 2 * 1024 * 1024;  // first touches of 4 KiB pages were half the time of packing
constexpr std::int64_t slab_bytes = 8 * large_page;

constexpr std::int64_t rounded_up(std::int64_t bytes, std::int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// A mapping handed out from its start on, unmapped with the last matrix in it.
class Slab {
 public:
  explicit Slab(std::int64_t bytes) : size_(rounded_up(bytes, large_page)) {
    mapped_ = mmap(nullptr, size_ + large_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(mapped_));
    base_ = static_cast<char*>(mapped_) + (rounded_up(address, large_page) - address);
#if defined(MADV_HUGEPAGE)
    madvise(base_, bytes / large_page * large_page, MADV_HUGEPAGE);  // a refusal costs time only
#endif
  }
  ~Slab() { munmap(mapped_, size_ + large_page); }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  char* take(std::int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (used_ + bytes > size_) return nullptr;
    used_ += bytes;
    return base_ + used_ - bytes;
  }

  // The last one taken is free to be taken again; of another the pages go back to the system.
  void give_back(char* data, std::int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (data + bytes == base_ + used_) {
      used_ -= bytes;
      return;
    }
    const std::int64_t page = sysconf(_SC_PAGESIZE), begin = rounded_up(data - base_, page);
    const std::int64_t end = (data + bytes - base_) / page * page;
    if (begin < end) madvise(base_ + begin, end - begin, MADV_DONTNEED);
  }

 private:
  std::mutex mutex_;
  const std::int64_t size_;
  void* mapped_;
  char* base_;
  std::int64_t used_ = 0;
};

struct Current {
  std::mutex mutex;
  std::weak_ptr<Slab> slab;
};

// Never destroyed: a model may outlive every static object.
Current& current() {
  static Current& one = *new Current;
  return one;
}

}  // namespace

std::shared_ptr<char> panel_memory(std::int64_t bytes) {
  if (bytes < small_bytes) {
    constexpr std::align_val_t line{line_bytes};
    return {static_cast<char*>(::operator new(static_cast<std::size_t>(bytes), line)),
            [line](char* data) { ::operator delete(data, line); }};
  }
  const std::int64_t whole = rounded_up(bytes, line_bytes);
  std::shared_ptr<Slab> slab;
  char* data = nullptr;
  if (whole > slab_bytes / 2) {
    slab = std::make_shared<Slab>(whole);
    data = slab->take(whole);
  } else {
    const std::lock_guard<std::mutex> lock(current().mutex);
    slab = current().slab.lock();
    if (slab != nullptr) data = slab->take(whole);
    if (data == nullptr) {
      slab = std::make_shared<Slab>(slab_bytes);
      data = slab->take(whole);
      current().slab = slab;
    }
  }
  return {data, [slab, whole](char* mine) { slab->give_back(mine, whole); }};
}

}  // namespace headcount::cpu
