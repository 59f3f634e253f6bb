#include "factors.h"

#include "api.h"
#include "intrinsics.h"

namespace lcpo {
namespace {

LCPO_INLINE bf16 rounded(bf16 x) { return x; }
LCPO_INLINE bf16 rounded(float x) { return to_bf16(x); }

template <class X>
LCPO_INLINE const uint32_t* pairs_of_rows(const X* x, int64_t rows, int64_t columns,
                                          int64_t stride, uint32_t* out) {
  for (int64_t r = 0; r < rows; r += 2) {
    const X *first = x + r * stride, *second = r + 1 < rows ? first + stride : first;
    const uint32_t keep = r + 1 < rows ? 0xffffffffu : 0xffffu;
    uint32_t* to = out + r / 2 * stride;
    LCPO_SIMD
    for (int64_t i = 0; i < columns; ++i) {
      to[i] = (static_cast<uint32_t>(rounded(second[i])) << 16 | rounded(first[i])) & keep;
    }
  }
  return out;
}

LCPO_CLONES void round_rows(const float* x, int64_t rows, int64_t columns, int64_t stride,
                            bf16* out) {
  for (int64_t r = 0; r < rows; ++r, x += stride, out += stride) {
    LCPO_SIMD
    for (int64_t i = 0; i < columns; ++i) out[i] = to_bf16(x[i]);
  }
}

LCPO_CLONES void round_pairs(const float* x, int64_t rows, int64_t columns, int64_t stride,
                             uint32_t* out) {
  pairs_of_rows(x, rows, columns, stride, out);
}

#ifdef LCPO_BF16_DOT
// The same two by the instruction that rounds.
bool fits(int64_t columns) { return columns % LANES == 0 && lcpo_has_product(); }

__attribute__((target("avx512f,avx512bf16"))) void round_rows_dot(const float* x, int64_t rows,
                                                                  int64_t columns, int64_t stride,
                                                                  bf16* out) {
  for (int64_t r = 0; r < rows; ++r, x += stride, out += stride) {
    for (int64_t i = 0; i < columns; i += LANES) {
      _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
    }
  }
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) void round_pairs_dot(
    const float* x, int64_t rows, int64_t columns, int64_t stride, uint32_t* out) {
  alignas(64) uint16_t order[2 * LANES];  // what is rounded as two halves alternates
  for (int i = 0; i < 2 * LANES; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * LANES);
  const __m512i alternate = _mm512_load_si512(order);
  for (int64_t r = 0; r < rows; r += 2, x += 2 * stride, out += stride) {
    for (int64_t i = 0; i < columns; i += LANES) {
      const __m512 second = r + 1 < rows ? _mm512_loadu_ps(x + stride + i) : _mm512_setzero_ps();
      const __m512bh halves = _mm512_cvtne2ps_pbh(second, _mm512_loadu_ps(x + i));
      _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(alternate, (__m512i)halves));
    }
  }
}
#endif

}  // namespace

const uint32_t* rounded_left(const float* x, int64_t rows, int64_t columns, int64_t stride,
                             uint32_t* room) {
  bf16* out = reinterpret_cast<bf16*>(room);
#ifdef LCPO_BF16_DOT
  if (fits(columns)) return round_rows_dot(x, rows, columns, stride, out), room;
#endif
  return round_rows(x, rows, columns, stride, out), room;
}

LCPO_CLONES const uint32_t* right(const bf16* x, int64_t rows, int64_t columns, int64_t stride,
                                  uint32_t* room) {
  return pairs_of_rows(x, rows, columns, stride, room);
}

const uint32_t* right(const float* x, int64_t rows, int64_t columns, int64_t stride,
                      uint32_t* room) {
#ifdef LCPO_BF16_DOT
  if (fits(columns)) return round_pairs_dot(x, rows, columns, stride, room), room;
#endif
  return round_pairs(x, rows, columns, stride, room), room;
}

}  // namespace lcpo
