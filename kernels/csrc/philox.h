// Philox 4x32-10 (Salmon et al., SC'11). The same integers as kernels/torch_ref/philox.py.
#pragma once

#include <cstdint>

#include "simd.h"

namespace lcpo {

// LANES independent calls at once: counter (first + lane, c1, 0, 0), key (low, high) of the seed.
// out[4 * lane + word] is word `word` of call first + lane.
template <int LANES>
LCPO_INLINE void philox(uint32_t first, uint32_t c1_word, uint64_t seed, uint32_t* out) {
  uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
  LCPO_SIMD
  for (int i = 0; i < LANES; ++i) {
    c0[i] = first + static_cast<uint32_t>(i);
    c1[i] = c1_word;
    c2[i] = 0;
    c3[i] = 0;
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0[i];
      const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(p1);
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  LCPO_SIMD
  for (int i = 0; i < LANES; ++i) {
    out[4 * i + 0] = c0[i];
    out[4 * i + 1] = c1[i];
    out[4 * i + 2] = c2[i];
    out[4 * i + 3] = c3[i];
  }
}

// Bits of CALLS calls as above, first a multiple of them, by the fastest code there is.
constexpr int64_t CALLS = 64;
void philox_many(uint32_t first, uint32_t position, uint64_t seed, uint32_t* out);

}  // namespace lcpo
