// What every maths header shares. The functions in csrc/math are templates on T, a scalar (float, double)
// or a GCC vector of scalars, so one text serves the SIMD CPU kernels and, one lane at a time, CUDA.
#pragma once

#if defined(__CUDACC__)
#define GSF_HD __host__ __device__ __forceinline__
#else
// always_inline: the CPU kernels are compiled once per instruction set, and an out-of-line copy would be
// merged by the linker across instruction sets.
#define GSF_HD inline __attribute__((always_inline))
#endif

namespace gsfields::math {

// The blending rule (as gsplat 1.6): a pair below kAlphaMin is skipped, alpha is clamped at kAlphaMax, and a
// pixel stops before the Gaussian that would bring its transmittance to kTransmittanceMin or below.
constexpr double kAlphaMin = 1.0 / 255.0;
constexpr double kAlphaMax = 0.99;
constexpr double kTransmittanceMin = 1e-4;
constexpr int kTile = 16;  // pixels along each side of a tile

template <class T, class S>
GSF_HD T splat(S s) {
  return T{} + s;
}

template <class M, class T>
GSF_HD T select(M mask, T yes, T no) {
  return mask ? yes : no;
}

template <class T>
GSF_HD T min(T a, T b) {
  return a < b ? a : b;
}

template <class T>
GSF_HD T max(T a, T b) {
  return a > b ? a : b;
}

#if !defined(__CUDACC__)
// Lanes of a GCC vector; the scalar overloads below are preferred for scalars.
template <class T>
GSF_HD T sqrt(T x) {
  for (unsigned i = 0; i < sizeof(T) / sizeof(x[0]); ++i)
    x[i] = sizeof(x[0]) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  return x;
}

// Natural logarithm of positive lanes to 2e-7 absolute in float (a polynomial on [sqrt(1/2), sqrt(2)]).
template <class T>
GSF_HD T log(T x) {
  if constexpr (sizeof(x[0]) == 4) {
    typedef int I __attribute__((vector_size(sizeof(T))));
    typedef unsigned U __attribute__((vector_size(sizeof(T))));
    const U i = (U)x - 0x3f3504f3u;  // bits of sqrt(1/2): the exponent of x / sqrt(1/2) is now on top
    const T f = (T)((i & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
    T p = f * 0.118274778f - 0.189019788f;
    p = p * f + 0.206046733f;
    p = p * f - 0.248813396f;
    p = p * f + 0.333032983f;
    p = p * f - 0.500019651f;
    p = p * f + 1.00000325f;
    return __builtin_convertvector((I)i >> 23, T) * 0.693147181f + p * f;
  } else {
    for (unsigned l = 0; l < sizeof(T) / sizeof(x[0]); ++l) x[l] = __builtin_log(x[l]);
    return x;
  }
}

// 2^(n + f) for lanes of float, |f| <= 1/2 and n of at most 126: a minimax polynomial of degree 5 (relative error
// 8e-8). n comes as n + kRoundingShift, whose lowest bits hold it: adding that number rounds to an integer.
constexpr float kRoundingShift = 12582912.0f;  // 1.5 * 2^23
template <class T>
GSF_HD T exp2_of(T shifted, T f) {
  typedef unsigned U __attribute__((vector_size(sizeof(T))));
  T p = f * 1.327647129073739e-03f + 9.675540961325169e-03f;
  p = p * f + 5.550713092088699e-02f;
  p = p * f + 2.402212023735046e-01f;
  p = p * f + 6.931469440460205e-01f;
  p = p * f + 1.0000001192092896f;
  return (T)((U)p + ((U)shifted << 23));
}

// e^x. Lanes of float end at e^-87 and e^87.
template <class T>
GSF_HD T exp(T x) {
  if constexpr (sizeof(x[0]) == 4) {
    const T y = min(max(x, splat<T>(-87.0f)), splat<T>(87.0f));
    const T shifted = y * 1.44269504f + kRoundingShift, n = shifted - kRoundingShift;
    const T rest = y - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts, of which the first is short
    return x == x ? exp2_of(shifted, T(rest * 1.44269504f)) : x;
  } else {
    for (unsigned l = 0; l < sizeof(T) / sizeof(x[0]); ++l) x[l] = __builtin_exp(x[l]);
    return x;
  }
}
#endif
// Scalars. Device code knows no builtins, but has the functions of math.h.
#if defined(__CUDACC__)
#define GSF_LIBM(name) ::name
#else
#define GSF_LIBM(name) __builtin_##name
#endif
GSF_HD float sqrt(float x) { return GSF_LIBM(sqrtf)(x); }
GSF_HD double sqrt(double x) { return GSF_LIBM(sqrt)(x); }
GSF_HD float exp(float x) { return GSF_LIBM(expf)(x); }
GSF_HD double exp(double x) { return GSF_LIBM(exp)(x); }
GSF_HD float log(float x) { return GSF_LIBM(logf)(x); }
GSF_HD double log(double x) { return GSF_LIBM(log)(x); }
GSF_HD float ceil(float x) { return GSF_LIBM(ceilf)(x); }
GSF_HD double ceil(double x) { return GSF_LIBM(ceil)(x); }
GSF_HD float floor(float x) { return GSF_LIBM(floorf)(x); }
GSF_HD double floor(double x) { return GSF_LIBM(floor)(x); }
GSF_HD float fma(float a, float b, float c) { return GSF_LIBM(fmaf)(a, b, c); }
GSF_HD double fma(double a, double b, double c) { return GSF_LIBM(fma)(a, b, c); }
#undef GSF_LIBM

// By squares: 0^0 = 1, and x^e = 1 for e < 0.
template <class S>
GSF_HD S power(S x, int e) {
  S product = 1;
  for (; e > 0; e >>= 1, x *= x)
    if (e & 1) product *= x;
  return product;
}

// True where x is neither NaN nor infinite.
template <class T>
GSF_HD auto finite(T x) {
  return (x - x) == T{};
}

template <class T>
GSF_HD T dot3(const T* a, const T* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

}  // namespace gsfields::math
