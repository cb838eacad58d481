// Runs the threads of a block in turns: order, barriers, functions of the warp, shared memory, reports.
#include "emulator.h"

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>

#include "fibers.h"
#include "intrinsics.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

std::string report;  // see last_report()

namespace {

constexpr unsigned kMaxThreads = 1024, kLanes = 32;
constexpr size_t kStaticShared = 48 << 10;

bool operator==(const Site& a, const Site& b) {
  const auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.line == b.line && same(a.file, b.file) && same(a.function, b.function);
}

// Text that needs no freeing: a thread that fails never gets to it.
struct Text {
  char chars[400] = "";
};

template <class... Args>
Text text(const char* format, Args... arguments) {
  Text t;
  std::snprintf(t.chars, sizeof t.chars, format, arguments...);
  return t;
}

Text text(const Site& site) {
  if (!site.file) return text("%s", site.function);
  const char* name = std::strrchr(site.file, '/');
  return text("%s at %s:%d", site.function, name ? name + 1 : site.file, site.line);
}

// ---- the order of threads and blocks -------------------------------------------------------------------------------

Order order = Order::forward;
uint64_t seed = 0, random_state = 0;

uint64_t next_random() {  // SplitMix64 (Steele et al. 2014)
  uint64_t z = random_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// Items 0 to n - 1 in the order of the run.
template <class T>
void arrange(T* items, unsigned n) {
  std::iota(items, items + n, T(0));
  if (order == Order::reverse) std::reverse(items, items + n);
  if (order == Order::random)
    for (unsigned i = n; i > 1; --i) std::swap(items[i - 1], items[next_random() % i]);
}

// The threads that can go on. first() takes the first one out, in the order of the run.
class Ready {
 public:
  void arrange(unsigned threads) {
    emulator::arrange(order_, threads);
    for (unsigned i = 0; i < threads; ++i) place_[order_[i]] = uint16_t(i);
  }
  void clear() { std::memset(words_, 0, sizeof words_), summary_ = 0; }
  bool empty() const { return summary_ == 0; }
  void add(unsigned thread) {
    const unsigned place = place_[thread];
    words_[place / 32] |= 1u << place % 32, summary_ |= 1u << place / 32;
  }
  unsigned first() {
    const int word = std::countr_zero(summary_), bit = std::countr_zero(words_[word]);
    words_[word] &= words_[word] - 1;
    if (words_[word] == 0) summary_ &= summary_ - 1;
    return order_[32 * word + bit];
  }

 private:
  uint16_t order_[kMaxThreads], place_[kMaxThreads];
  uint32_t words_[kMaxThreads / 32] = {}, summary_ = 0;
};

// ---- a block -------------------------------------------------------------------------------------------------------

// Lanes that meet in one call of a function of the warp.
struct Group {
  unsigned mask, arrived, meetings;
  Site site;
  void* payloads[kLanes];
};

struct Warp {
  unsigned exited, waiting;
  Group groups[kLanes];  // by the lowest lane of the mask
};

struct Thread {
  std::optional<Context> fiber;
  std::optional<Site> waiting;
};

struct Block {
  const Launch* launch;
  const std::function<void()>* body;
  unsigned threads, alive;
  unsigned at_barrier, barriers;
  Site barrier_site;
  unsigned given[2];  // to the barrier that is under way, and the one before
  uint64_t number = 0;
  std::vector<void*> shared;
  size_t static_shared;
  void* dynamic_shared;
  // Where ThreadSanitizer learns what happens before what: two places in turn for each meeting, so that who is already
  // on the way to the next meeting does not count for this one. First the block's, then those of each group. They are
  // each block's own, or one block would learn from another.
  std::unique_ptr<uint64_t[]> tags;
};

// A fiber goes on from block to block, and so what it learnt in one is known in its next: under ThreadSanitizer a few
// sets of fibers take turns.
#if defined(GSF_EMULATOR_TSAN)
constexpr int kSets = 4;
#else
constexpr int kSets = 1;
#endif
Thread sets[kSets][kMaxThreads];
Thread* threads = sets[0];
Warp warps[kMaxThreads / kLanes];
Ready ready;
Block block;
Context* scheduler;
unsigned running;  // thread
uint64_t launch_tag, exit_tag;

uint64_t* tag_of(unsigned group, unsigned meeting) { return &block.tags[2 * group + (meeting & 1)]; }

void switch_to_scheduler() { threads[running].fiber->switch_to(*scheduler); }

[[noreturn]] void fail_in_deadlock() {
  const Site& here = *threads[running].waiting;
  unsigned other = 0;  // a thread that waits elsewhere
  for (unsigned t = 0; t < block.threads; ++t)
    if (threads[t].waiting && !(*threads[t].waiting == here)) other = t;
  fail(here, "deadlock: thread %u waits in %s", other, text(*threads[other].waiting).chars);
}

// Gives the turn to the first thread that can go on, and returns when it is the caller's turn again.
void take_turns() {
  if (ready.empty()) {
    if (block.alive) fail_in_deadlock();
    return switch_to_scheduler();
  }
  const unsigned before = running;
  running = ready.first();
  threadIdx.x = running;
  if (running != before) threads[before].fiber->switch_to(*threads[running].fiber);
}

void wait(const Site& site) {
  threads[running].waiting = site;
  take_turns();
}

void wake(unsigned thread) {
  threads[thread].waiting.reset();
  ready.add(thread);
}

// ---- exit ----------------------------------------------------------------------------------------------------------

void exit_thread() {
  const unsigned lane = running % kLanes;
  Warp& warp = warps[running / kLanes];
  if (block.at_barrier)
    fail({"its end", nullptr, 0}, "other threads of the block wait in %s", text(block.barrier_site).chars);
  for (const Group& group : warp.groups)
    if (warp.waiting && group.arrived && group.mask >> lane & 1)
      fail(group.site, "lane %u of the mask %08x has exited", lane, group.mask);
  warp.exited |= 1u << lane;
  --block.alive;
  release(&exit_tag);
  take_turns();
}

void run_threads() {  // on a fiber, block after block
  for (;;) {
    acquire(&launch_tag);
    (*block.body)();
    exit_thread();
  }
}

// ---- blocks --------------------------------------------------------------------------------------------------------

void free_shared() {
  Unwatched unwatched;
  for (void* memory : block.shared) std::free(memory);
  block.shared.clear();
}

void start_block(const Launch& launch, const std::function<void()>& body) {
  const unsigned count = unsigned(launch.threads);
  ++block.number;
  threads = sets[block.number % kSets];
  block.launch = &launch, block.body = &body, block.threads = block.alive = count;
  block.at_barrier = block.barriers = block.given[0] = 0;
  block.static_shared = 0, block.dynamic_shared = nullptr;
  block.tags = std::make_unique_for_overwrite<uint64_t[]>(2 + 2 * count);
  for (unsigned w = 0; w < count / kLanes; ++w) {
    warps[w].exited = warps[w].waiting = 0;
    for (Group& group : warps[w].groups) group.arrived = group.meetings = 0;
  }
  ready.clear(), ready.arrange(count);
  for (unsigned t = 0; t < count; ++t) {
    if (!threads[t].fiber) threads[t].fiber.emplace(run_threads);
    wake(t);
  }
}

void abandon_fibers() {
  for (unsigned t = 0; t < block.threads; ++t) threads[t].fiber.reset(), threads[t].waiting.reset();
}

// False if it broke a rule; its threads are then abandoned.
bool run_block(Context& here) {
  scheduler = &here;
  running = ready.first();
  threadIdx.x = running;
  here.switch_to(*threads[running].fiber);
  const bool good = block.alive == 0;
  if (!good) abandon_fibers();
  free_shared();
  return good;
}

}  // namespace

void set_order(Order new_order, uint64_t new_seed) { order = new_order, seed = new_seed; }

bool run(const Launch& launch, const std::function<void()>& body) {
  Context here;
  std::vector<unsigned> blocks(size_t(launch.blocks));
  random_state = seed;
  arrange(blocks.data(), unsigned(launch.blocks));
  gridDim = {unsigned(launch.blocks), 1, 1}, blockDim = {unsigned(launch.threads), 1, 1};
  bool good = true;
  release(&launch_tag);
  for (size_t i = 0; i < blocks.size() && good; ++i) {
    blockIdx.x = blocks[i];
    start_block(launch, body);
    good = run_block(here);
  }
  acquire(&exit_tag);  // not before: ThreadSanitizer takes blocks for unordered
  return good;
}

void fail(const Site& site, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  report = "kernel " + std::string(block.launch->kernel) + ", block " + std::to_string(blockIdx.x) + ", thread " +
           std::to_string(running) + ", " + text(site).chars + ": " + message;
  Unwatched::end_all();
  switch_to_scheduler();
  std::abort();
}

// ---- threads that meet ---------------------------------------------------------------------------------------------

unsigned barrier(bool given, const Site& site) {
  if (block.alive != block.threads) fail(site, "barrier after a thread of the block has exited");
  if (block.at_barrier == 0)
    block.barrier_site = site;
  else if (!(block.barrier_site == site))
    fail(site, "divergent barrier: other threads of the block wait in %s", text(block.barrier_site).chars);
  const unsigned parity = block.barriers & 1;
  uint64_t* const tag = tag_of(0, block.barriers);
  block.given[parity] += given;
  release(tag);
  if (++block.at_barrier == block.threads) {
    block.at_barrier = 0, ++block.barriers, block.given[!parity] = 0;
    if (order == Order::random) ready.arrange(block.threads);
    for (unsigned t = 0; t < block.threads; ++t) wake(t);
    take_turns();
  } else {
    wait(site);
  }
  acquire(tag);
  return block.given[parity];
}

void meet(void* payload, Meeting meeting, const void* function, unsigned mask, bool orders_memory, const Site& site) {
  const unsigned first = running / kLanes * kLanes, lane = running % kLanes;
  Warp& warp = warps[running / kLanes];
  if (!(mask >> lane & 1)) fail(site, "lane %u is not in its mask %08x", lane, mask);
  if (mask & warp.exited) fail(site, "lane %d of the mask %08x has exited", std::countr_zero(mask & warp.exited), mask);
  Group& group = warp.groups[std::countr_zero(mask)];
  if (group.arrived == 0)
    group.mask = mask, group.site = site, std::memset(group.payloads, 0, sizeof group.payloads);
  else if (!(group.site == site))
    fail(site, "divergent function of the warp: other lanes of the mask wait in %s", text(group.site).chars);
  if (group.mask != mask || (warp.waiting & mask) != group.arrived)
    fail(site, "lanes of the mask %08x wait with another mask", mask);

  uint64_t* const tag = tag_of(1 + first + unsigned(std::countr_zero(mask)), group.meetings);
  group.payloads[lane] = payload, group.arrived |= 1u << lane, warp.waiting |= 1u << lane;
  if (orders_memory) release(tag);
  if (group.arrived == mask) {
    if (meeting) {
      Unwatched unwatched;
      meeting(function, group.payloads);
    }
    group.arrived = 0, warp.waiting &= ~mask, ++group.meetings;
    for (unsigned l = 0; l < kLanes; ++l)
      if (mask >> l & 1) wake(first + l);
    take_turns();
  } else {
    wait(site);
  }
  if (orders_memory) acquire(tag);
}

// ---- shared memory -------------------------------------------------------------------------------------------------

namespace {

// Lives as long as the block. Under the address sanitizer every other block's arrays are aligned as asked for and not
// better: a wider access is undefined there.
void* allocate_shared(size_t bytes, size_t alignment) {
  Unwatched unwatched;
  size_t before = 0;
#if defined(__SANITIZE_ADDRESS__)
  if (block.number % 2 && alignment < 16) before = 16 + alignment;
#endif
  void* allocated = nullptr;
  if (posix_memalign(&allocated, std::max<size_t>(16, alignment), before + bytes)) std::abort();
  block.shared.push_back(allocated);
  char* const memory = static_cast<char*>(allocated);
  std::memset(memory, 0xFF, before + bytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(memory, before);
#endif
  return memory + before;
}

}  // namespace

void* shared_memory(SharedArray& array) {
  if (array.block != block.number) {
    block.static_shared += array.bytes;
    if (block.static_shared + size_t(block.launch->shared_bytes) > kStaticShared)
      fail({array.name, nullptr, 0}, "the block needs more than %zu bytes of shared memory", kStaticShared);
    array.data = allocate_shared(array.bytes, array.alignment), array.block = block.number;
  }
  return array.data;
}

void* dynamic_shared_memory() {
  if (block.launch->shared_bytes == 0)
    fail({"dynamic shared memory", nullptr, 0}, "the launch asked for no dynamic shared memory");
  if (!block.dynamic_shared) block.dynamic_shared = allocate_shared(size_t(block.launch->shared_bytes), 16);
  return block.dynamic_shared;
}

}  // namespace emulator
