#include "attention.h"

#include <algorithm>
#include <cstring>

#include "gemm.h"

namespace lcpo {
namespace {

constexpr int64_t AHEAD = 8;  // groups of rows to prefetch: one head's rows are far apart in memory

template <class T>
LCPO_INLINE void pack_rows(const T* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                           float factor, float* out) {
  const int64_t width = padded(size);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i, out += width) {
      const T* row = x + o * stride + i * size;
      int64_t d = 0;
      for (; d + LANES <= size; d += LANES) {
        __builtin_prefetch(row + AHEAD * stride + d);
        LCPO_SIMD
        for (int l = 0; l < LANES; ++l) out[d + l] = factor * load(row + d + l);
      }
      for (; d < size; ++d) out[d] = factor * load(row + d);
      for (; d < width; ++d) out[d] = 0.0f;
    }
  }
}

template <class T>
LCPO_INLINE void unpack_rows(const float* x, int64_t outer, int64_t stride, int64_t inner,
                             int64_t size, float factor, T* out) {
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i, x += padded(size)) {
      T* row = out + o * stride + i * size;
      int64_t d = 0;
      for (; d + LANES <= size; d += LANES) {
        LCPO_SIMD
        for (int l = 0; l < LANES; ++l) store(row + d + l, factor * x[d + l]);
      }
      for (; d < size; ++d) store(row + d, factor * x[d]);
    }
  }
}

// The 16 lanes of each row side by side over rows: lanes [ROWS, LANES] to [LANES, ROWS]. Reducing
// them is then a loop over rows, where reducing a register by itself would stall at each step.
void across(const float* lanes, int64_t rows, float* turned) {
  transpose(lanes, round_up(rows, 4), LANES, LANES, turned, ROWS);
}

LCPO_CLONES void normalise(float* out, int64_t rows, int64_t width, const float* sum) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < width; ++d) out[r * width + d] /= sum[r];
  }
}

LCPO_CLONES void to_lse(float* max, const float* sum, int64_t rows) {
  constexpr float ln2 = LN2;
  for (int64_t r = 0; r < rows; ++r) {
    const float log_sum = log_positive(sum[r]);
    max[r] = max[r] * ln2 + (sum[r] == sum[r] ? log_sum : sum[r]);
  }
}

}  // namespace

LCPO_CLONES void softmax_step(float* scores, int64_t rows, int64_t columns, const int32_t* seen,
                              float* max, float* sum, float* out, int64_t width) {
  alignas(64) float lanes[ROWS * LANES] = {}, turned[LANES * ROWS];
  float best[ROWS], shrink[ROWS];
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * KEYS;
    std::fill(row + seen[r], row + columns, -INF);
    float* most = lanes + r * LANES;
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) most[i] = row[i];
    for (int64_t j = LANES; j < columns; j += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) most[i] = row[j + i] > most[i] ? row[j + i] : most[i];
    }
  }
  across(lanes, rows, turned);
  for (int64_t r = 0; r < rows; ++r) best[r] = max[r];
  for (int i = 0; i < LANES; ++i) {
    const float* most = turned + i * ROWS;
    for (int64_t r = 0; r < rows; ++r) best[r] = most[r] > best[r] ? most[r] : best[r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * KEYS;
    float* part = lanes + r * LANES;
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) part[i] = 0.0f;
    for (int64_t j = 0; j < columns; j += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) {
        const float p = exp2_clamped(clamp_exponent(row[j + i] - best[r]));
        row[j + i] = p;
        part[i] += p;
      }
    }
  }
  across(lanes, rows, turned);
  for (int64_t r = 0; r < rows; ++r) {
    shrink[r] = exp2_clamped(clamp_exponent(max[r] - best[r]));
    max[r] = best[r];
    sum[r] *= shrink[r];
  }
  for (int i = 0; i < LANES; ++i) {
    for (int64_t r = 0; r < rows; ++r) sum[r] += turned[i * ROWS + r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    for (int64_t d = 0; d < width; ++d) out[r * width + d] *= shrink[r];
  }
}

LCPO_CLONES void pack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                      float factor, float* out) {
  pack_rows(x, outer, stride, inner, size, factor, out);
}

LCPO_CLONES void pack(const bf16* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                      float factor, float* out) {
  pack_rows(x, outer, stride, inner, size, factor, out);
}

LCPO_CLONES void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner,
                        int64_t size, float factor, float* out) {
  unpack_rows(x, outer, stride, inner, size, factor, out);
}

LCPO_CLONES void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner,
                        int64_t size, float factor, bf16* out) {
  unpack_rows(x, outer, stride, inner, size, factor, out);
}

void KeyBlock::turn(int64_t count, int64_t width) {
  const int64_t rows = round_up(count, LANES);
  for (int64_t j = count; j < rows; ++j) std::fill_n(k + j * stride, width, 0.0f);
  transpose(k, rows, width, stride, k_t, KEYS);
}

void Queries::start(int64_t rows, int64_t width) {
  std::fill(out, out + rows * width, 0.0f);
  std::fill(max, max + rows, -INF);
  std::fill(sum, sum + rows, 0.0f);
}

void Queries::attend(const KeyBlock& block, int64_t rows, const int32_t* seen, int64_t size) {
  alignas(64) float scores[ROWS * KEYS];
  const int64_t width = padded(size);
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t n = std::min(ROWS, rows - r), most = seen[r + n - 1];
    if (most == 0) continue;
    const int64_t columns = round_up(most, LANES);
    float* to = out + r * width;
    gemm({n, columns, size, q + r * width, width, block.k_t, KEYS, scores, KEYS, false, false});
    softmax_step(scores, n, columns, seen + r, max + r, sum + r, to, width);
    gemm({n, width, most, scores, KEYS, block.v, block.stride, to, width, false, true});
  }
}

void Queries::finish(int64_t rows, int64_t width, bool want_lse) {
  normalise(out, rows, width, sum);
  if (want_lse) to_lse(max, sum, rows);
}

}  // namespace lcpo
