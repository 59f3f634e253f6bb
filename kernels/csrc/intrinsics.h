// Where there are AVX-512 BF16 and AMX to be had, and Intel's intrinsics for them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

#if defined(__x86_64__) && \
    (defined(__clang__) ? __clang_major__ >= 14 : defined(__GNUC__) && __GNUC__ >= 11)
#define LCPO_BF16_DOT
#endif

#ifdef LCPO_BF16_DOT
// GCC 12 takes the undefined registers in its own header for a mistake of those who call it (bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace lcpo {

// Mask of the lanes below `size`: none if it is negative, all from LANES on.
LCPO_INLINE __mmask16 first_lanes(int64_t size) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(size, 0, LANES)) - 1u);
}

}  // namespace lcpo
#endif
