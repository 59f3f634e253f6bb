#include "right_factor.h"

#include <algorithm>

#include "product.h"
#include "tile_dot.h"
#include "turn16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {

namespace {

// Of the panels that `layer` has a part in, pairs along k.
int64_t pairs_of(const LcpoLinear& layer, bool backward) {
  return (backward ? layer.outputs : layer.inputs) / 2;
}

int64_t pairs_of(const std::vector<const LcpoLinear*>& layers, bool backward) {
  int64_t sum = 0;
  for (const LcpoLinear* l : layers) sum += pairs_of(*l, backward);
  return sum;
}

}  // namespace

RightFactor::RightFactor(std::vector<const LcpoLinear*> layers, bool backward)
    : layers_(std::move(layers)),
      backward_(backward),
      pairs_(pairs_of(layers_, backward)),
      columns_(backward ? layers_[0]->inputs : layers_[0]->outputs),
      panels_((columns_ + RIGHT_COLUMNS - 1) / RIGHT_COLUMNS),
      data_(panels_ * pairs_ * RIGHT_COLUMNS) {}

namespace {

// Panel columns [first, first + RIGHT_COLUMNS) of weightᵀ.
LCPO_DOT void pack_turned(const LcpoLinear& l, int64_t first, uint32_t* out) {
  const int64_t pairs = l.inputs / 2, rows = std::min(RIGHT_COLUMNS, l.outputs - first);
  const uint32_t* w = static_cast<const uint32_t*>(l.weight) + first * pairs;
  for (int64_t p = 0; p < pairs; p += LANES) {
    const __mmask16 some = first_lanes(pairs - p);
    for (int64_t j = 0; j < RIGHT_COLUMNS; j += LANES) {
      __m512i block[LANES];
      for (int64_t i = 0; i < LANES; ++i) {
        block[i] = j + i < rows ? _mm512_maskz_loadu_epi32(some, w + (j + i) * pairs + p)
                                : _mm512_setzero_si512();
      }
      turn16(block);
      for (int64_t i = 0; i < std::min<int64_t>(LANES, pairs - p); ++i) {
        _mm512_storeu_si512(out + (p + i) * RIGHT_COLUMNS + j, block[i]);
      }
    }
  }
}

struct Panel {
  std::initializer_list<Rows> parts;
  int64_t rows;
  const uint32_t* weight;  // [pairs, RIGHT_COLUMNS]
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
    add_pairs(sum, x, pairs, 1, weight, RIGHT_COLUMNS, pairs);
    weight += pairs * RIGHT_COLUMNS;
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

template <int VECTORS>
void run(const Panel& panel) {
  over_rows<8>(panel.rows, [&](auto rows, int64_t r) { tile<rows.value, VECTORS>(panel, r); });
}

}  // namespace

void RightFactor::pack(const Team& team) const {
  const Span mine = team.share({0, panels_});
  for (int64_t panel = mine.at; panel < mine.at + mine.count; ++panel) {
    uint32_t* out = data_ + panel * pairs_ * RIGHT_COLUMNS;
    for (const LcpoLinear* l : layers_) {
      const int64_t first = panel * RIGHT_COLUMNS;
      if (backward_) {
        pack_columns<RIGHT_COLUMNS>(static_cast<const bf16*>(l->weight) + first, l->outputs,
                                    l->inputs, std::min(RIGHT_COLUMNS, columns_ - first), out);
      } else {
        pack_turned(*l, first, out);
      }
      out += pairs_of(*l, backward_) * RIGHT_COLUMNS;
    }
  }
}

void RightFactor::multiply(std::initializer_list<Rows> parts, int64_t rows, bf16* out) const {
  const bf16* bias = backward_ ? nullptr : static_cast<const bf16*>(layers_[0]->bias);
  for (int64_t p = 0; p < panels_; ++p) {
    const int64_t at = p * RIGHT_COLUMNS, columns = std::min(RIGHT_COLUMNS, columns_ - at);
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
