// CUDA's vector types, aligned as CUDA aligns them.
#pragma once

#define GSF_VECTORS(type, name, align2, align4)                               \
  struct alignas(align2) name##2 { type x, y; };                              \
  struct name##3 { type x, y, z; };                                           \
  struct alignas(align4) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

GSF_VECTORS(int, int, 8, 16)
GSF_VECTORS(unsigned, uint, 8, 16)
GSF_VECTORS(float, float, 8, 16)
GSF_VECTORS(double, double, 16, 16)
GSF_VECTORS(long long, longlong, 16, 16)
GSF_VECTORS(unsigned short, ushort, 4, 8)
#undef GSF_VECTORS
