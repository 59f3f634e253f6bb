#include "attention.h"

#include <algorithm>
#include <cstring>

#include "gemm.h"

namespace lcpo {
namespace {

constexpr int64_t AHEAD = 8;  // groups of rows to prefetch: one head's rows are far apart in memory

template <class T>
LCPO_INLINE void pack_rows(const T* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                           T* out) {
  const int64_t width = padded(size);
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < inner; ++i, out += width) {
      const T* row = x + o * stride + i * size;
      int64_t d = 0;
      for (; d + LANES <= size; d += LANES) {
        __builtin_prefetch(row + AHEAD * stride + d);
        std::memcpy(out + d, row + d, LANES * sizeof(T));
      }
      for (; d < size; ++d) out[d] = row[d];
      for (; d < width; ++d) out[d] = T{0};
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

// The 16 lanes of each row side by side over rows: lanes [QUERIES, LANES] to [LANES, QUERIES]. Reducing
// them is then a loop over rows, where reducing a register by itself would stall at each step.
void across(const float* lanes, int64_t rows, float* turned) {
  transpose(lanes, round_up(rows, 4), LANES, LANES, turned, QUERIES);
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

LCPO_CLONES void softmax_step(float* scores, float factor, int64_t rows, int64_t columns,
                              const int32_t* seen, float* max, float* sum, float* out,
                              int64_t width) {
  alignas(64) float lanes[QUERIES * LANES] = {}, turned[LANES * QUERIES];
  float best[QUERIES], shrink[QUERIES];
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
  std::fill_n(best, rows, -INF);
  for (int i = 0; i < LANES; ++i) {
    const float* most = turned + i * QUERIES;
    for (int64_t r = 0; r < rows; ++r) best[r] = most[r] > best[r] ? most[r] : best[r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    best[r] *= factor;
    best[r] = best[r] > max[r] ? best[r] : max[r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * KEYS;
    float* part = lanes + r * LANES;
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) part[i] = 0.0f;
    for (int64_t j = 0; j < columns; j += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) {
        const float p = exp2_clamped(clamp_exponent(fused(factor, row[j + i], -best[r])));
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
    for (int64_t r = 0; r < rows; ++r) sum[r] += turned[i * QUERIES + r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    for (int64_t d = 0; d < width; ++d) out[r * width + d] *= shrink[r];
  }
}

template <>
LCPO_CLONES void pack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                      float* out) {
  pack_rows(x, outer, stride, inner, size, out);
}

template <>
LCPO_CLONES void pack(const bf16* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
                      bf16* out) {
  pack_rows(x, outer, stride, inner, size, out);
}

LCPO_CLONES void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner,
                        int64_t size, float factor, float* out) {
  unpack_rows(x, outer, stride, inner, size, factor, out);
}

LCPO_CLONES void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner,
                        int64_t size, float factor, bf16* out) {
  unpack_rows(x, outer, stride, inner, size, factor, out);
}

template <class T>
void turn(T* k, int64_t count, int64_t size, Unit<T>* k_t) {
  const int64_t width = padded(size), rows = round_up(count, LANES);
  std::fill(k + count * width, k + rows * width, T{0});
  transpose(left(k), rows, units<T>(width), units<T>(width), k_t, KEYS);
}

LCPO_CLONES float fold(float factor, float* q, int64_t size) {
  for (int64_t i = 0; i < size; ++i) q[i] *= factor;
  return 1.0f;
}

LCPO_CLONES float fold(float factor, bf16* q, int64_t size) {
  if (!(factor <= 0.0f)) return factor;  // NaN too
  const float sign = factor < 0.0f ? -1.0f : 0.0f;
  for (int64_t i = 0; i < size; ++i) store(q + i, sign * load(q + i));
  return factor < 0.0f ? -factor : 1.0f;
}

template <class T>
void Queries<T>::start(int64_t rows, int64_t width, float scale) {
  factor = fold(static_cast<float>(scale * LOG2E), q, rows * width);
  std::fill(out, out + rows * width, 0.0f);
  std::fill(max, max + rows, -INF);
  std::fill(sum, sum + rows, 0.0f);
}

template <class T>
void Queries<T>::attend(const KeyBlock<T>& block, int64_t rows, const int32_t* seen,
                        int64_t size) {
  alignas(64) float scores[QUERIES * KEYS];
  alignas(64) Unit<T> room[QUERIES * units<T>(KEYS)];  // not touched in float32
  const int64_t width = padded(size);
  for (int64_t r = 0; r < rows; r += QUERIES) {
    const int64_t n = std::min(QUERIES, rows - r), most = seen[r + n - 1];
    if (most == 0) continue;
    const int64_t columns = round_up(most, LANES);
    float* to = out + r * width;
    gemm({n, columns, units<T>(size), left(q + r * width), units<T>(width), block.k_t, KEYS,
          scores, KEYS, false, false});
    softmax_step(scores, factor, n, columns, seen + r, max + r, sum + r, to, width);
    gemm({n, width, units<T>(most), rounded_left(scores, n, columns, KEYS, room), units<T>(KEYS),
          block.v, block.stride, to, width, false, true});
  }
}

template <class T>
void Queries<T>::finish(int64_t rows, int64_t width, bool want_lse) {
  normalise(out, rows, width, sum);
  if (want_lse) to_lse(max, sum, rows);
}

template void turn(float*, int64_t, int64_t, float*);
template void turn(bf16*, int64_t, int64_t, uint32_t*);
template struct Queries<float>;
template struct Queries<bf16>;

}  // namespace lcpo
