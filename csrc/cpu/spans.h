// Which tiles a splat reaches, as one span of columns per row of tiles. Included by isa.cpp.
#pragma once

#include "../math/tiles.h"
#include "kernels.h"

namespace {

using namespace gsfields;
using namespace gsfields::cpu;

template <class S>
int64_t tile_spans(const SpanArgs<S>& a, const int32_t* ids, int64_t count, Span* spans, int32_t* spans_each) {
  Span* out = spans;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = ids[k];
    const S *mean = a.means2d + 2 * id, *conic = a.conics + 3 * id;
    const auto f = math::make_footprint(mean[0], mean[1], S(a.radii[2 * id]), S(a.radii[2 * id + 1]), conic[0],
                                        conic[1], conic[2], a.opacities[id], a.tiles_y);
    const Span* first = out;
    for (int row = f.rows.begin; row < f.rows.end; ++row) {
      const math::Range columns = math::columns(f, row, a.tiles_x);
      if (columns.size() > 0) *out++ = {row * a.tiles_x + columns.begin, columns.size()};
    }
    spans_each[k] = int32_t(out - first);
  }
  return out - spans;
}

}  // namespace
