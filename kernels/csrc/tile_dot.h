// The inner loop of products by AVX-512's vdpbf16ps, which adds the products of two pairs of bf16 to a
// lane of float32.
#pragma once

#include <cstdint>
#include <type_traits>

#include "intrinsics.h"

#ifdef LCPO_BF16_DOT

#define LCPO_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define LCPO_DOT_INLINE LCPO_DOT __attribute__((always_inline)) inline

namespace lcpo {

// sum[i][v] += a · b over k pairs: pair p of row i is a[i * by_row + p * by_step], those of the columns
// b[p * ldb + v * LANES] and on.
template <int ROWS, int VECTORS>
LCPO_DOT_INLINE void add_pairs(__m512 (&sum)[ROWS][VECTORS], const uint32_t* a, int64_t by_row,
                               int64_t by_step, const uint32_t* b, int64_t ldb, int64_t k) {
  for (int64_t p = 0; p < k; ++p, a += by_step, b += ldb) {
    __m512bh right[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + v * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(a[i * by_row]));
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], left, right[v]);
    }
  }
}

template <int ROWS, int VECTORS>
LCPO_DOT_INLINE void clear(__m512 (&sum)[ROWS][VECTORS]) {
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[i][v] = _mm512_setzero_ps();
  }
}

// The last rows, fewer than fill a tile.
template <int ROWS, class Tile>
void last_rows(int64_t rows, int64_t at, const Tile& tile) {
  if (rows - at == ROWS) return tile(std::integral_constant<int, ROWS>{}, at);
  if constexpr (ROWS > 1) last_rows<ROWS - 1>(rows, at, tile);
}

// Calls tile(how many as a constant, the first one) for all rows, HEIGHT at a time.
template <int HEIGHT, class Tile>
void over_rows(int64_t rows, const Tile& tile) {
  int64_t at = 0;
  for (; at + HEIGHT <= rows; at += HEIGHT) tile(std::integral_constant<int, HEIGHT>{}, at);
  last_rows<HEIGHT - 1>(rows, at, tile);
}

}  // namespace lcpo
#endif
