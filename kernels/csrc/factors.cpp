#include "factors.h"

#include "simd.h"

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

}  // namespace

LCPO_CLONES const uint32_t* rounded_left(const float* x, int64_t rows, int64_t columns,
                                         int64_t stride, uint32_t* room) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = x + r * stride;
    bf16* to = reinterpret_cast<bf16*>(room) + r * stride;
    LCPO_SIMD
    for (int64_t i = 0; i < columns; ++i) to[i] = to_bf16(from[i]);
  }
  return room;
}

LCPO_CLONES const uint32_t* right(const bf16* x, int64_t rows, int64_t columns, int64_t stride,
                                  uint32_t* room) {
  return pairs_of_rows(x, rows, columns, stride, room);
}

LCPO_CLONES const uint32_t* right(const float* x, int64_t rows, int64_t columns, int64_t stride,
                                  uint32_t* room) {
  return pairs_of_rows(x, rows, columns, stride, room);
}

}  // namespace lcpo
