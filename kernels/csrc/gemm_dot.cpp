// The product of pairs by AVX-512's vdpbf16ps.

#include <algorithm>

#include "gemm.h"
#include "tile_dot.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

// Rows and vectors of C in registers: with those of B and one of A they fill 28 to 31 of 32.
constexpr int height_of(int vectors) { return vectors == 4 ? 6 : 8; }

template <int ROWS, int VECTORS>
LCPO_DOT void tile(const GemmPairs& g, int64_t i0, int64_t j0) {
  const int64_t by_row = g.transposed ? 1 : g.lda, by_step = g.transposed ? g.lda : 1;
  __m512 sum[ROWS][VECTORS];
  clear(sum);
  add_pairs(sum, g.a + i0 * by_row, by_row, by_step, g.b + j0, g.ldb, g.k);
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) {
    const __mmask16 there = first_lanes(g.n - j0 - v * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      float* at = g.c + (i0 + i) * g.ldc + j0 + v * LANES;
      const __m512 before = g.accumulate ? _mm512_maskz_loadu_ps(there, at) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(at, there, _mm512_add_ps(sum[i][v], before));
    }
  }
}

template <int VECTORS>
void panel(const GemmPairs& g, int64_t j0) {
  over_rows<height_of(VECTORS)>(
      g.m, [&](auto rows, int64_t i) { tile<rows.value, VECTORS>(g, i, j0); });
}

}  // namespace

void gemm_dot(const GemmPairs& g) {
  for (int64_t j = 0; j < g.n; j += 4 * LANES) {
    switch (std::min<int64_t>(4, (g.n - j + LANES - 1) / LANES)) {
      case 4: panel<4>(g, j); break;
      case 3: panel<3>(g, j); break;
      case 2: panel<2>(g, j); break;
      case 1: panel<1>(g, j); break;
    }
  }
}

}  // namespace lcpo
#endif
