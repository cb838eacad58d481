// L lanes of a scalar S as a GCC vector, and the few operations that the vector extensions lack.
// Included by isa.cpp only, inside no namespace; everything is always_inline or in an anonymous namespace.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own AVX-512 headers start from deliberately undefined registers (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#endif

#include "../math/common.h"
#include "../math/storage.h"

namespace {

template <class S>
struct MaskOf;
template <>
struct MaskOf<float> {
  using type = int32_t;
};
template <>
struct MaskOf<double> {
  using type = int64_t;
};

template <class S, int L>
struct Lanes {
  typedef S V __attribute__((vector_size(sizeof(S) * L)));
  using I = typename MaskOf<S>::type;
  typedef I M __attribute__((vector_size(sizeof(S) * L)));  // -1 where true, 0 where false
};

template <class V>
GSF_HD V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class M>
GSF_HD bool any(M m) {
#if defined(__AVX512F__)
  if constexpr (sizeof(M) == 64) return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#endif
#if defined(__AVX__)
  if constexpr (sizeof(M) == 32) return _mm256_movemask_ps((__m256)m) != 0;
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(M) == 16) return _mm_movemask_ps((__m128)m) != 0;
#endif
  bool some = false;
  for (unsigned i = 0; i < sizeof(M) / sizeof(m[0]); ++i) some |= m[i] != 0;
  return some;
}

// exp(-x) for x >= 0, given x * math::kExpScale<S>. Float: 2^-x; double: the library's exp, lane by lane.
template <class V>
GSF_HD V exp_negative(V scaled) {
  if constexpr (sizeof(scaled[0]) == 4) {
    const V x = gsfields::math::max(V(-scaled), V(V{} - 126.0f));
    const V shifted = x + gsfields::math::kRoundingShift;
    return gsfields::math::exp2_of(shifted, V(x - (shifted - gsfields::math::kRoundingShift)));
  } else {
    V e;
    for (unsigned i = 0; i < sizeof(V) / sizeof(scaled[0]); ++i) e[i] = __builtin_exp(-scaled[i]);
    return e;
  }
}

// L numbers of float16 in memory, from and to floats.
template <class V>
GSF_HD V from_float16(const void* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return (V)_mm512_cvtph_ps(load<__m256i>(p));
#endif
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32) return (V)_mm256_cvtph_ps(load<__m128i>(p));
#endif
  V v;
  for (unsigned i = 0; i < sizeof(V) / 4; ++i) v[i] = gsfields::math::from_float16(static_cast<const uint16_t*>(p)[i]);
  return v;
}

template <class V>
GSF_HD void to_float16(V v, void* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    const __m256i half = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(p, &half, sizeof(half));
    return;
  }
#endif
#if defined(__F16C__)
  if constexpr (sizeof(V) == 32) {
    const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &half, sizeof(half));
    return;
  }
#endif
  for (unsigned i = 0; i < sizeof(V) / 4; ++i) static_cast<uint16_t*>(p)[i] = gsfields::math::to_float16(v[i]);
}

// Adds the lane sums of a, b, c, d to out[0..3].
template <class V, class S>
GSF_HD void add_sums(V a, V b, V c, V d, S* out) {
#if defined(__SSE2__)
  if constexpr (sizeof(S) == 4) {
    __m128 r;
    const auto quad = [](__m128 a, __m128 b, __m128 c, __m128 d) __attribute__((always_inline)) {
      const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
      const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
      return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
    };
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      const __m512 A = (__m512)a, B = (__m512)b, C = (__m512)c, D = (__m512)d;
      const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(A, B), _mm512_unpackhi_ps(A, B));
      const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(C, D), _mm512_unpackhi_ps(C, D));
      const __m512 sum = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
      const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
      r = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    } else
#endif
#if defined(__AVX__)
        if constexpr (sizeof(V) == 32) {
      const __m256 A = (__m256)a, B = (__m256)b, C = (__m256)c, D = (__m256)d;
      const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(A, B), _mm256_unpackhi_ps(A, B));
      const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(C, D), _mm256_unpackhi_ps(C, D));
      const __m256 sum = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
      r = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    } else
#endif
    {
      static_assert(sizeof(V) >= 16);
      r = _mm_setzero_ps();
      for (unsigned i = 0; i < sizeof(V) / 16; ++i)
        r = _mm_add_ps(r, quad(load<__m128>((const char*)&a + 16 * i), load<__m128>((const char*)&b + 16 * i),
                               load<__m128>((const char*)&c + 16 * i), load<__m128>((const char*)&d + 16 * i)));
    }
    _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(out), r));
    return;
  }
#endif
  for (unsigned i = 0; i < sizeof(V) / sizeof(S); ++i) out[0] += a[i], out[1] += b[i], out[2] += c[i], out[3] += d[i];
}

// L consecutive rows of [*, K] as K vectors; rows at or past `end` repeat the last one.
template <class V, int K, class S>
GSF_HD void load_rows(const S* base, int64_t i, int64_t end, V* out) {
  constexpr int L = sizeof(V) / sizeof(S);
  alignas(V) S columns[K][L];
  for (int l = 0; l < L; ++l) {
    const S* row = base + K * (i + l < end ? i + l : end - 1);
    for (int k = 0; k < K; ++k) columns[k][l] = row[k];
  }
  for (int k = 0; k < K; ++k) out[k] = load<V>(columns[k]);
}

template <class V, int K, class S>
GSF_HD void store_rows(S* base, int64_t i, int64_t count, const V* in) {
  for (int64_t l = 0; l < count; ++l)
    for (int k = 0; k < K; ++k) base[K * (i + l) + k] = in[k][l];
}

}  // namespace
