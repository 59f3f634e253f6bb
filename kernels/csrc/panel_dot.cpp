// The same by vdpbf16ps, rows in the lanes: as many registers of rows as there are, the last one
// half as wide where that is enough.

#include <algorithm>

#include "intrinsics.h"
#include "panel_bf16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

constexpr int64_t HALF = LANES / 2, HEIGHT = 8;  // outputs at a time: 8 x 3 sums in registers
constexpr int64_t MOST = 6;                      // halves at a time

// OUTPUTS outputs of rows in WHOLE registers, and a half one more if there is a LAST.
template <int OUTPUTS, int WHOLE, bool LAST>
__attribute__((target("avx512f,avx512vl,avx512bf16"))) void tile(const PanelBf16& p) {
  __m512 sum[OUTPUTS][WHOLE + 1];
  __m256 rest[OUTPUTS];
  for (int i = 0; i < OUTPUTS; ++i) {
    for (int v = 0; v < WHOLE; ++v) sum[i][v] = _mm512_setzero_ps();
    rest[i] = _mm256_setzero_ps();
  }
  const uint32_t *w = p.w, *x = p.x;
  for (int64_t k = 0; k < p.pairs; ++k, ++w, x += LANES) {
    if (k % LANES == 0) {  // a line of each of the next outputs
      for (int i = 0; i < OUTPUTS; ++i) __builtin_prefetch(w + (OUTPUTS + i) * p.pairs, 0, 2);
    }
    __m512bh right[WHOLE + 1];
    for (int v = 0; v < WHOLE; ++v) {
      right[v] = (__m512bh)_mm512_loadu_si512(x + v * p.pairs * LANES);
    }
    __m256bh last{};
    if (LAST) last = (__m256bh)_mm256_loadu_si256((const __m256i*)(x + WHOLE * p.pairs * LANES));
    for (int i = 0; i < OUTPUTS; ++i) {
      const __m512i left = _mm512_set1_epi32(static_cast<int32_t>(w[i * p.pairs]));
      for (int v = 0; v < WHOLE; ++v) {
        sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)left, right[v]);
      }
      if (LAST) {
        rest[i] = _mm256_dpbf16_ps(rest[i], (__m256bh)_mm512_castsi512_si256(left), last);
      }
    }
  }
  float* c = p.c;
  for (int i = 0; i < OUTPUTS; ++i, c += PANEL_ROWS) {
    for (int v = 0; v < WHOLE; ++v) _mm512_storeu_ps(c + v * LANES, sum[i][v]);
    if (LAST) _mm256_storeu_ps(c + WHOLE * LANES, rest[i]);
  }
}

template <int OUTPUTS>
void some(const PanelBf16& p, int64_t halves) {
  switch (halves) {
    case 1: return tile<OUTPUTS, 0, true>(p);
    case 2: return tile<OUTPUTS, 1, false>(p);
    case 3: return tile<OUTPUTS, 1, true>(p);
    case 4: return tile<OUTPUTS, 2, false>(p);
    case 5: return tile<OUTPUTS, 2, true>(p);
    case 6: return tile<OUTPUTS, 3, false>(p);
  }
}

}  // namespace

void panel_dot(const PanelBf16& panel) {
  const int64_t all = (panel.rows + HALF - 1) / HALF, parts = (all + MOST - 1) / MOST;
  const int64_t step = ((all + parts - 1) / parts + 1) / 2 * 2;  // whole registers but the last
  for (int64_t i = 0; i < panel.outputs;) {
    const int64_t height = panel.outputs - i >= HEIGHT ? HEIGHT : 1;
    for (int64_t at = 0; at < all; at += step) {
      PanelBf16 p = panel;
      p.w += i * p.pairs;
      p.x += at * HALF * p.pairs;
      p.c += i * PANEL_ROWS + at * HALF;
      const int64_t halves = std::min(step, all - at);
      height == HEIGHT ? some<HEIGHT>(p, halves) : some<1>(p, halves);
    }
    i += height;
  }
}

}  // namespace lcpo
#endif
