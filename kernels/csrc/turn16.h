// 16 x 16 entries of 32 bits turned over in AVX-512 registers.
#pragma once

#include "intrinsics.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {

// x[i][j] becomes x[j][i].
__attribute__((target("avx512f"), always_inline)) inline void turn16(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 4) {  // of four rows each: blocks of 4 x 4, in every 128 bits
    const __m512i low0 = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    const __m512i high0 = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    const __m512i low1 = _mm512_unpacklo_epi32(x[i + 2], x[i + 3]);
    const __m512i high1 = _mm512_unpackhi_epi32(x[i + 2], x[i + 3]);
    y[i] = _mm512_unpacklo_epi64(low0, low1);
    y[i + 1] = _mm512_unpackhi_epi64(low0, low1);
    y[i + 2] = _mm512_unpacklo_epi64(high0, high1);
    y[i + 3] = _mm512_unpackhi_epi64(high0, high1);
  }
  for (int j = 0; j < 4; ++j) {  // then those blocks: y[4 r + j] holds columns j, j + 4, ...
    const __m512i a = _mm512_shuffle_i32x4(y[j], y[4 + j], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(y[j], y[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(y[8 + j], y[12 + j], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(y[8 + j], y[12 + j], 0xdd);
    x[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    x[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
    x[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    x[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
  }
}

}  // namespace lcpo
#endif
