// jumps between stacks are the point of this file
#undef _FORTIFY_SOURCE
#include "cuda/emulated/fibers.h"

#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

namespace emulated {

Fiber* current = nullptr;
bool clock_was_read = false;
bool copies_at_once = false;

namespace {

constexpr size_t stack_bytes = 256 << 10;
constexpr int stuck_rounds = 3;  // a round may let copies arrive without any thread getting on

jmp_buf scheduler;
std::exception_ptr error;
const std::function<void()>* kernel_of_launch = nullptr;

struct Stack {
  std::unique_ptr<unsigned char[]> memory{new unsigned char[stack_bytes]};
};
std::vector<Stack> stacks;  // kept between launches

std::string name_of(const Block& block) {
  const Index& at = block.index;
  return "block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

// What a copy still writes when its block has ended may be another block's.
void expect_no_copies_of_thread() {
  for (const std::vector<Copy>& group : current->copies) {
    if (!group.empty()) fail("it ends with copies it did not wait for");
  }
}
void expect_no_copies_of_block(const Block& block) {
  if (block.flying.empty()) return;
  error =
      std::make_exception_ptr(std::runtime_error(name_of(block) + ": it ends with copies to its mbarriers under way"));
}

void enter() {
  try {
    (*kernel_of_launch)();
    expect_no_copies_of_thread();
  } catch (...) {
    if (!error) error = std::current_exception();
  }
  current->done = true;
  _longjmp(scheduler, 1);
}

// The first switch to a fiber goes by makecontext, which gives it its stack; later ones by longjmp, which makes no
// system call.
void start(Fiber& fiber, Stack& stack) {
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack.memory.get();
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  current = &fiber;
  if (_setjmp(scheduler) == 0) setcontext(&context);
}

void resume(Fiber& fiber) {
  current = &fiber;
  if (_setjmp(scheduler) == 0) _longjmp(fiber.state, 1);
}

void run_blocks(std::vector<Block>& blocks, const Grid& grid, unsigned order) {
  const int threads = grid.threads.x * grid.threads.y * grid.threads.z;
  std::vector<Fiber> fibers(blocks.size() * threads);
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& fiber = fibers[i];
    const unsigned n = i % threads;
    fiber.number = n;
    fiber.thread = {n % grid.threads.x, n / grid.threads.x % grid.threads.y, n / (grid.threads.x * grid.threads.y)};
    fiber.block = &blocks[i / threads];
    fiber.grid = &grid;
  }
  while (stacks.size() < fibers.size()) stacks.emplace_back();
  std::vector<size_t> turn(fibers.size());
  for (size_t i = 0; i < turn.size(); ++i) turn[i] = i;
  std::mt19937 random(order);
  if (order) std::shuffle(turn.begin(), turn.end(), random);
  for (size_t i : turn) {
    start(fibers[i], stacks[i]);
    if (error) return;
  }
  int rounds_stuck = 0;
  for (;;) {
    bool left = false, moved = false;
    if (order) std::shuffle(turn.begin(), turn.end(), random);
    for (size_t i : turn) {
      if (fibers[i].done) continue;
      resume(fibers[i]);
      if (error) return;
      left = true;
      moved = moved || fibers[i].done || !fibers[i].stuck || std::exchange(clock_was_read, false);
    }
    if (!left) return;
    rounds_stuck = moved ? 0 : rounds_stuck + 1;
    if (rounds_stuck > stuck_rounds) {
      error = std::make_exception_ptr(std::runtime_error("every thread waits for one that will never come"));
      return;
    }
  }
}

}  // namespace

void yield(bool progress) {
  current->stuck = !progress;
  if (_setjmp(current->state) == 0) _longjmp(scheduler, 1);
}

void fail(const std::string& what) {
  throw std::runtime_error("thread " + std::to_string(current->number) + " of " + name_of(*current->block) + ": " +
                           what);
}

void meet(Group& group, int member, void* mine, Compute compute) {
  if (group.arrived == 0) group.compute = compute;
  if (group.compute != compute) fail("threads that must act together do different things");
  group.brought[member] = mine;
  if (++group.arrived == group.size) {
    if (compute) compute(group.brought.data(), group.size);
    group.arrived = 0;
    ++group.generation;
    return;
  }
  const uint64_t before = group.generation;
  yield(true);
  while (group.generation == before) yield(false);
}

void run(const Grid& grid, const std::function<void()>& kernel, unsigned order) {
  const int threads = grid.threads.x * grid.threads.y * grid.threads.z;
  if (threads % 32) throw std::invalid_argument("blocks must be whole warps");
  kernel_of_launch = &kernel;
  error = nullptr;
  const size_t total = size_t{grid.blocks.x} * grid.blocks.y * grid.blocks.z;
  const size_t at_once = grid.together ? total : grid.cluster;
  for (size_t first = 0; first < total && !error; first += at_once) {
    std::vector<Block> blocks(at_once);
    std::vector<Cluster> clusters(at_once / grid.cluster);
    for (size_t i = 0; i < at_once; ++i) {
      Block& block = blocks[i];
      const unsigned n = first + i;
      block.index = {n % grid.blocks.x, n / grid.blocks.x % grid.blocks.y, n / (grid.blocks.x * grid.blocks.y)};
      block.rank = i % grid.cluster;
      block.cluster = &clusters[i / grid.cluster];
      block.cluster->blocks.push_back(&block);
      block.shared_bytes = grid.shared_bytes;
      block.memory.reset(new unsigned char[grid.shared_bytes + 1024]);
      const uintptr_t address = reinterpret_cast<uintptr_t>(block.memory.get());
      block.shared = block.memory.get() + (1024 - address % 1024) % 1024;
      std::memset(block.shared, 0xff, grid.shared_bytes);
      block.all = Group(threads);
      block.warps.assign(threads / 32, Group(32));
      block.warpgroups.assign(threads / 128, Group(128));
      block.named.resize(16);
      block.products.resize(threads / 32);
      block.unfenced.resize(grid.shared_bytes / 16 + 1);
    }
    for (Cluster& cluster : clusters) cluster.all = Group(threads * grid.cluster);
    run_blocks(blocks, grid, order);
    for (size_t i = 0; i < at_once && !error; ++i) expect_no_copies_of_block(blocks[i]);
  }
  current = nullptr;
  if (error) std::rethrow_exception(std::exchange(error, nullptr));
}

}  // namespace emulated
