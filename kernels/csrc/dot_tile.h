// A tile of a product of bf16 matrices with a float32 result, by AVX-512's vdpbf16ps: it adds the
// products of two pairs of bf16 to a lane of float32. See product.cpp.
#pragma once

#include <cstdint>

#include "bf16.h"
#include "simd.h"

#if defined(__x86_64__) && \
    (defined(__clang__) ? __clang_major__ >= 14 : defined(__GNUC__) && __GNUC__ >= 11)
#define LCPO_BF16_DOT
#endif

namespace lcpo {

// 8 x 3 accumulators, 3 of b and one of a leave 4 of the 32 registers.
constexpr int64_t DOT_HEIGHT = 8, DOT_VECTORS = 3, DOT_WIDTH = DOT_VECTORS * LANES;

// c [height, width] (+)= a · b. Both factors are pairs along k: pair p of row i is
// a[i · a_row + p · a_step], b is a panel [pairs, DOT_WIDTH]. Each element of c is one chain over k.
struct DotTile {
  const uint32_t* a;
  int64_t a_row, a_step;
  const uint32_t* b;
  int64_t pairs;
  float* c;
  int64_t stride, width;  // of c; columns from `width` on are not written
  bool add;
};

#ifdef LCPO_BF16_DOT
// 1 <= height <= DOT_HEIGHT. Only where lcpo_has_product().
void dot_tile(const DotTile& tile, int64_t height);
#endif

}  // namespace lcpo
