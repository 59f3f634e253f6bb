// Rows of logits to log-prob and entropy and back; see kernels/torch_ref/linear_logprob.py.
//
// Exponents are kept in base 2, y = (x - max) · log2(e) / T: one multiplication, and no split of
// ln 2. Differences to the maximum are taken first, so a shift of the whole row costs no digits.

#include <algorithm>
#include <cmath>

#include "api.h"
#include "bf16.h"
#include "rows.h"
#include "simd.h"

namespace lcpo {
namespace {

// A block is read twice, for its maximum and for its sums. The maximum is taken a block ahead, in
// the loop that sums: it hides there, and so does the wait for memory.
constexpr int64_t BLOCK = 1024;

LCPO_INLINE float peak_of_lanes(float* best) {
  for (int half = LANES / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) best[i] = best[i + half] > best[i] ? best[i + half] : best[i];
  }
  return best[0];
}

// Largest of x[0..size), NaN apart; -inf for none.
LCPO_INLINE float peak_of(const float* x, int64_t size) {
  float best[LANES];
  LCPO_SIMD
  for (int i = 0; i < LANES; ++i) best[i] = -INF;
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) best[i] = x[j + i] > best[i] ? x[j + i] : best[i];
  }
  float peak = peak_of_lanes(best);
  for (; j < size; ++j) peak = x[j] > peak ? x[j] : peak;
  return peak;
}

struct Moments {
  float peak = -INF;      // largest entry, NaN apart
  double total = 0.0;     // sum of 2**y; NaN if any entry is NaN or +inf
  double weighted = 0.0;  // sum of y · 2**y
};

// Sums of one block, in float lanes.
struct Sums {
  float total[LANES] = {}, weighted[LANES] = {};

  LCPO_INLINE_MEMBER void add(const float* x, float base, float scale) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      const float y = clamp_exponent((x[i] - base) * scale);
      const float e = exp2_clamped(y);
      total[i] += e;
      weighted[i] = fused(e, y, weighted[i]);
    }
  }
};

// Online: sums relative to the maximum so far, rescaled when a block raises it; double between
// blocks.
template <class T>
LCPO_INLINE Moments moments_of(const T* row, int64_t size, float scale) {
  float room[2][BLOCK];
  float peak = -INF;
  double total[LANES] = {}, weighted[LANES] = {};
  const float* x = widened(row, std::min(BLOCK, size), room[0]);
  float ahead = peak_of(x, std::min(BLOCK, size));  // of the block that comes next
  for (int64_t start = 0, block = 0; start < size; start += BLOCK, ++block) {
    const int64_t count = std::min(BLOCK, size - start);
    if (ahead > peak) {
      const double drop = peak > -INF ? (static_cast<double>(peak) - ahead) * scale : 0.0;
      const double factor = std::exp2(drop);
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) {
        weighted[i] = (weighted[i] + drop * total[i]) * factor;
        total[i] *= factor;
      }
      peak = ahead;
    }
    const float base = peak > -INF ? peak : 0.0f;  // -inf less -inf would be NaN
    const int64_t after = std::min(BLOCK, size - start - count);
    const float* next = widened(row + start + count, after, room[(block + 1) % 2]);
    Sums sums;
    int64_t j = 0;
    if (after == BLOCK) {
      float best[LANES];
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) best[i] = -INF;
      for (; j < BLOCK; j += LANES) {
        sums.add(x + j, base, scale);
        LCPO_SIMD
        for (int i = 0; i < LANES; ++i) best[i] = next[j + i] > best[i] ? next[j + i] : best[i];
      }
      ahead = peak_of_lanes(best);
    } else {
      for (; j + LANES <= count; j += LANES) sums.add(x + j, base, scale);
      ahead = peak_of(next, after);
    }
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      total[i] += sums.total[i];
      weighted[i] += sums.weighted[i];
    }
    for (; j < count; ++j) {
      const float y = clamp_exponent((x[j] - base) * scale);
      const float e = exp2_clamped(y);
      total[0] += e;
      weighted[0] += e * y;
    }
    x = next;
  }
  Moments all{peak, 0.0, 0.0};
  for (int i = 0; i < LANES; ++i) {
    all.total += total[i];
    all.weighted += weighted[i];
  }
  return all;
}

LCPO_CLONES Moments moments(const float* x, int64_t size, float scale) {
  return moments_of(x, size, scale);
}

LCPO_CLONES Moments moments(const bf16* x, int64_t size, float scale) {
  return moments_of(x, size, scale);
}

// dz = 2**y · (a + b · y) with y = (x - peak) · scale
struct Slope {
  float peak, scale, a, b;

  LCPO_INLINE_MEMBER float operator()(float x) const {
    const float y = clamp_exponent((x - peak) * scale);
    return exp2_clamped(y) * fused(b, y, a);
  }
};

template <class T>
LCPO_INLINE void slopes_of(const T* x, int64_t size, const Slope& slope, T* out) {
  LCPO_SIMD
  for (int64_t j = 0; j < size; ++j) store(out + j, slope(load(x + j)));
}

LCPO_CLONES void slopes(const float* x, int64_t size, const Slope& slope, float* out) {
  slopes_of(x, size, slope, out);
}

LCPO_CLONES void slopes(const bf16* x, int64_t size, const Slope& slope, bf16* out) {
  slopes_of(x, size, slope, out);
}

template <class T>
void forward(const T* logits, int64_t rows, int64_t columns, int64_t stride, float temperature,
             const int64_t* targets, float* logprob, float* stats, int32_t threads) {
  const float scale = static_cast<float>(LOG2E / temperature);
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = logits + r * stride;
    const Moments row = moments(x, columns, scale);
    const double log_sum = std::log(row.total);
    const double target = static_cast<double>(load(x + targets[r])) - row.peak;
    logprob[r] = static_cast<float>(target / temperature - log_sum);
    stats[3 * r + 0] = row.peak;
    stats[3 * r + 1] = static_cast<float>(log_sum);
    stats[3 * r + 2] = static_cast<float>(row.weighted / row.total * LN2);
  }
}

// dz_j = [g_logprob (δ_j - p_j) + g_entropy p_j (E[z] - z_j)] / T, with p = exp(z) / Σ.
template <class T>
void backward(const T* logits, int64_t rows, int64_t columns, int64_t stride, float temperature,
              const int64_t* targets, const float* stats, const float* grad_logprob,
              const float* grad_entropy, T* d_logits, int64_t d_columns, int32_t threads) {
  const float scale = static_cast<float>(LOG2E / temperature);
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = logits + r * stride;
    T* out = d_logits + r * d_columns;
    const double by_logprob = grad_logprob ? grad_logprob[r] : 0.0;
    const double by_entropy = grad_entropy ? grad_entropy[r] : 0.0;
    const double shrink = std::exp(-static_cast<double>(stats[3 * r + 1])) / temperature;
    const Slope slope{stats[3 * r], scale,
                      static_cast<float>((by_entropy * stats[3 * r + 2] - by_logprob) * shrink),
                      static_cast<float>(-by_entropy * shrink * LN2)};
    // Before the row is overwritten, and rounded once. A target elsewhere is in another tile.
    const bool here = targets[r] >= 0 && targets[r] < columns;
    const float at_target =
        here ? slope(load(x + targets[r])) + static_cast<float>(by_logprob / temperature) : 0.0f;
    slopes(x, columns, slope, out);
    if (here) store(out + targets[r], at_target);
    std::fill(out + columns, out + d_columns, T{0});
  }
}

// A row from its tiles. Each tile's own maximum and sum cancel in the target's log-prob, so that it is
// exact in rows shifted by 1e4 too. A tile of nothing but -inf has no share, and NaN for statistics.
void merge(const float* logprob, const float* stats, int64_t tiles, int64_t rows, int64_t row,
           int64_t owner, float temperature, float* out, float* out_stats) {
  const auto of = [&](int64_t t, int i) { return stats[3 * (t * rows + row) + i]; };
  float top = -INF;
  for (int64_t t = 0; t < tiles; ++t) top = std::max(top, of(t, 0));
  const auto gap = [&](int64_t t) { return (static_cast<double>(of(t, 0)) - top) / temperature; };
  const auto share = [&](int64_t t) { return of(t, 0) == -INF ? -INF : of(t, 1) + gap(t); };
  double total = 0.0, weighted = 0.0;
  for (int64_t t = 0; t < tiles; ++t) {
    if (of(t, 0) == -INF) continue;
    const double weight = std::exp(share(t));
    total += weight;
    weighted += weight * (of(t, 2) + gap(t));
  }
  const double log_sum = std::log(total);
  *out = static_cast<float>(logprob[owner * rows + row] + share(owner) - log_sum);
  out_stats[0] = top;
  out_stats[1] = static_cast<float>(log_sum);
  out_stats[2] = static_cast<float>(weighted / total);
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_logprob_merge(const float* logprob, const float* stats, int64_t tiles,
                                 int64_t rows, int64_t width, float temperature,
                                 const int64_t* targets, float* out, float* out_stats) {
  for (int64_t r = 0; r < rows; ++r) {
    lcpo::merge(logprob, stats, tiles, rows, r, targets[r] / width, temperature, out + r,
                out_stats + 3 * r);
  }
}

LCPO_API void lcpo_logprob_forward(const void* logits, bool is_bf16, int64_t rows, int64_t columns,
                                   int64_t stride, float temperature, const int64_t* targets,
                                   float* logprob, float* stats, int32_t threads) {
  const auto run = [&](const auto* x) {
    lcpo::forward(x, rows, columns, stride, temperature, targets, logprob, stats, threads);
  };
  is_bf16 ? run(static_cast<const lcpo::bf16*>(logits)) : run(static_cast<const float*>(logits));
}

LCPO_API void lcpo_logprob_backward(const void* logits, bool is_bf16, int64_t rows,
                                    int64_t columns, int64_t stride, float temperature,
                                    const int64_t* targets, const float* stats,
                                    const float* grad_logprob, const float* grad_entropy,
                                    void* d_logits, int64_t d_columns, int32_t threads) {
  const auto run = [&](auto* d) {
    using T = std::remove_pointer_t<decltype(d)>;
    lcpo::backward(static_cast<const T*>(logits), rows, columns, stride, temperature, targets,
                   stats, grad_logprob, grad_entropy, d, d_columns, threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(d_logits)) : run(static_cast<float*>(d_logits));
}
