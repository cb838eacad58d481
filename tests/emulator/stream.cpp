// Streams: what is queued, when it runs, and the record of it; and the same for C, which tests in Python call.
#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "emulator.h"

namespace emulator {

extern std::string report;

namespace {

struct Work {
  cudaStream_t stream;
  std::function<bool()> run;
};

std::deque<Work> queue;
std::vector<std::shared_ptr<const void>> kept;  // until the queue is empty
std::vector<Call> recorded;
cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) { return last_error = error; }

cudaError_t refuse(const Launch& launch, cudaError_t error, const char* why) {
  report = "kernel " + std::string(launch.kernel) + ", " + std::to_string(launch.blocks) + " blocks of " +
           std::to_string(launch.threads) + " threads: " + why;
  return failed(error);
}

void push(cudaStream_t stream, std::function<bool()> work) { queue.push_back({stream, std::move(work)}); }

// Takes out what a stream has queued next.
bool pop(cudaStream_t stream, Work& work) {
  const auto next = std::find_if(queue.begin(), queue.end(), [=](const Work& w) { return w.stream == stream; });
  if (next == queue.end()) return false;
  work = std::move(*next);
  queue.erase(next);
  return true;
}

// Runs what a stream has queued, in its order.
cudaError_t run_stream(cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (Work work; pop(stream, work);) {
    if (work.run()) continue;
    error = failed(cudaErrorLaunchFailure);
    queue.clear();
  }
  if (queue.empty()) kept.clear();
  return error;
}

constexpr const char* kKinds[] = {"launch",         "memset",           "host_to_device",
                                  "device_to_host", "device_to_device", "synchronize"};

}  // namespace

const std::string& last_report() { return report; }

const std::vector<Call>& calls() { return recorded; }

void reset() {
  queue.clear(), kept.clear(), recorded.clear(), report.clear();
  last_error = cudaSuccess;
  set_order(Order::forward);
}

cudaError_t drain() {
  while (!queue.empty())
    if (const cudaError_t error = run_stream(queue.back().stream)) return error;
  return cudaSuccess;
}

void keep(std::shared_ptr<const void> object) {
  if (!queue.empty()) kept.push_back(std::move(object));
}

void enqueue(const char* name, cudaStream_t stream, std::function<void()> work) {
  recorded.push_back({Kind::launch, stream, 0, name});
  push(stream, [work = std::move(work)] { return work(), true; });
}

cudaError_t launch(const Launch& launch, cudaStream_t stream, std::function<void()> thread) {
  if (launch.threads < 1 || launch.threads > 1024 || launch.blocks > INT32_MAX)
    return refuse(launch, cudaErrorInvalidConfiguration, "more than a GPU takes");
  if (launch.threads % 32)
    return refuse(launch, cudaErrorInvalidConfiguration, "a block must consist of whole warps of 32 threads");
  if (launch.shared_bytes < 0 || launch.shared_bytes > 48 << 10)
    return refuse(launch, cudaErrorInvalidValue, "more than 48 KiB of dynamic shared memory");
  recorded.push_back({Kind::launch, stream, launch.shared_bytes, launch.kernel});
  push(stream, [launch, thread = std::move(thread)] { return run(launch, thread); });
  return cudaSuccess;
}

}  // namespace emulator

using emulator::Kind;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown error";
}

const char* cudaGetErrorString(cudaError_t error) {
  return error && !emulator::report.empty() ? emulator::report.c_str() : cudaGetErrorName(error);
}

cudaError_t cudaPeekAtLastError() { return emulator::last_error; }

cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  constexpr Kind kinds[] = {Kind::host_to_device, Kind::device_to_host, Kind::device_to_device};
  if (kind < cudaMemcpyHostToDevice || kind > cudaMemcpyDeviceToDevice) return emulator::failed(cudaErrorInvalidValue);
  emulator::recorded.push_back({kinds[kind - 1], stream, int64_t(bytes), ""});
  if (bytes) emulator::push(stream, [=] { return std::memcpy(to, from, bytes), true; });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  emulator::recorded.push_back({Kind::memset, stream, int64_t(bytes), ""});
  if (bytes) emulator::push(stream, [=] { return std::memset(to, value, bytes), true; });
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  emulator::recorded.push_back({Kind::synchronize, stream, 0, ""});
  return emulator::run_stream(stream);
}

// ---- for C ---------------------------------------------------------------------------------------------------------

#define GSF_EXPORT extern "C" __attribute__((visibility("default")))

GSF_EXPORT void emulator_set_order(int order, uint64_t seed) { emulator::set_order(emulator::Order(order), seed); }

GSF_EXPORT const char* emulator_report() { return emulator::report.c_str(); }

GSF_EXPORT void emulator_reset() { emulator::reset(); }

GSF_EXPORT int emulator_drain() { return emulator::drain(); }

// A line for each call: kind, stream, bytes, name.
GSF_EXPORT const char* emulator_calls() {
  static std::string lines;
  lines.clear();
  for (const emulator::Call& call : emulator::recorded)
    lines += std::string(emulator::kKinds[int(call.kind)]) + " " + std::to_string(uintptr_t(call.stream)) + " " +
             std::to_string(call.bytes) + " " + call.name + "\n";
  return lines.c_str();
}
