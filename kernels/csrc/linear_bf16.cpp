// Products with bf16 weights as they lie: nothing but the rows is rearranged.

#include <algorithm>

#include "amx.h"
#include "packed.h"
#include "panel_bf16.h"
#include "room.h"
#include "turn16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

// x [rows, pairs] as PanelBf16 wants it.
__attribute__((target("avx512f"))) void turn_rows(const uint32_t* x, int64_t rows, int64_t pairs,
                                                  uint32_t* out) {
  for (int64_t r = 0; r < rows; r += LANES) {
    const int64_t count = std::min<int64_t>(LANES, rows - r);
    for (int64_t k = 0; k < pairs; k += LANES) {
      const int64_t size = std::min<int64_t>(LANES, pairs - k);
      const __mmask16 some = first_lanes(size);
      __m512i block[LANES];
      for (int64_t i = 0; i < LANES; ++i) {
        block[i] = i < count ? _mm512_maskz_loadu_epi32(some, x + (r + i) * pairs + k)
                             : _mm512_setzero_si512();
      }
      turn16(block);
      for (int64_t i = 0; i < size; ++i) {
        _mm512_storeu_si512(out + r * pairs + (k + i) * LANES, block[i]);
      }
    }
  }
}

// out [rows, outputs] of a panel: c turned over, with the bias, rounded to bf16.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) void finish(
    const float* c, const bf16* bias, int64_t outputs, int64_t rows, bf16* out, int64_t stride) {
  const __mmask16 some = first_lanes(outputs);
  __m512 add = _mm512_setzero_ps();
  if (bias) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, bias));
    add = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  for (int64_t r = 0; r < rows; r += LANES) {
    __m512i block[LANES];
    for (int64_t i = 0; i < LANES; ++i) {
      block[i] = i < outputs ? _mm512_loadu_si512(c + i * PANEL_ROWS + r) : _mm512_setzero_si512();
    }
    turn16(block);
    const int64_t count = std::min<int64_t>(LANES, rows - r);
    for (int64_t i = 0; i < count; ++i) {
      const __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(block[i]), add);
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(sum);
      _mm256_mask_storeu_epi16(out + (r + i) * stride, some, rounded);
    }
  }
}

// `width` outputs at a time, those of panels first..last-1.
template <class Product>
void walk(const LcpoLinear& l, const uint32_t* x, int64_t rows, int64_t first, int64_t last,
          bf16* out, int64_t width, const Product& product) {
  alignas(64) float c[2 * PANEL * PANEL_ROWS];
  const int64_t pairs = l.inputs / 2, stop = std::min(last * PANEL, l.outputs);
  const uint32_t* w = static_cast<const uint32_t*>(l.weight);
  const bf16* bias = static_cast<const bf16*>(l.bias);
  for (int64_t at = first * PANEL; at < stop;) {
    const int64_t outputs = stop - at >= width ? width : std::min(PANEL, stop - at);
    product(PanelBf16{w + at * pairs, x, outputs, pairs, rows, c});
    for (int64_t i = 0; i < outputs; i += PANEL) {
      finish(c + i * PANEL_ROWS, bias ? bias + at + i : nullptr, std::min(PANEL, outputs - i), rows,
             out + at + i, l.outputs);
    }
    at += outputs;
  }
}

}  // namespace

void multiply(const LcpoLinear& l, const bf16* x, int64_t rows, int64_t first, int64_t last,
              bf16* out) {
  if (first == last) return;
  const int64_t pairs = l.inputs / 2;
  uint32_t* turned = thread_room(PANEL_ROWS * pairs);
  const bool by_tiles = has_amx() && l.outputs % PANEL == 0 && l.inputs % 32 == 0;
  for (int64_t r = 0; r < rows; r += PANEL_ROWS) {
    const int64_t count = std::min(PANEL_ROWS, rows - r);
    // Pairs of a row lie side by side: bf16 rows of even length, read as they are.
    turn_rows(reinterpret_cast<const uint32_t*>(x + r * l.inputs), count, pairs, turned);
    bf16* to = out + r * l.outputs;
    if (by_tiles) {
      const Amx amx;
      walk(l, turned, count, first, last, to, 2 * PANEL, panel_amx);
    } else {
      walk(l, turned, count, first, last, to, PANEL, panel_dot);
    }
  }
}

}  // namespace lcpo
#else
namespace lcpo {
void multiply(const LcpoLinear&, const bf16*, int64_t, int64_t, int64_t, bf16*) {}
}  // namespace lcpo
#endif
