#include <algorithm>

#include "attention.h"
#include "gemm.h"
#include "turn16.h"

namespace lcpo {
namespace {

template <class T>
void copy_and_turn(const T* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
                   float* k_t) {
  const int64_t width = padded(size), rows = round_up(count, LANES);
  for (int64_t j = 0; j < count; ++j) {
    pack(keys[j] + offset, 1, 0, 1, size, 1.0f, room + j * width);
  }
  std::fill(room + count * width, room + rows * width, 0.0f);
  transpose(room, rows, width, width, k_t, KEYS);
}

#ifdef LCPO_BF16_DOT
bool is_wide() {
  static const bool found =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  return found;
}

// LANES keys, `units` entries of 32 bits from `at` on: block[i][j] is entry i of key j.
__attribute__((target("avx512f"), always_inline)) inline void turned(
    const void* const* keys, int64_t count, int64_t at, int64_t units, __m512i (&block)[LANES]) {
  const __mmask16 some = first_lanes(units);
  for (int64_t j = 0; j < LANES; ++j) {
    block[j] = j < count ? _mm512_maskz_loadu_epi32(some, static_cast<const char*>(keys[j]) + at)
                         : _mm512_setzero_si512();
  }
  turn16(block);
}

__attribute__((target("avx512f"))) void wide(const float* const* keys, int64_t count,
                                             int64_t offset, int64_t size, float* k_t) {
  for (int64_t j = 0; j < count; j += LANES) {
    const void* const* from = reinterpret_cast<const void* const*>(keys + j);
    for (int64_t d = 0; d < size; d += LANES) {
      const int64_t units = std::min<int64_t>(LANES, size - d);
      __m512i block[LANES];
      turned(from, count - j, (offset + d) * sizeof(float), units, block);
      for (int64_t i = 0; i < units; ++i) _mm512_storeu_si512(k_t + (d + i) * KEYS + j, block[i]);
    }
  }
}

// Pairs of bf16 are turned as one entry, then widened to two rows.
__attribute__((target("avx512f"))) void wide(const bf16* const* keys, int64_t count,
                                             int64_t offset, int64_t size, float* k_t) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int64_t j = 0; j < count; j += LANES) {
    const void* const* from = reinterpret_cast<const void* const*>(keys + j);
    for (int64_t d = 0; d < size; d += 2 * LANES) {
      const int64_t units = std::min<int64_t>(LANES, (size - d) / 2);
      __m512i block[LANES];
      turned(from, count - j, (offset + d) * sizeof(bf16), units, block);
      for (int64_t i = 0; i < units; ++i) {
        float* to = k_t + (d + 2 * i) * KEYS + j;
        _mm512_storeu_si512(to, _mm512_slli_epi32(block[i], 16));
        _mm512_storeu_si512(to + KEYS, _mm512_and_si512(block[i], upper));
      }
    }
  }
}
#endif

template <class T>
void turn(const T* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
          float* k_t) {
#ifdef LCPO_BF16_DOT
  if (is_wide() && size % 2 == 0) return wide(keys, count, offset, size, k_t);
#endif
  copy_and_turn(keys, count, offset, size, room, k_t);
}

}  // namespace

void turn_keys(const float* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
               float* k_t) {
  turn(keys, count, offset, size, room, k_t);
}

void turn_keys(const bf16* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
               float* k_t) {
  turn(keys, count, offset, size, room, k_t);
}

}  // namespace lcpo
