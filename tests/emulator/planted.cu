// A small kernel with one bug at a time, chosen by name: planted <bug> <order> [seed]. Prints whether the result is
// right, and the emulator's report; sanitizers speak for themselves. "clean" has no bug.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/launch.h"

namespace {

constexpr int kBlock = 64, kBlocks = 3, kBatches = 3, kItems = kBlock * kBatches;
constexpr unsigned kFullWarp = 0xffffffffu;

enum Bug {
  clean,
  barrier_missing_after_load,
  barrier_missing_before_reuse,
  write_of_one_thread_not_awaited,
  shuffle_instead_of_syncwarp,
  sum_not_atomic,
  shared_overrun,
  dynamic_overrun,
  shared_not_initialised,
  shared_misaligned,
  barrier_divergent,
  barrier_after_return,
  barrier_in_uneven_loop,
  barrier_in_branch_of_a_warp,
  shuffle_in_branch,
  shuffles_divergent,
  lane_not_in_mask,
  source_not_in_mask,
  masks_overlap,
  too_much_shared,
  no_dynamic_shared,
  block_too_large,
  block_of_half_a_warp,
  grid_too_large,
  too_much_dynamic_shared,
  read_too_early,
  read_on_another_stream,
  kBugs
};
constexpr const char* kNames[] = {"clean",
                                  "barrier_missing_after_load",
                                  "barrier_missing_before_reuse",
                                  "write_of_one_thread_not_awaited",
                                  "shuffle_instead_of_syncwarp",
                                  "sum_not_atomic",
                                  "shared_overrun",
                                  "dynamic_overrun",
                                  "shared_not_initialised",
                                  "shared_misaligned",
                                  "barrier_divergent",
                                  "barrier_after_return",
                                  "barrier_in_uneven_loop",
                                  "barrier_in_branch_of_a_warp",
                                  "shuffle_in_branch",
                                  "shuffles_divergent",
                                  "lane_not_in_mask",
                                  "source_not_in_mask",
                                  "masks_overlap",
                                  "too_much_shared",
                                  "no_dynamic_shared",
                                  "block_too_large",
                                  "block_of_half_a_warp",
                                  "grid_too_large",
                                  "too_much_dynamic_shared",
                                  "read_too_early",
                                  "read_on_another_stream"};
static_assert(sizeof kNames / sizeof *kNames == kBugs);

// What the block's threads add up: every thread sees all items of the block.
__device__ float sum_of_batches(Bug bug, const float* items) {
  GSF_SHARED(float, batch, [kBlock]);
  GSF_SHARED(float, factor, );
  const int thread = int(threadIdx.x);
  if (thread == 0) factor = 2;
  if (bug != write_of_one_thread_not_awaited) __syncthreads();
  float sum = factor - 2;
  for (int b = 0; b < kBatches; ++b) {
    if (b > 0 && bug != barrier_missing_before_reuse) __syncthreads();
    if (bug != shared_not_initialised || thread != 5)
      batch[thread + (bug == shared_overrun)] = items[b * kBlock + thread];
    if (bug != barrier_missing_after_load) __syncthreads();
    for (int i = 0; i < kBlock; ++i) sum += batch[(thread + i) % kBlock];
  }
  return sum;
}

// Hands the value of the neighbouring lane on, through dynamic shared memory and then by shuffles there and back.
__device__ float exchange(Bug bug, float value) {
  GSF_DYNAMIC_SHARED(float, values);
  const int thread = int(threadIdx.x), lane = thread % 32;
  values[thread + (bug == dynamic_overrun)] = value;
  if (bug == shuffle_instead_of_syncwarp)
    __shfl_xor_sync(kFullWarp, value, 1);
  else
    __syncwarp();
  value = values[thread ^ 1];
  if (bug == shuffle_in_branch) return lane < 16 ? __shfl_xor_sync(kFullWarp, value, 1) : value;
  if (bug == shuffles_divergent) {
    if (lane < 16) return __shfl_xor_sync(kFullWarp, value, 1);
    return __shfl_down_sync(kFullWarp, value, 1);
  }
  if (bug == lane_not_in_mask) return __shfl_xor_sync(0x7fffffffu, value, 1);
  if (bug == source_not_in_mask) return lane < 16 ? __shfl_sync(0xffffu, value, 20) : value;
  if (bug == masks_overlap) return __shfl_xor_sync(lane < 16 ? 0x3ffffu : 0xffff0000u, value, 1);
  return __shfl_xor_sync(kFullWarp, value, 1);
}

__device__ void barriers(Bug bug) {
  const int thread = int(threadIdx.x);
  if (bug == barrier_divergent) {
    if (thread < 32)
      __syncthreads();
    else
      __syncthreads();
  }
  if (bug == barrier_in_uneven_loop)
    for (int i = 0; i < 1 + thread / 32; ++i) __syncthreads();
  if (bug == barrier_in_branch_of_a_warp) {
    if (thread % 32 < 16) __syncthreads();
    __syncwarp();
    if (thread % 32 >= 16) __syncthreads();
  }
}

template <class T>
__device__ float touch(T* array) {
  array[threadIdx.x].x = 0;
  return array[threadIdx.x].x;
}

__global__ void __launch_bounds__(kBlock) planted_kernel(Bug bug, const float* items, float* sums, float* total) {
  const float* const mine = items + blockIdx.x * kItems;
  if (bug == barrier_after_return && threadIdx.x == 3) return;
  if (bug == too_much_shared) {
    GSF_SHARED(double, large, [6145]);
    large[threadIdx.x] = 0;
  }
  float more = 0;
  if (bug == shared_misaligned) {
    GSF_SHARED(float, numbers, [4 * kBlock]);
    more = touch(reinterpret_cast<float4*>(numbers));
  }
  const float sum = exchange(bug, sum_of_batches(bug, mine)) + more;
  barriers(bug);
  sums[blockIdx.x * kBlock + threadIdx.x] = sum;
  if (threadIdx.x == 0) {
    if (bug == sum_not_atomic)
      *total += sum;
    else
      atomicAdd(total, sum);
  }
  if (bug == sum_not_atomic) __syncthreads();  // orders the block, but not the blocks
}

// Fills sums and total, and returns the error.
cudaError_t run(Bug bug, const std::vector<float>& items, std::vector<float>& sums, float& total) {
  std::vector<float> device_sums(sums.size());
  const std::unique_ptr<float> device_total(new float(-1));
  const auto stream = reinterpret_cast<cudaStream_t>(1), other = reinterpret_cast<cudaStream_t>(2);
  const int threads = bug == block_too_large ? 1056 : bug == block_of_half_a_warp ? 80 : kBlock;
  const int64_t blocks = bug == grid_too_large ? int64_t(1) << 31 : kBlocks;
  const size_t shared = bug == no_dynamic_shared         ? 0
                        : bug == too_much_dynamic_shared ? (48 << 10) + 4
                                                         : kBlock * sizeof(float);
  GSF_STEP(cudaMemsetAsync(device_total.get(), 0, sizeof(float), stream));
  GSF_STEP(GSF_LAUNCH_SHARED(planted_kernel, blocks, threads, shared, bug == read_on_another_stream ? other : stream,
                             bug, items.data(), device_sums.data(), device_total.get()));
  GSF_STEP(
      cudaMemcpyAsync(sums.data(), device_sums.data(), sums.size() * sizeof(float), cudaMemcpyDeviceToHost, stream));
  GSF_STEP(cudaMemcpyAsync(&total, device_total.get(), sizeof total, cudaMemcpyDeviceToHost, stream));
  if (bug == read_too_early) {
    const float early = total;
    GSF_STEP(cudaStreamSynchronize(stream));
    total = early;
  }
  GSF_STEP(cudaStreamSynchronize(stream));
  return emulator::drain();
}

int find(const char* name, const char* const* names, int count) {
  for (int i = 0; i < count; ++i)
    if (std::strcmp(name, names[i]) == 0) return i;
  std::fprintf(stderr, "unknown: %s\n", name);
  std::exit(2);
}

}  // namespace

int main(int, char** arguments) {
  constexpr const char* kOrders[] = {"forward", "reverse", "random"};
  const Bug bug = Bug(find(arguments[1], kNames, kBugs));
  emulator::set_order(emulator::Order(find(arguments[2], kOrders, 3)),
                      arguments[3] ? std::strtoull(arguments[3], nullptr, 10) : 0);
  std::vector<float> items(kBlocks * kItems), sums(kBlocks * kBlock, -1);
  float total = -1, expected_total = 0, expected[kBlocks] = {};
  for (size_t i = 0; i < items.size(); ++i) expected[i / kItems] += items[i] = float(i % 7);
  for (const float sum : expected) expected_total += sum;
  // After an error the same process goes on.
  for (const Bug next : {bug, clean}) {
    if (next == clean && bug != clean) std::printf("then ");
    const cudaError_t error = run(next, items, sums, total);
    bool good = total == expected_total;
    for (size_t i = 0; i < sums.size(); ++i) good &= sums[i] == expected[i / kBlock];
    std::printf("%s, %s. %s\n", cudaGetErrorName(error), good ? "right" : "wrong", emulator::last_report().c_str());
    emulator::reset();
  }
}
