// Threads of a GPU on one thread of the host: each is a fiber that runs until it waits for others.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace emulated {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

using Compute = void (*)(void** all, int count);

// Fibers that wait for each other: the last to come does the work of all on what each brought, then all go on.
struct Group {
  int size = 0;
  int arrived = 0;
  uint64_t generation = 0;
  Compute compute = nullptr;
  std::vector<void*> brought;

  explicit Group(int members = 0) : size(members), brought(members) {}
};

// A copy that has been started and not yet arrived; what waits for it lets it arrive, and nothing before.
struct Copy {
  void* target;
  const void* source;
  size_t bytes;
  void* barrier;                   // an mbarrier in shared memory, or nullptr
  std::function<void()> act = {};  // what it does where that is more than to copy bytes
};

struct Cluster;

struct Block {
  Index index;
  int rank = 0;  // in its cluster
  Cluster* cluster = nullptr;
  std::unique_ptr<unsigned char[]> memory;  // `shared` lies aligned in it
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  Group all;
  std::vector<Group> named;  // barriers by number and by how many wait
  std::vector<Group> warps, warpgroups;
  std::vector<Copy> flying;                     // to one of its mbarriers
  std::vector<std::shared_ptr<void>> products;  // of its warps: what emulated/hopper_matrices.h keeps
  std::vector<bool> unfenced;  // for each 16 bytes of `shared`: copied by a thread that has not fenced it since
};

struct Cluster {
  std::vector<Block*> blocks;
  Group all;
};

struct Grid {
  Index blocks{1, 1, 1};
  Index threads{1, 1, 1};
  size_t shared_bytes = 0;
  int cluster = 1;        // blocks of a cluster, along x
  bool together = false;  // all blocks are resident at once
};

struct Fiber {
  Index thread;
  int number = 0;  // of the thread in its block
  Block* block = nullptr;
  const Grid* grid = nullptr;
  std::vector<std::vector<Copy>> copies{1};  // cp.async groups, the last one open
  std::vector<size_t> unfenced;              // the pieces of its block's `unfenced` that it copied
  bool done = false;
  bool stuck = false;  // it waits, and waited the last time
  jmp_buf state;
};

// The fiber that runs.
extern Fiber* current;

// Set by who reads the clock: it waits for time to pass, and time passes.
extern bool clock_was_read;

// Whether a thread's copies arrive when they are started, which a kernel must bear as well: what they overwrite may be
// in use. Else they arrive when they are waited for.
extern bool copies_at_once;

// Lets the others run; `progress`: whether this fiber got on since it last asked.
void yield(bool progress);

// Waits for all members of a group, which must all come with the same work.
void meet(Group& group, int member, void* mine, Compute compute);

// The first error stops the launch, which throws it.
[[noreturn]] void fail(const std::string& what);

// Runs kernel() on every thread of every block: blocks in order, those of a cluster, or all that are `together`, at
// once. Throws std::runtime_error where every thread waits for one that will never come, where a block ends with copies
// under way, and for what `fail` was told. Shared memory starts as NaN. order: 0 = threads by number, else a seed of a
// shuffled order, which must change no result.
void run(const Grid& grid, const std::function<void()>& kernel, unsigned order);

}  // namespace emulated
