#include "right_factor.h"

#include <algorithm>

#include "tile_dot.h"
#include "turn16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {

constexpr int64_t PANEL_VECTORS = 3, PANEL_COLUMNS = PANEL_VECTORS * LANES;

RightFactor::RightFactor(std::vector<const LcpoLinear*> layers, bool backward)
    : layers_(std::move(layers)),
      backward_(backward),
      pairs_(0),
      columns_(backward ? layers_[0]->inputs : layers_[0]->outputs),
      panels_((columns_ + PANEL_COLUMNS - 1) / PANEL_COLUMNS),
      data_([&] {
        for (const LcpoLinear* l : layers_) pairs_ += (backward ? l->outputs : l->inputs) / 2;
        return panels_ * pairs_ * PANEL_COLUMNS;
      }()) {}

namespace {

// Panel columns [first, first + PANEL_COLUMNS) of weightᵀ.
LCPO_DOT void pack_turned(const LcpoLinear& l, int64_t first, uint32_t* out) {
  const int64_t pairs = l.inputs / 2, rows = std::min(PANEL_COLUMNS, l.outputs - first);
  const uint32_t* w = static_cast<const uint32_t*>(l.weight) + first * pairs;
  for (int64_t p = 0; p < pairs; p += LANES) {
    const __mmask16 some = first_lanes(pairs - p);
    for (int64_t j = 0; j < PANEL_COLUMNS; j += LANES) {
      __m512i block[LANES];
      for (int64_t i = 0; i < LANES; ++i) {
        block[i] = j + i < rows ? _mm512_maskz_loadu_epi32(some, w + (j + i) * pairs + p)
                                : _mm512_setzero_si512();
      }
      turn16(block);
      for (int64_t i = 0; i < std::min<int64_t>(LANES, pairs - p); ++i) {
        _mm512_storeu_si512(out + (p + i) * PANEL_COLUMNS + j, block[i]);
      }
    }
  }
}

// The same of the weight itself: pairs of neighbouring rows.
LCPO_DOT void pack_as_it_lies(const LcpoLinear& l, int64_t first, uint32_t* out) {
  const bf16* w = static_cast<const bf16*>(l.weight) + first;
  for (int64_t p = 0; p < l.outputs / 2; ++p, w += 2 * l.inputs, out += PANEL_COLUMNS) {
    for (int64_t j = 0; j < PANEL_COLUMNS; j += LANES) {
      const __mmask16 there = first_lanes(l.inputs - first - j);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, w + j));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, w + l.inputs + j));
      _mm512_storeu_si512(out + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

struct Panel {
  std::initializer_list<Rows> parts;
  int64_t rows;
  const uint32_t* weight;  // [pairs, PANEL_COLUMNS]
  const bf16* bias;        // or null
  bf16* out;
  int64_t stride, columns;
};

template <int ROWS, int VECTORS>
LCPO_DOT void tile(const Panel& panel, int64_t r) {
  __m512 sum[ROWS][VECTORS];
  clear(sum);
  const uint32_t* weight = panel.weight;
  for (const Rows& part : panel.parts) {
    const int64_t pairs = part.width / 2;
    const uint32_t* x = reinterpret_cast<const uint32_t*>(part.x) + r * pairs;
    add_pairs(sum, x, pairs, 1, weight, PANEL_COLUMNS, pairs);
    weight += pairs * PANEL_COLUMNS;
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) {
    const __mmask16 there = first_lanes(panel.columns - v * LANES);
    __m512 bias = _mm512_setzero_ps();
    if (panel.bias) {
      const __m256i narrow = _mm256_maskz_loadu_epi16(there, panel.bias + v * LANES);
      bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(sum[i][v], bias));
      _mm256_mask_storeu_epi16(panel.out + (r + i) * panel.stride + v * LANES, there, rounded);
    }
  }
}

// The last rows, fewer than fill a tile.
template <int ROWS, int VECTORS>
void rest(const Panel& panel, int64_t r) {
  if (panel.rows - r == ROWS) return tile<ROWS, VECTORS>(panel, r);
  if constexpr (ROWS > 1) rest<ROWS - 1, VECTORS>(panel, r);
}

template <int VECTORS>
void run(const Panel& panel) {
  constexpr int HEIGHT = 8;
  int64_t r = 0;
  for (; r + HEIGHT <= panel.rows; r += HEIGHT) tile<HEIGHT, VECTORS>(panel, r);
  rest<HEIGHT - 1, VECTORS>(panel, r);
}

}  // namespace

void RightFactor::pack(const Team& team) const {
  const Span mine = team.share({0, panels_});
  for (int64_t panel = mine.at; panel < mine.at + mine.count; ++panel) {
    uint32_t* out = data_ + panel * pairs_ * PANEL_COLUMNS;
    for (const LcpoLinear* l : layers_) {
      (backward_ ? pack_as_it_lies : pack_turned)(*l, panel * PANEL_COLUMNS, out);
      out += (backward_ ? l->outputs : l->inputs) / 2 * PANEL_COLUMNS;
    }
  }
}

void RightFactor::multiply(std::initializer_list<Rows> parts, int64_t rows, bf16* out) const {
  const bf16* bias = backward_ ? nullptr : static_cast<const bf16*>(layers_[0]->bias);
  for (int64_t p = 0; p < panels_; ++p) {
    const int64_t at = p * PANEL_COLUMNS, columns = std::min(PANEL_COLUMNS, columns_ - at);
    const Panel panel{parts,    rows,     data_ + at * pairs_, bias ? bias + at : nullptr,
                      out + at, columns_, columns};
    switch ((columns + LANES - 1) / LANES) {
      case 3: run<3>(panel); break;
      case 2: run<2>(panel); break;
      case 1: run<1>(panel); break;
    }
  }
}

}  // namespace lcpo
#endif
