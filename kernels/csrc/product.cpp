// Products of bf16 matrices with a float32 result, which torch has on CUDA but not on the CPU.
//
// c [m, n] (+)= a · b by AVX-512's vdpbf16ps: it adds the products of two pairs of bf16 to a lane of
// float32. So both factors are packed by pairs along k, in panels that the inner loop walks through
// without strides; each element of c is one chain over k, whatever the number of threads.

#include <algorithm>
#include <memory>

#include "amx.h"
#include "api.h"
#include "gemm.h"
#include "product.h"

#ifdef LCPO_BF16_DOT
namespace lcpo {
namespace {

constexpr int64_t HEIGHT = LEFT_COLUMNS, WIDTH = RIGHT_COLUMNS;

LCPO_INLINE uint32_t pair(bf16 low, bf16 high) {
  return static_cast<uint32_t>(high) << 16 | low;
}

// The same from rows: out[p][i] = (x[i][2p], x[i][2p + 1]); x is [size, columns].
void pack_rows(const bf16* x, int64_t columns, int64_t stride, int64_t size, uint32_t* out) {
  for (int64_t i = 0; i < HEIGHT; ++i) {
    const bf16* row = x + i * stride;
    for (int64_t p = 0; p < (columns + 1) / 2; ++p) {
      const bool both = 2 * p + 1 < columns;
      out[p * HEIGHT + i] = i < size ? pair(row[2 * p], both ? row[2 * p + 1] : bf16{0}) : 0;
    }
  }
}

}  // namespace

template <int64_t PANEL>
LCPO_CLONES void pack_columns(const bf16* x, int64_t rows, int64_t stride, int64_t size,
                              uint32_t* out) {
  for (int64_t r = 0; r < rows; r += 2, out += PANEL) {
    const bf16* first = x + r * stride;
    const bool both = r + 1 < rows;
    const bf16* second = both ? first + stride : first;
    const uint32_t keep = both ? 0xffffffffu : 0xffffu;
    if (size == PANEL) {
      LCPO_SIMD
      for (int64_t i = 0; i < PANEL; ++i) out[i] = pair(first[i], second[i]) & keep;
    } else {
      for (int64_t i = 0; i < PANEL; ++i) {
        out[i] = i < size ? pair(first[i], second[i]) & keep : 0;
      }
    }
  }
}
template void pack_columns<LEFT_COLUMNS>(const bf16*, int64_t, int64_t, int64_t, uint32_t*);
template void pack_columns<RIGHT_COLUMNS>(const bf16*, int64_t, int64_t, int64_t, uint32_t*);

void product_dot(const Product& p, int32_t threads) {
  const int64_t pairs = (p.k + 1) / 2;
  const int64_t a_panels = (p.m + HEIGHT - 1) / HEIGHT, b_panels = (p.n + WIDTH - 1) / WIDTH;
  const std::unique_ptr<uint32_t[]> left(new uint32_t[a_panels * pairs * HEIGHT]);
  const std::unique_ptr<uint32_t[]> right(new uint32_t[b_panels * pairs * WIDTH]);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < b_panels; ++j) {
      pack_columns<WIDTH>(p.b + j * WIDTH, p.k, p.b_stride, std::min(WIDTH, p.n - j * WIDTH),
                          &right[j * pairs * WIDTH]);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a_panels; ++i) {
      const int64_t at = i * HEIGHT, size = std::min(HEIGHT, p.m - at);
      uint32_t* out = &left[i * pairs * HEIGHT];
      if (p.a_is_transposed) {
        pack_columns<HEIGHT>(p.a + at, p.k, p.a_stride, size, out);
      } else {
        pack_rows(p.a + at * p.a_stride, p.k, p.a_stride, size, out);
      }
    }
    // A panel of b stays in the second-level cache while a thread's part of a goes by.
    for (int64_t j = 0; j < b_panels; ++j) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < a_panels; ++i) {
        gemm_dot({std::min(HEIGHT, p.m - i * HEIGHT), std::min(WIDTH, p.n - j * WIDTH), pairs,
                  &left[i * pairs * HEIGHT], HEIGHT, &right[j * pairs * WIDTH], WIDTH,
                  p.c + i * HEIGHT * p.c_stride + j * WIDTH, p.c_stride, true, p.add});
      }
    }
  }
}

}  // namespace lcpo
#endif

LCPO_API bool lcpo_has_product() {
#ifdef LCPO_BF16_DOT
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

LCPO_API void lcpo_product(const uint16_t* a, bool a_is_transposed, int64_t a_stride,
                           const uint16_t* b, int64_t b_stride, int64_t m, int64_t n, int64_t k,
                           float* c, int64_t c_stride, bool add, int32_t threads) {
#ifdef LCPO_BF16_DOT
  const auto run = lcpo::has_amx() ? lcpo::product_amx : lcpo::product_dot;
  run({a, a_is_transposed, a_stride, b, b_stride, m, n, k, c, c_stride, add}, threads);
#else
  (void)a, (void)a_is_transposed, (void)a_stride, (void)b, (void)b_stride, (void)m, (void)n;
  (void)k, (void)c, (void)c_stride, (void)add, (void)threads;
#endif
}
