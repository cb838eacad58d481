// CUDA's built-in variables and functions of device code, as far as kernels here use them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulator.h"
#include "vectors.h"

extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers ------------------------------------------------------------------------------------------------------

#define GSF_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GSF_SITE) { emulator::barrier(false, {"__syncthreads", file, line}); }
inline int __syncthreads_count(int p, GSF_SITE) {
  return int(emulator::barrier(p, {"__syncthreads_count", file, line}));
}
inline int __syncthreads_or(int p, GSF_SITE) { return emulator::barrier(p, {"__syncthreads_or", file, line}) > 0; }
inline int __syncthreads_and(int p, GSF_SITE) {
  return emulator::barrier(p, {"__syncthreads_and", file, line}) == blockDim.x;
}

// ---- functions of the warp -----------------------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = 0xffffffffu, GSF_SITE) {
  emulator::meet(nullptr, nullptr, nullptr, mask, true, {"__syncwarp", file, line});
}

namespace emulator {

template <class T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

// Each lane's value comes from lane source(lane, first, last), [first, last] being its segment of `width` lanes; from
// itself if that lies outside of what the lane may read.
template <Shuffled T, class Source>
T shuffle(T value, Source source, int width, unsigned mask, const Site& site) {
  if (width < 1 || width > 32 || (width & (width - 1)))
    fail(site, "the width is %d, but must be a power of two up to 32", width);
  const int lane = int(threadIdx.x) % 32, first = lane & -width;
  struct Lane {
    T value;
    int source;
    T result;
  } mine{value, source(lane, first, first + width - 1), value};
  const auto exchange = [&site, mask](void* const* lanes) {
    for (int l = 0; l < 32; ++l) {
      if (!lanes[l]) continue;
      Lane& to = *static_cast<Lane*>(lanes[l]);
      if (!lanes[to.source])
        fail(site, "lane %d reads from lane %d, which the mask %08x does not name", l, to.source, mask);
      to.result = static_cast<const Lane*>(lanes[to.source])->value;
    }
  };
  collective(&mine, exchange, mask, site.function, site.file, site.line);
  return mine.result;
}

// For which lanes the predicate holds.
inline unsigned ballot(bool predicate, unsigned mask, const Site& site) {
  struct Lane {
    bool predicate;
    unsigned result;
  } mine{predicate, 0};
  const auto count = [](void* const* lanes) {
    unsigned bits = 0;
    for (int l = 0; l < 32; ++l)
      if (lanes[l] && static_cast<const Lane*>(lanes[l])->predicate) bits |= 1u << l;
    for (int l = 0; l < 32; ++l)
      if (lanes[l]) static_cast<Lane*>(lanes[l])->result = bits;
  };
  collective(&mine, count, mask, site.function, site.file, site.line);
  return mine.result;
}

}  // namespace emulator

template <emulator::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GSF_SITE) {
  const auto from = [=](int, int first, int) { return first + (source & (width - 1)); };
  return emulator::shuffle(value, from, width, mask, {"__shfl_sync", file, line});
}
// Of the distance, as of the lane mask, a GPU reads five bits.
template <emulator::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, GSF_SITE) {
  const int by = int(distance & 31);
  const auto from = [=](int lane, int first, int) { return lane - by >= first ? lane - by : lane; };
  return emulator::shuffle(value, from, width, mask, {"__shfl_up_sync", file, line});
}
template <emulator::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, GSF_SITE) {
  const int by = int(distance & 31);
  const auto from = [=](int lane, int, int last) { return lane + by <= last ? lane + by : lane; };
  return emulator::shuffle(value, from, width, mask, {"__shfl_down_sync", file, line});
}
// Earlier segments can be read, later ones cannot.
template <emulator::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, GSF_SITE) {
  const auto from = [=](int lane, int, int last) { return (lane ^ (bits & 31)) <= last ? lane ^ (bits & 31) : lane; };
  return emulator::shuffle(value, from, width, mask, {"__shfl_xor_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, GSF_SITE) {
  return emulator::ballot(predicate, mask, {"__ballot_sync", file, line});
}
inline int __any_sync(unsigned mask, int predicate, GSF_SITE) {
  return emulator::ballot(predicate, mask, {"__any_sync", file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GSF_SITE) {
  return emulator::ballot(predicate, mask, {"__all_sync", file, line}) == mask;
}
#undef GSF_SITE

// ---- atomics: they order no other memory ---------------------------------------------------------------------------

namespace emulator {

template <class T, class... Allowed>
concept OneOf = (std::is_same_v<T, Allowed> || ...);
// An argument may convert to the type of the address; the address tells which types CUDA has.
template <class T>
using Same = std::type_identity_t<T>;

template <class T, class F>
T atomic_update(T* address, const F& next) {
  T old, wanted;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do wanted = next(old);
  while (!__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

template <class T>
concept AtomicInteger = OneOf<T, int, unsigned, unsigned long long>;
template <class T>
concept AtomicSum = AtomicInteger<T> || OneOf<T, float, double>;
template <class T>
concept AtomicOrdered = AtomicInteger<T> || OneOf<T, long long>;
template <class T>
concept AtomicExchanged = AtomicInteger<T> || OneOf<T, float>;
template <class T>
concept AtomicCompared = AtomicInteger<T> || OneOf<T, unsigned short>;

}  // namespace emulator

template <emulator::AtomicSum T>
T atomicAdd(T* address, emulator::Same<T> value) {
  if constexpr (std::is_same_v<T, int>)  // wraps around
    return emulator::atomic_update(address, [=](T old) { return int(unsigned(old) + unsigned(value)); });
  else
    return emulator::atomic_update(address, [=](T old) { return old + value; });
}
template <emulator::AtomicOrdered T>
T atomicMax(T* address, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T old) { return std::max(old, value); });
}
template <emulator::AtomicOrdered T>
T atomicMin(T* address, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T old) { return std::min(old, value); });
}
template <emulator::AtomicInteger T>
T atomicOr(T* address, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T old) { return old | value; });
}
template <emulator::AtomicInteger T>
T atomicAnd(T* address, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T old) { return old & value; });
}
template <emulator::AtomicExchanged T>
T atomicExch(T* address, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T) { return value; });
}
template <emulator::AtomicCompared T>
T atomicCAS(T* address, emulator::Same<T> compare, emulator::Same<T> value) {
  return emulator::atomic_update(address, [=](T old) { return old == compare ? value : old; });
}

// ---- bits, loads and maths -----------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
  return reversed;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

namespace emulator {
template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A fast function's result, off by a part of the error that CUDA allows it: which, the argument's bits decide.
inline float inexact(float exact, float argument, float relative_error) {
  const unsigned mixed = same_bits<unsigned>(argument) * 2654435761u;
  const float part = float(int((mixed ^ mixed >> 15) >> 8) - (1 << 23)) / (1 << 23);  // in [-1, 1)
  return exact * (1 + part * relative_error);
}

constexpr float kUlp = 0x1p-23f;

// ex2.approx.f32: 2^x.
inline float ex2_approx(float x) { return inexact(std::exp2(x), x, 0x1p-22f); }
}  // namespace emulator

inline int __float_as_int(float x) { return emulator::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::same_bits<double>(x); }

// Errors: CUDA C++ Programming Guide, "Intrinsic Functions".
inline float __expf(float x) {
  return emulator::inexact(std::exp(x), x, (2 + std::floor(std::abs(1.173f * x))) * emulator::kUlp);
}
inline float __logf(float x) { return emulator::inexact(std::log(x), x, 3 * emulator::kUlp); }
inline float __fdividef(float x, float y) { return emulator::inexact(x / y, y, 2 * emulator::kUlp); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
