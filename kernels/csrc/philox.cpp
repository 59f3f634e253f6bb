#include "philox.h"

#include "intrinsics.h"

namespace lcpo {
namespace {

LCPO_CLONES void plain(uint32_t first, uint32_t position, uint64_t seed, uint32_t* out) {
  for (int64_t i = 0; i < CALLS; i += LANES) {
    philox<LANES>(first + static_cast<uint32_t>(i), position, seed, out + 4 * i);
  }
}

#ifdef LCPO_BF16_DOT
// Words in the lower halves of 64-bit lanes, as vpmuludq reads and leaves them; whatever stands above
// them is never looked at. Lanes take calls in the order in which the words then fall into place.
__attribute__((target("avx512f"))) void wide(uint32_t first, uint32_t position, uint64_t seed,
                                             uint32_t* out) {
  constexpr int64_t AT_ONCE = 2, WIDTH = 8;  // registers, calls of each
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
  for (int64_t i = 0; i < CALLS; i += AT_ONCE * WIDTH, out += 4 * AT_ONCE * WIDTH) {
    __m512i c0[AT_ONCE], c1[AT_ONCE], c2[AT_ONCE], c3[AT_ONCE];
    for (int64_t h = 0; h < AT_ONCE; ++h) {
      c0[h] = _mm512_add_epi64(order, _mm512_set1_epi64(first + i + h * WIDTH));
      c1[h] = _mm512_set1_epi64(position);
      c2[h] = c3[h] = _mm512_setzero_si512();
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const __m512i key0 = _mm512_set1_epi64(k0), key1 = _mm512_set1_epi64(k1);
      for (int64_t h = 0; h < AT_ONCE; ++h) {
        const __m512i p0 = _mm512_mul_epu32(c0[h], m0), p1 = _mm512_mul_epu32(c2[h], m1);
        constexpr int all = 0x96;  // exclusive or of three
        c0[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[h], key0, all);
        c2[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[h], key1, all);
        c1[h] = p1;
        c3[h] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int64_t h = 0; h < AT_ONCE; ++h) {
      constexpr __mmask16 upper = 0xaaaa;
      const __m512i low = _mm512_mask_blend_epi32(upper, c0[h], _mm512_slli_epi64(c1[h], 32));
      const __m512i high = _mm512_mask_blend_epi32(upper, c2[h], _mm512_slli_epi64(c3[h], 32));
      _mm512_storeu_si512(out + 32 * h, _mm512_unpacklo_epi64(low, high));
      _mm512_storeu_si512(out + 32 * h + 16, _mm512_unpackhi_epi64(low, high));
    }
  }
}
#endif

}  // namespace

void philox_many(uint32_t first, uint32_t position, uint64_t seed, uint32_t* out) {
#ifdef LCPO_BF16_DOT
  static const bool is_wide = __builtin_cpu_supports("avx512f");
  if (is_wide) return wide(first, position, seed, out);
#endif
  plain(first, position, seed, out);
}

}  // namespace lcpo
