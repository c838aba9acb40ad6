// Runs the threads of one block after another's as fibers; see cuda_runtime.h beside this.

#include <cuda_runtime.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define START_SWITCH(...) __sanitizer_start_switch_fiber(__VA_ARGS__)
#define FINISH_SWITCH(...) __sanitizer_finish_switch_fiber(__VA_ARGS__)
#else
#define START_SWITCH(...)
#define FINISH_SWITCH(...)
#endif

dim3 gridDim, blockDim;
uint3 blockIdx, threadIdx;

namespace emulation {
namespace {

constexpr size_t kStack = 128 * 1024;
constexpr size_t kExchanged = 16;  // bytes a lane can bring
constexpr unsigned kMostThreads = 1024;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  void* sanitizer = nullptr;
  State state = State::kDone;
  unsigned mask = 0;                                // of the lanes that it waits for
  alignas(16) unsigned char brought[kExchanged];    // to the other lanes, when they have all come
  alignas(16) unsigned char delivered[kExchanged];  // what they then find
};

enum class Order { kAscending, kDescending, kRandom };

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  void* scheduler_sanitizer = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  unsigned running = 0, threads = 0;
  const std::function<void()>* work = nullptr;
  std::unique_ptr<unsigned char, decltype(&std::free)> shared{nullptr, std::free};
  Order order = Order::kAscending;
  std::mt19937 random{0};
};

Machine machine;

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulation: block (%u, %u, %u), thread %u: %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
               machine.running, what);
  std::abort();
}

Fiber& running() { return *machine.fibers[machine.running]; }

// Back to the scheduler, until it lets this thread go on.
void give_way(State state) {
  Fiber& fiber = running();
  fiber.state = state;
  START_SWITCH(state == State::kDone ? nullptr : &fiber.sanitizer, machine.scheduler_stack,
               machine.scheduler_stack_size);
  swapcontext(&fiber.context, &machine.scheduler);
  FINISH_SWITCH(fiber.sanitizer, nullptr, nullptr);
}

void enter() {
  FINISH_SWITCH(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
  (*machine.work)();
  give_way(State::kDone);
}

void resume(unsigned thread) {
  machine.running = thread;
  threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
  Fiber& fiber = *machine.fibers[thread];
  START_SWITCH(&machine.scheduler_sanitizer, fiber.stack.get(), kStack);
  swapcontext(&machine.scheduler, &fiber.context);
  FINISH_SWITCH(machine.scheduler_sanitizer, nullptr, nullptr);
}

// Lets go on who waits for nobody any more: a warp's lanes that all wait for the same lanes, then the whole block.
void release() {
  for (unsigned first = 0; first < machine.threads; first += warpSize) {
    const unsigned lanes = std::min<unsigned>(warpSize, machine.threads - first);
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const Fiber& waiting = *machine.fibers[first + lane];
      if (waiting.state != State::kAtWarp) continue;
      const unsigned mask = waiting.mask & (lanes == warpSize ? ~0u : (1u << lanes) - 1u);
      bool all = true;
      for (unsigned other = 0; other < lanes; ++other) {
        const Fiber& fiber = *machine.fibers[first + other];
        if (mask >> other & 1u) all = all && fiber.state == State::kAtWarp && fiber.mask == waiting.mask;
      }
      if (!all) continue;
      for (unsigned other = 0; other < lanes; ++other) {
        if (!(mask >> other & 1u)) continue;
        Fiber& fiber = *machine.fibers[first + other];
        fiber.state = State::kReady;
        std::memcpy(fiber.delivered, fiber.brought, kExchanged);
      }
    }
  }
  for (unsigned thread = 0; thread < machine.threads; ++thread) {
    if (machine.fibers[thread]->state != State::kAtBlock) return;
  }
  for (unsigned thread = 0; thread < machine.threads; ++thread) machine.fibers[thread]->state = State::kReady;
}

template <typename Number>
void arrange(std::vector<Number>& numbers) {
  if (machine.order == Order::kDescending) std::reverse(numbers.begin(), numbers.end());
  if (machine.order == Order::kRandom) std::shuffle(numbers.begin(), numbers.end(), machine.random);
}

void run_block() {
  for (unsigned thread = 0; thread < machine.threads; ++thread) {
    Fiber& fiber = *machine.fibers[thread];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    fiber.sanitizer = nullptr;
    fiber.state = State::kReady;
    makecontext(&fiber.context, enter, 0);
  }
  std::vector<unsigned> threads(machine.threads);
  for (;;) {
    std::iota(threads.begin(), threads.end(), 0u);
    arrange(threads);
    bool ran = false;
    for (const unsigned thread : threads) {
      if (machine.fibers[thread]->state != State::kReady) continue;
      ran = true;
      resume(thread);
    }
    const auto done = [](const auto& fiber) { return fiber->state == State::kDone; };
    if (std::all_of(machine.fibers.begin(), machine.fibers.begin() + machine.threads, done)) return;
    if (!ran) fail("waits for threads that have ended or wait elsewhere");
    release();
  }
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& work) {
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  const uint64_t threads = uint64_t{blockDim.x} * blockDim.y * blockDim.z;
  const uint64_t blocks = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  if (threads == 0 || threads > kMostThreads || blocks == 0 || gridDim.x > 0x7FFFFFFFu || gridDim.y > 65535 ||
      gridDim.z > 65535 || config.dynamicSmemBytes > 227 * 1024) {
    return cudaErrorInvalidConfiguration;
  }
  machine.threads = static_cast<unsigned>(threads);
  machine.work = &work;
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  std::vector<uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  arrange(order);
  for (const uint64_t block : order) {
    blockIdx = {static_cast<unsigned>(block % gridDim.x), static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / (uint64_t{gridDim.x} * gridDim.y))};
    // Not one byte more than was asked for, so that the address sanitizer sees what reaches beyond; NaNs, so that what
    // is read before it is written shows.
    machine.shared.reset(static_cast<unsigned char*>(std::malloc(config.dynamicSmemBytes)));
    std::fill_n(machine.shared.get(), config.dynamicSmemBytes, static_cast<unsigned char>(0xFF));
    run_block();
  }
  return cudaSuccess;
}

void wait_for_block() { give_way(State::kAtBlock); }

void wait_for_warp(unsigned mask) {
  if (!(mask >> this_lane() & 1u)) fail("is not among the lanes that it waits for");
  running().mask = mask;
  give_way(State::kAtWarp);
}

void exchange(unsigned mask, const void* mine, void* theirs, size_t bytes, int lane) {
  if (bytes > kExchanged) fail("exchanges more than 16 bytes");
  std::memcpy(running().brought, mine, bytes);
  wait_for_warp(mask);
  const unsigned from = machine.running / warpSize * warpSize + static_cast<unsigned>(lane);
  if (from >= machine.threads || !(mask >> lane & 1u)) fail("reads from a lane that takes no part");
  std::memcpy(theirs, machine.fibers[from]->delivered, bytes);
}

int this_lane() { return static_cast<int>(machine.running) % warpSize; }

unsigned char* dynamic_shared() { return machine.shared.get(); }

}  // namespace emulation

// 0: ascending, 1: descending, anything else: random with this seed.
extern "C" void emulation_order(unsigned order) {
  using emulation::Order;
  emulation::machine.order = order == 0 ? Order::kAscending : order == 1 ? Order::kDescending : Order::kRandom;
  emulation::machine.random.seed(order);
}
