#include "rows.h"

#include "simd.h"

namespace lcpo {

extern const float LOWEST_EXPONENT = -127.0f;
extern const float HIGHEST_EXPONENT = 127.0f;

LCPO_CLONES float row_max(const float* x, int64_t size) {
  float best[LANES];
  int32_t nan[LANES];
  LCPO_SIMD
  for (int i = 0; i < LANES; ++i) {
    best[i] = -INF;
    nan[i] = 0;
  }
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      const float value = x[j + i];
      best[i] = value > best[i] ? value : best[i];
      nan[i] |= value != value;
    }
  }
  for (; j < size; ++j) {
    best[0] = x[j] > best[0] ? x[j] : best[0];
    nan[0] |= x[j] != x[j];
  }
  for (int i = 1; i < LANES; ++i) {
    best[0] = best[i] > best[0] ? best[i] : best[0];
    nan[0] |= nan[i];
  }
  return nan[0] ? std::numeric_limits<float>::quiet_NaN() : best[0];
}

}  // namespace lcpo
