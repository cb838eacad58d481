// The emulator's intrinsics, orders and streams, and csrc/cuda/warp.h and mma.h, against their definitions. Prints what
// differs; otherwise nothing.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/mma.h"
#include "cuda/warp.h"

namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (!good) ++failures, std::printf("wrong: %s\n", what.c_str());
}

// Runs f(lane) as 32 threads, at whose end all writes are there.
template <class F>
__global__ void warp_kernel(F* f) {
  (*f)(int(threadIdx.x));
}
template <class F>
void on_warp(F f, int threads = 32) {
  expect(GSF_LAUNCH(warp_kernel, 1, threads, nullptr, &f) == cudaSuccess, "launch");
  expect(cudaStreamSynchronize(nullptr) == cudaSuccess, emulator::last_report());
}

std::mt19937 rng(1);
float uniform() { return std::uniform_real_distribution<float>(-2, 2)(rng); }

// ---- shuffles: CUDA C++ Programming Guide, "Warp Shuffle Functions" ------------------------------------------------

template <class T>
void test_shuffles() {
  std::vector<T> values(32);
  for (T& value : values) value = T(rng()) / 3;
  std::vector<T> results(4 * 32);
  for (const int width : {1, 2, 4, 8, 16, 32})
    for (int by = 0; by < 32; ++by) {
      on_warp([&](int lane) {
        const T mine = values[size_t(lane)];
        T* const result = &results[4 * size_t(lane)];
        result[0] = __shfl_sync(~0u, mine, by + lane, width);
        result[1] = __shfl_up_sync(~0u, mine, unsigned(by), width);
        result[2] = __shfl_down_sync(~0u, mine, unsigned(by), width);
        result[3] = __shfl_xor_sync(~0u, mine, by, width);
      });
      for (int lane = 0; lane < 32; ++lane) {
        const int segment = lane / width * width, up = lane - by, down = lane + by, other = lane ^ by;
        const int sources[] = {segment + (by + lane) % width, up < segment ? lane : up,
                               down >= segment + width ? lane : down, other >= segment + width ? lane : other};
        for (int f = 0; f < 4; ++f)
          expect(results[size_t(4 * lane + f)] == values[size_t(sources[f])],
                 "shuffle " + std::to_string(f) + " by " + std::to_string(by) + " of width " + std::to_string(width));
      }
    }
}

// Five bits of the distance count, and a source counts within its segment.
void test_shuffles_out_of_range() {
  on_warp([](int lane) {
    expect(__shfl_sync(~0u, lane, 37) == 5 && __shfl_sync(~0u, lane, -1) == 31, "__shfl_sync from lanes 37 and -1");
    expect(__shfl_up_sync(~0u, lane, 33) == (lane ? lane - 1 : 0), "__shfl_up_sync by 33");
    expect(__shfl_down_sync(~0u, lane, 32) == lane, "__shfl_down_sync by 32");
    expect(__shfl_xor_sync(~0u, lane, 33) == (lane ^ 1), "__shfl_xor_sync by 33");
  });
}

void test_votes() {
  for (int trial = 0; trial < 50; ++trial) {
    const unsigned mask = trial ? rng() | 1u << trial % 32 : ~0u, bits = trial == 1 ? mask : trial == 2 ? 0 : rng();
    on_warp([&](int lane) {
      if (!(mask >> lane & 1)) return;
      const int mine = int(bits >> lane & 1) * 4;
      expect(__ballot_sync(mask, mine) == (bits & mask), "__ballot_sync");
      expect(__any_sync(mask, mine) == ((bits & mask) != 0), "__any_sync");
      expect(__all_sync(mask, mine) == ((bits & mask) == mask), "__all_sync");
    });
  }
  // Two halves of a warp at a time.
  on_warp([](int lane) {
    const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
    for (int i = 0; i < 3; ++i) {
      __syncwarp(mask);
      expect(__shfl_xor_sync(mask, lane, 15) == (lane ^ 15), "two groups of lanes");
    }
  });
}

void test_barriers() {
  std::vector<int> counts;
  on_warp(
      [&](int thread) {
        GSF_SHARED(int, numbers, [2][96]);
        GSF_SHARED(double, one, );
        for (int i = 0; i < 5; ++i) {
          numbers[i % 2][thread] = thread * i;
          if (thread == 40) one = i;
          const int count = __syncthreads_count(thread % 3 == i);
          expect(count == (i < 3 ? 32 : 0), "__syncthreads_count");
          expect(one == i && numbers[i % 2][95 - thread] == (95 - thread) * i, "shared memory after a barrier");
          expect(__syncthreads_and(thread < 95 + i) == (i > 0), "__syncthreads_and");
          expect(__syncthreads_or(thread == 94 + i) == (i < 2), "__syncthreads_or");
        }
      },
      96);
}

// ---- atomics -------------------------------------------------------------------------------------------------------

template <class T, class F>
void test_atomic(const char* name, T start, T operand, T expected, F f) {
  T number = start;
  const T old = f(&number, operand);
  expect(old == start && number == expected, name);
}

template <class T>
void test_integer_atomics() {
  const T high = T(~T(0)), a = 12, b = 10;
  test_atomic<T>("atomicAdd", a, b, 22, [](T* p, T x) { return atomicAdd(p, x); });
  test_atomic<T>("atomicAdd wraps", high, 1, T(high + T(1)), [](T* p, T x) { return atomicAdd(p, x); });
  test_atomic<T>("atomicMax", a, b, a, [](T* p, T x) { return atomicMax(p, x); });
  test_atomic<T>("atomicMax", b, high, T(-1) < T(0) ? b : high, [](T* p, T x) { return atomicMax(p, x); });
  test_atomic<T>("atomicMin", a, b, b, [](T* p, T x) { return atomicMin(p, x); });
  test_atomic<T>("atomicMin", b, high, T(-1) < T(0) ? high : b, [](T* p, T x) { return atomicMin(p, x); });
  test_atomic<T>("atomicOr", a, b, 14, [](T* p, T x) { return atomicOr(p, x); });
  test_atomic<T>("atomicAnd", a, b, 8, [](T* p, T x) { return atomicAnd(p, x); });
  test_atomic<T>("atomicExch", a, b, b, [](T* p, T x) { return atomicExch(p, x); });
  test_atomic<T>("atomicCAS", a, b, b, [](T* p, T x) { return atomicCAS(p, 12, x); });
  test_atomic<T>("atomicCAS", a, b, a, [](T* p, T x) { return atomicCAS(p, 13, x); });
}

void test_atomics() {
  test_integer_atomics<int>(), test_integer_atomics<unsigned>(), test_integer_atomics<unsigned long long>();
  test_atomic<int>("atomicAdd wraps", INT32_MAX, 1, INT32_MIN, [](int* p, int x) { return atomicAdd(p, x); });
  test_atomic<float>("atomicAdd", 1.5f, 2.25f, 3.75f, [](float* p, float x) { return atomicAdd(p, x); });
  test_atomic<double>("atomicAdd", 1.5, -2.25, -0.75, [](double* p, double x) { return atomicAdd(p, x); });
  test_atomic<float>("atomicExch", 1.5f, 2.25f, 2.25f, [](float* p, float x) { return atomicExch(p, x); });
  float sum = 0;
  on_warp([&](int thread) { atomicAdd(&sum, float(thread)); }, 128);
  expect(sum == 127 * 64, "atomicAdd by many");
}

// ---- bits ----------------------------------------------------------------------------------------------------------

void test_bits() {
  std::vector<uint64_t> words = {0, 1, 2, 3, 0x80000000u, 0x8000000000000000u, ~0ull, 0x100000000u};
  for (int i = 0; i < 100; ++i) words.push_back((uint64_t(rng()) << 32 | rng()) >> rng() % 64);
  for (const uint64_t word : words) {
    int count[2] = {}, first[2] = {}, leading[2] = {32, 64};
    unsigned reversed = 0;
    for (int bit = 63; bit >= 0; --bit) {
      if (!(word >> bit & 1)) continue;
      for (int wide = bit >= 32; wide < 2; ++wide) {
        ++count[wide], first[wide] = bit + 1;
        leading[wide] = std::min(leading[wide], (wide ? 63 : 31) - bit);
      }
      if (bit < 32) reversed += 1u << (31 - bit);
    }
    const unsigned low = unsigned(word);
    expect(__popc(low) == count[0] && __popcll(word) == count[1], "__popc of " + std::to_string(word));
    expect(__ffs(int(low)) == first[0] && __ffsll(int64_t(word)) == first[1], "__ffs of " + std::to_string(word));
    expect(__clz(int(low)) == leading[0] && __clzll(int64_t(word)) == leading[1], "__clz of " + std::to_string(word));
    expect(__brev(low) == reversed, "__brev of " + std::to_string(word));
  }
  expect(__float_as_uint(-2.0f) == 0xc0000000u && __uint_as_float(0x3f800000u) == 1, "bits of a float");
  expect(__float_as_int(-2.0f) == int(0xc0000000u) && __int_as_float(0x40400000) == 3, "bits of a float");
  expect(__longlong_as_double(__double_as_longlong(0.1)) == 0.1, "bits of a double");
}

// ---- products on tensor cores --------------------------------------------------------------------------------------

using gsfields::cuda::mma_m16n8k16, gsfields::cuda::mma_m16n8k8, gsfields::cuda::to_bf16x2, gsfields::cuda::to_tf32;

void test_rounding() {
  const float up = 1 + std::ldexp(1.f, -10), half = 1 + std::ldexp(1.f, -11);
  expect(to_tf32(half) == __float_as_uint(up) && to_tf32(-half) == __float_as_uint(-up), "halves, away from zero");
  expect(to_tf32(std::nextafter(half, 0.f)) == __float_as_uint(1), "below a half");
  expect(to_tf32(INFINITY) == __float_as_uint(INFINITY) && std::isnan(__uint_as_float(to_tf32(NAN))), "no number");
  const float even = 1 + std::ldexp(1.f, -8), odd = even + std::ldexp(1.f, -7);
  expect(to_bf16x2(even, odd) == (0x3f80u | 0x3f82u << 16), "halves, to even");
  expect(to_bf16x2(-INFINITY, 2) == (0xff80u | 0x4000u << 16) && to_bf16x2(NAN, 0) == 0x7fff, "no number");
}

// Element (i, k) of A and (k, j) of B lie where the PTX ISA says, and so do those of C and D.
void test_product(int depth, const std::vector<float>& A, const std::vector<float>& B, const std::vector<float>& C) {
  std::vector<float> D(16 * 8, NAN);
  const auto at = [](const std::vector<float>& m, int columns, int i, int j) { return m[size_t(i * columns + j)]; };
  on_warp([&](int lane) {
    const int g = lane / 4, t = lane % 4;
    uint32_t a[4], b[2];
    float c[4];
    for (int r = 0; r < 4; ++r) {
      const int row = r % 2 ? g + 8 : g, column = depth == 8 ? t + r / 2 * 4 : 2 * t + r / 2 * 8;
      a[r] =
          depth == 8 ? to_tf32(at(A, 8, row, column)) : to_bf16x2(at(A, 16, row, column), at(A, 16, row, column + 1));
      c[r] = at(C, 8, r < 2 ? g : g + 8, 2 * t + r % 2);
    }
    for (int r = 0; r < 2; ++r) {
      const int row = depth == 8 ? t + 4 * r : 2 * t + 8 * r;
      b[r] = depth == 8 ? to_tf32(at(B, 8, row, g)) : to_bf16x2(at(B, 8, row, g), at(B, 8, row + 1, g));
    }
    if (depth == 8)
      mma_m16n8k8(c, a, b);
    else
      mma_m16n8k16(c, a, b);
    for (int r = 0; r < 4; ++r) D[size_t((r < 2 ? g : g + 8) * 8 + 2 * t + r % 2)] = c[r];
  });
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      double expected = at(C, 8, i, j);
      for (int k = 0; k < depth; ++k) expected += double(at(A, depth, i, k)) * at(B, 8, k, j);
      expect(std::abs(at(D, 8, i, j) - expected) < 1e-5, "element " + std::to_string(i) + ", " + std::to_string(j) +
                                                             " of a product of depth " + std::to_string(depth));
    }
}

void test_products() {
  for (const int depth : {8, 16}) {
    std::vector<float> A(size_t(16 * depth)), B(size_t(depth * 8)), C(16 * 8);
    for (auto* matrix : {&A, &B, &C})
      for (float& x : *matrix) x = __uint_as_float(__float_as_uint(uniform()) & 0xffff0000u);  // exact in both types
    test_product(depth, A, B, C);
  }
}

// ---- sums over a warp ----------------------------------------------------------------------------------------------

template <int K>
void test_reduce_scatter() {
  std::vector<double> values(32 * K), sums(K, 0), received(K, NAN);
  for (double& value : values) value = double(rng() % 1000);
  for (size_t i = 0; i < values.size(); ++i) sums[i % K] += values[i];
  on_warp([&](int lane) {
    double mine[K];
    for (int k = 0; k < K; ++k) mine[k] = values[size_t(lane * K + k)];
    const double sum = gsfields::cuda::reduce_scatter(mine);
    const int k = gsfields::cuda::scattered_index<K>(lane);
    expect(k < K && (k < 0 || std::isnan(received[size_t(k)])), "one lane for each sum");
    if (k >= 0) received[size_t(k)] = sum;
  });
  expect(received == sums, "reduce_scatter of " + std::to_string(K));
}

// ---- orders --------------------------------------------------------------------------------------------------------

// Who ran when, in a kernel with a barrier: block and thread, numbered through.
__global__ void order_kernel(int* at, int* log) {
  const int thread = int(blockIdx.x * blockDim.x + threadIdx.x);
  log[(*at)++] = thread;
  __syncthreads();
  log[(*at)++] = thread;
}

std::vector<int> run_in(emulator::Order order, uint64_t seed) {
  emulator::set_order(order, seed);
  int at = 0;
  std::vector<int> log(2 * 3 * 64, -1);
  expect(GSF_LAUNCH(order_kernel, 3, 64, nullptr, &at, log.data()) == cudaSuccess, "launch");
  expect(emulator::drain() == cudaSuccess, emulator::last_report());
  return log;
}

void test_orders() {
  using emulator::Order;
  std::vector<int> forward;
  for (int block = 0; block < 3; ++block)
    for (int i = 0; i < 2 * 64; ++i) forward.push_back(64 * block + i % 64);
  expect(run_in(Order::forward, 0) == forward, "forward order");
  const std::vector<int> reverse(forward.rbegin(), forward.rend());
  expect(run_in(Order::reverse, 0) == reverse, "reverse order");
  std::vector<int> random = run_in(Order::random, 5);
  expect(random != forward && random != reverse && random == run_in(Order::random, 5), "random order repeats by seed");
  expect(random != run_in(Order::random, 6), "random order depends on the seed");
  expect(!std::equal(random.begin(), random.begin() + 64, random.begin() + 64), "random order changes at barriers");
  std::sort(random.begin(), random.end()), std::sort(forward.begin(), forward.end());
  expect(random == forward, "random order is complete");
}

// ---- streams -------------------------------------------------------------------------------------------------------

__global__ void add_kernel(int* number, int value) {
  if (threadIdx.x == 0) *number = *number * 10 + value;
}

void test_streams() {
  const auto first = reinterpret_cast<cudaStream_t>(1), second = reinterpret_cast<cudaStream_t>(2);
  emulator::reset();
  int number = 0, copy = -1, value = 1;
  expect(GSF_LAUNCH(add_kernel, 1, 32, first, &number, value) == cudaSuccess, "launch");
  value = 9;  // the launch has its own
  expect(GSF_LAUNCH(add_kernel, 1, 32, second, &number, 2) == cudaSuccess, "launch");
  expect(cudaMemcpyAsync(&copy, &number, sizeof copy, cudaMemcpyDeviceToHost, first) == cudaSuccess, "copy");
  expect(number == 0 && copy == -1, "nothing has run");
  expect(cudaStreamSynchronize(first) == cudaSuccess && number == 1 && copy == 1, "one stream has run");
  expect(GSF_LAUNCH(add_kernel, 1, 32, first, &number, 3) == cudaSuccess, "launch");
  expect(GSF_LAUNCH(add_kernel, 1, 32, second, &number, 4) == cudaSuccess, "launch");
  expect(emulator::drain() == cudaSuccess && number == 1243, "the stream used last goes first");
  expect(cudaMemsetAsync(&number, 0, sizeof number, second) == cudaSuccess && number == 1243, "fills are queued");
  expect(cudaMemsetAsync(&copy, 0, sizeof copy, first) == cudaSuccess, "fill");
  auto kept = std::make_shared<int>(0);
  const std::weak_ptr<int> alive = kept;
  emulator::keep(std::move(kept));
  expect(cudaStreamSynchronize(first) == cudaSuccess && !alive.expired(), "kept while another stream waits");
  expect(emulator::drain() == cudaSuccess && number == 0 && alive.expired(), "the fill has run");
  expect(GSF_LAUNCH(add_kernel, 0, 32, first, &number, 5) == cudaSuccess, "a launch of no blocks");

  std::string calls;
  for (const emulator::Call& call : emulator::calls())
    calls += std::to_string(int(call.kind)) + std::to_string(uintptr_t(call.stream)) + call.name + " ";
  expect(calls == "01add_kernel 02add_kernel 31 51 01add_kernel 02add_kernel 12 11 51 ", "calls: " + calls);
  expect(cudaMemcpyAsync(&copy, &number, 4, cudaMemcpyHostToHost, first) == cudaErrorInvalidValue, "a copy refused");
  expect(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess, "the last error");
}

}  // namespace

int main() {
  for (const auto order : {emulator::Order::forward, emulator::Order::reverse, emulator::Order::random}) {
    emulator::set_order(order, 7);
    test_shuffles<int>(), test_shuffles<unsigned>(), test_shuffles<float>(), test_shuffles<double>();
    test_shuffles<long long>();
    test_shuffles_out_of_range();
    test_votes();
    test_barriers();
    test_products();
    test_reduce_scatter<1>(), test_reduce_scatter<2>(), test_reduce_scatter<3>(), test_reduce_scatter<8>();
    test_reduce_scatter<13>(), test_reduce_scatter<32>();
  }
  test_orders();
  test_streams();
  test_atomics();
  test_bits();
  test_rounding();
  return failures != 0;
}
