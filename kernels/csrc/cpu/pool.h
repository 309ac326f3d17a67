// A pool of threads that claim chunks of work one after the other; the caller works too.
#pragma once

#include <cstdint>
#include <memory>

namespace headcount::cpu {

// Results never depend on the number of threads: what a chunk computes depends on its number only.
class Pool {
 public:
  // threads ≥ 1 counts the caller; 0 = as many as the process may run on.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const;

  // Calls work(context, chunk, thread) for each chunk in [0, chunks); thread < threads() numbers the caller's scratch.
  // Blocks until all are done. One run at a time: a second caller waits. Throws CheckError in a forked child, where the
  // threads are gone.
  void run(std::int64_t chunks, void (*work)(void* context, std::int64_t chunk, int thread), void* context);

  template <typename Work>
  void run(std::int64_t chunks, Work&& work) {
    run(
        chunks, [](void* context, std::int64_t chunk, int thread) { (*static_cast<Work*>(context))(chunk, thread); },
        &work);
  }

  // Chunks claimed so far by each thread, for tests: dynamic claiming, not static splits.
  std::int64_t claimed(int thread) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace headcount::cpu
