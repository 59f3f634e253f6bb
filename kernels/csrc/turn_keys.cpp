#include <algorithm>

#include "attention.h"
#include "turn16.h"

namespace lcpo {
namespace {

template <class T>
void copy_and_turn(const T* const* keys, int64_t count, int64_t offset, int64_t size, T* room,
                   Unit<T>* k_t) {
  for (int64_t j = 0; j < count; ++j) pack(keys[j] + offset, 1, 0, 1, size, room + j * padded(size));
  turn(room, count, size, k_t);
}

#ifdef LCPO_BF16_DOT
bool is_wide() {
  static const bool found =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  return found;
}

// `size` units from `at` bytes on.
__attribute__((target("avx512f"))) void wide(const char* const* keys, int64_t count, int64_t at,
                                             int64_t size, void* k_t) {
  uint32_t* out = static_cast<uint32_t*>(k_t);
  for (int64_t j = 0; j < count; j += LANES, keys += LANES) {
    const int64_t there = count - j;
    for (int64_t d = 0; d < size; d += LANES) {
      const int64_t units = std::min<int64_t>(LANES, size - d), from = at + d * sizeof(*out);
      const __mmask16 some = first_lanes(units);
      __m512i block[LANES];
      for (int64_t i = 0; i < LANES; ++i) {
        block[i] = i < there ? _mm512_maskz_loadu_epi32(some, keys[i] + from)
                             : _mm512_setzero_si512();
      }
      turn16(block);
      for (int64_t i = 0; i < units; ++i) _mm512_storeu_si512(out + (d + i) * KEYS + j, block[i]);
    }
  }
}
#endif

}  // namespace

template <class T>
void turn_keys(const T* const* keys, int64_t count, int64_t offset, int64_t size, T* room,
               Unit<T>* k_t) {
#ifdef LCPO_BF16_DOT
  if (is_wide() && size % 2 == 0) {  // else half a unit could be missing
    return wide(reinterpret_cast<const char* const*>(keys), count, offset * sizeof(T),
                units<T>(size), k_t);
  }
#endif
  copy_and_turn(keys, count, offset, size, room, k_t);
}

template void turn_keys(const float* const*, int64_t, int64_t, int64_t, float*, float*);
template void turn_keys(const bf16* const*, int64_t, int64_t, int64_t, bf16*, uint32_t*);

}  // namespace lcpo
