// The pool of threads: every chunk once, dynamic claiming, several callers and pools, exceptions, a forked child.
#include "cpu/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "tests/expect.h"

using headcount::cpu::Pool;
using namespace headcount::test;

namespace {

void every_chunk_once(int threads) {
  Pool pool(threads);
  expect(pool.threads() == threads, "as many threads as asked for");
  for (int round = 0; round < 400; ++round) {
    const std::int64_t chunks = round % 37;
    std::vector<int> done(static_cast<std::size_t>(chunks));  // not atomic: the sanitizer sees two at one
    pool.run(chunks, [&](std::int64_t chunk, int thread) {
      expect(thread >= 0 && thread < threads, "thread number");
      ++done[static_cast<std::size_t>(chunk)];
    });
    for (const int count : done) expect(count == 1, "each chunk once");
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // past the spin: workers sleep
  }
}

// The thread in chunk 0 is held up until all others are done: with a static split they never would be.
void claims_are_dynamic() {
  constexpr std::int64_t chunks = 101;
  Pool pool(2);
  std::atomic<std::int64_t> others{0};
  std::atomic<int> held{-1};
  const std::int64_t before[] = {pool.claimed(0), pool.claimed(1)};
  pool.run(chunks, [&](std::int64_t chunk, int thread) {
    if (chunk != 0) {
      ++others;
      return;
    }
    held = thread;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (others < chunks - 1 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  });
  expect(pool.claimed(held) - before[held] == 1, "the thread held up claimed one chunk");
  expect(pool.claimed(1 - held) - before[1 - held] == chunks - 1, "the other claimed the rest");
}

void hogs_do_no_harm() {
  std::atomic<bool> stop{false};
  std::vector<std::thread> hogs;
  for (int i = 0; i < 2; ++i)
    hogs.emplace_back([&] {
      while (!stop) {
      }
    });
  Pool pool(3);
  std::atomic<std::int64_t> sum{0};
  for (int round = 0; round < 100; ++round) pool.run(16, [&](std::int64_t chunk, int) { sum += chunk; });
  stop = true;
  for (std::thread& hog : hogs) hog.join();
  expect(sum == 100 * 120, "all chunks under load");
  std::int64_t claimed = 0;
  for (int thread = 0; thread < 3; ++thread) claimed += pool.claimed(thread);
  expect(claimed == 100 * 16, "each chunk claimed once");
}

void several_callers_and_pools() {
  Pool shared(3), own(2);
  std::vector<std::thread> callers;
  std::atomic<int> inside{0};
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        int left = 0;  // each run blocks until its own chunks are done
        std::atomic<int> count{0};
        shared.run(7, [&](std::int64_t, int thread) {
          if (thread == 0) expect(++inside == 1, "one run at a time"), --inside;
          ++count;
        });
        left = 7 - count;
        expect(left == 0, "returned early");
      }
    });
  shared.run(5, [&](std::int64_t, int) {});
  for (std::thread& caller : callers) caller.join();
  std::atomic<int> nested{0};
  shared.run(4, [&](std::int64_t, int thread) {
    if (thread == 0) own.run(3, [&](std::int64_t, int) { ++nested; });
  });
  expect(nested % 3 == 0, "another pool may run inside");
}

void errors_reach_the_caller() {
  Pool pool(2);
  for (int round = 0; round < 50; ++round) {
    std::string text;
    try {
      pool.run(20, [](std::int64_t chunk, int) {
        if (chunk == 3) throw std::runtime_error("chunk three");
      });
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    expect(text == "chunk three", "the exception of a chunk");
    std::atomic<int> count{0};
    pool.run(20, [&](std::int64_t, int) { ++count; });
    expect(count == 20, "the next run is whole");
  }
  expect(refused([&] { pool.run(2, [&](std::int64_t, int) { pool.run(1, [](std::int64_t, int) {}); }); }) == "pool",
         "a run inside a run refused");
  expect(refused([&] { pool.run(-1, [](std::int64_t, int) {}); }) == "chunks", "negative chunks refused");
  expect(refused([] { Pool bad(-1); }) == "threads" && refused([] { Pool bad(5000); }) == "threads", "threads refused");
  expect(refused([&] { pool.claimed(2); }) == "thread", "thread number refused");
  expect(Pool(0).threads() >= 1, "0 is what the process may use");
}

void a_forked_child_is_refused() {
#if !defined(__SANITIZE_THREAD__)  // it does not follow a fork of several threads
  int status = -1;
  {
    Pool pool(2);
    const pid_t child = fork();
    if (child == 0) {
      const bool named = refused([&] { pool.run(2, [](std::int64_t, int) {}); }) == "pool";
      pool.~Pool();  // must not wait for threads that are not there
      Pool fresh(2);
      std::atomic<int> count{0};
      fresh.run(9, [&](std::int64_t, int) { ++count; });
      _exit(named && count == 9 ? 0 : 1);
    }
    waitpid(child, &status, 0);
  }
  expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a clear error in the child, and a new pool works");
#endif
}

}  // namespace

int main() {
  a_forked_child_is_refused();
  for (const int threads : {1, 2, 3, 5}) every_chunk_once(threads);
  claims_are_dynamic();
  hogs_do_no_harm();
  several_callers_and_pools();
  errors_reach_the_caller();
  return finish("pool");
}
