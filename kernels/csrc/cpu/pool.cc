#include "cpu/pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/checks.h"

namespace headcount::cpu {
namespace {

using Work = void (*)(void* context, std::int64_t chunk, int thread);

constexpr int most_threads = 1024;
constexpr int chunk_bits = 40;  // of the ticket; the other 24 number the run
constexpr std::uint64_t closed = (std::uint64_t{1} << chunk_bits) - 1;

int usable_cpus() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits without a system call for at most 50 µs: longer only takes the core from another thread.
template <typename Condition>
bool spin(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      breathe();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

// The pool whose work this thread is doing, to refuse a run inside a run, which would wait for itself.
thread_local const void* working_for = nullptr;

}  // namespace

// One 64-bit ticket says which run is open and which chunk is next, so that a claim (compare-and-swap) can only succeed
// in the run whose work was read: a thread that was asleep in between claims nothing, and no thread waits for one
// that has claimed nothing.
struct Pool::State {
  explicit State(int count) : size(count), claims(static_cast<std::size_t>(count)) {}

  struct alignas(64) Claims {
    std::atomic<std::int64_t> count{0};
  };

  const int size;
  const pid_t process = getpid();
  std::vector<Claims> claims;
  std::vector<std::thread> workers;

  std::mutex one_run;
  alignas(64) std::atomic<std::uint64_t> ticket{closed};  // run << chunk_bits | next chunk
  std::atomic<std::int64_t> chunks{0};
  std::atomic<Work> work{nullptr};
  std::atomic<void*> context{nullptr};
  alignas(64) std::atomic<std::int64_t> finished{0};

  std::mutex sleep;
  std::condition_variable wake, done;
  std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};

  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // of the first chunk that threw; guarded by sleep

  static std::uint64_t run_of(std::uint64_t ticket) { return ticket >> chunk_bits; }

  // The fields are stored and loaded with release and acquire: who reads those of a later run also sees that the ticket
  // of the earlier one is gone, and its claim fails.
  void open(std::int64_t count, Work call, void* with) {
    const std::uint64_t run = (run_of(ticket.load()) + 1) << chunk_bits;
    ticket.store(run | closed);
    finished.store(0);
    chunks.store(count, std::memory_order_release);
    work.store(call, std::memory_order_release);
    context.store(with, std::memory_order_release);
    ticket.store(run);
    if (count > 1 && sleepers.load() > 0) {
      {
        const std::lock_guard<std::mutex> lock(sleep);
      }
      wake.notify_all();
    }
  }

  void work_on(int thread) {
    const void* const before = std::exchange(working_for, this);
    std::uint64_t now = ticket.load(std::memory_order_acquire);
    while (true) {
      const std::int64_t count = chunks.load(std::memory_order_acquire);
      const Work call = work.load(std::memory_order_acquire);
      void* const with = context.load(std::memory_order_acquire);
      const auto chunk = static_cast<std::int64_t>(now & closed);
      if (chunk >= count) break;
      if (!ticket.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      claims[static_cast<std::size_t>(thread)].count.fetch_add(1, std::memory_order_relaxed);
      do_chunk(call, with, chunk, thread);
      if (finished.fetch_add(1) + 1 == count && caller_sleeps.load()) {
        {
          const std::lock_guard<std::mutex> lock(sleep);
        }
        done.notify_all();
      }
      now = ticket.load(std::memory_order_acquire);
    }
    working_for = before;
  }

  void do_chunk(Work call, void* with, std::int64_t chunk, int thread) {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      call(with, chunk, thread);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(sleep);
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  }

  void wait_finished(std::int64_t count) {
    const auto all = [&] { return finished.load() == count; };
    if (spin(all)) return;
    std::unique_lock<std::mutex> lock(sleep);
    caller_sleeps.store(true);
    done.wait(lock, all);
    caller_sleeps.store(false);
  }

  void worker(int thread) {
    std::uint64_t seen = 0;
    const auto news = [&] { return stop.load() || run_of(ticket.load()) != seen; };
    while (true) {
      if (!spin(news)) {
        std::unique_lock<std::mutex> lock(sleep);
        sleepers.fetch_add(1);
        wake.wait(lock, news);
        sleepers.fetch_sub(1);
      }
      if (stop.load()) return;
      seen = run_of(ticket.load());
      work_on(thread);
    }
  }

  void join() {
    {
      const std::lock_guard<std::mutex> lock(sleep);
      stop.store(true);
    }
    wake.notify_all();
    for (std::thread& thread : workers) thread.join();
  }
};

Pool::Pool(int threads) {
  check(threads >= 0 && threads <= most_threads, "threads", "0 to " + std::to_string(most_threads),
        std::to_string(threads));
  state_ = std::make_unique<State>(threads > 0 ? threads : std::max(1, usable_cpus()));
  try {
    for (int thread = 1; thread < state_->size; ++thread)
      state_->workers.emplace_back([state = state_.get(), thread] { state->worker(thread); });
  } catch (...) {
    state_->join();
    throw;
  }
}

Pool::~Pool() {
  if (state_->process != getpid())
    static_cast<void>(state_.release());  // a forked child: the threads to join are the parent's
  else
    state_->join();
}

int Pool::threads() const { return state_->size; }

void Pool::run(std::int64_t chunks, Work work, void* context) {
  State& state = *state_;
  check(state.process == getpid(), "pool", "the process that made it", "a forked child; load the model after the fork");
  check(working_for != &state, "pool", "one run at a time", "a run inside a run");
  check(chunks >= 0 && static_cast<std::uint64_t>(chunks) < closed, "chunks", "0 or more", std::to_string(chunks));
  if (chunks == 0) return;
  const std::lock_guard<std::mutex> lock(state.one_run);
  state.open(chunks, work, context);
  state.work_on(0);
  state.wait_finished(chunks);
  if (state.failed.load()) {
    state.failed.store(false);
    std::rethrow_exception(std::exchange(state.failure, nullptr));
  }
}

std::int64_t Pool::claimed(int thread) const {
  check(thread >= 0 && thread < state_->size, "thread", "0 to " + std::to_string(state_->size - 1),
        std::to_string(thread));
  return state_->claims[static_cast<std::size_t>(thread)].count.load(std::memory_order_relaxed);
}

}  // namespace headcount::cpu
