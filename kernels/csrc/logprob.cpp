// Row kernels of linear_logprob; the mathematics is in kernels/torch_ref/linear_logprob.py.

#include <cmath>

#include "api.h"
#include "rows.h"
#include "simd.h"

namespace lcpo {

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

namespace {

// exp(z) · z for z <= 0, where z = -inf gives 0 and not NaN.
LCPO_INLINE float times(float e, float z) { return e == 0.0f ? 0.0f : e * z; }

// log Σ exp(z) and E[z] of z = x / temperature - shift.
LCPO_CLONES void row_sums(const float* x, int64_t size, float temperature, float shift,
                          double* total, double* weighted) {
  LaneSum sum, moment;
  int64_t j = 0;
  for (; j + LANES <= size; j += LANES) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      const float z = x[j + i] / temperature - shift;
      const float e = exp_nonpositive(z);
      sum.part[i] += e;
      moment.part[i] += times(e, z);
    }
    if ((j / LANES) % 64 == 63) {
      sum.flush();
      moment.flush();
    }
  }
  sum.flush();
  moment.flush();
  for (; j < size; ++j) {
    const float z = x[j] / temperature - shift;
    const float e = exp_nonpositive(z);
    sum.whole += e;
    moment.whole += times(e, z);
  }
  *total = sum.whole;
  *weighted = moment.whole;
}

// x_j <- p_j · (g_entropy (E[z] - z_j) - g_logprob) / temperature; the target is added outside.
LCPO_CLONES void row_gradient(float* x, int64_t size, float temperature, float shift,
                              float log_sum, float mean, float grad_logprob, float grad_entropy) {
  for (int64_t j = 0; j < size; ++j) {
    const float z = x[j] / temperature - shift;
    const float p = exp_nonpositive(z - log_sum);
    x[j] = (p * -grad_logprob + grad_entropy * (p * mean - times(p, z))) / temperature;
  }
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_logprob_forward(const float* logits, int64_t rows, int64_t columns,
                                   float temperature, const int64_t* targets, float* logprob,
                                   float* stats, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const float* x = logits + r * columns;
    const float shift = lcpo::row_max(x, columns) / temperature;
    double total = 0.0, weighted = 0.0;
    lcpo::row_sums(x, columns, temperature, shift, &total, &weighted);
    const double log_sum = std::log(total);
    logprob[r] = static_cast<float>(x[targets[r]] / temperature - shift - log_sum);
    stats[3 * r + 0] = shift;
    stats[3 * r + 1] = static_cast<float>(log_sum);
    stats[3 * r + 2] = static_cast<float>(weighted / total);
  }
}

LCPO_API void lcpo_logprob_backward(float* logits, int64_t rows, int64_t columns,
                                    float temperature, const int64_t* targets, const float* stats,
                                    const float* grad_logprob, const float* grad_entropy,
                                    int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    float* x = logits + r * columns;
    const float by_logprob = grad_logprob ? grad_logprob[r] : 0.0f;
    const float by_entropy = grad_entropy ? grad_entropy[r] : 0.0f;
    const float *s = stats + 3 * r;
    lcpo::row_gradient(x, columns, temperature, s[0], s[1], s[2], by_logprob, by_entropy);
    if (targets[r] >= 0 && targets[r] < columns) x[targets[r]] += by_logprob / temperature;
  }
}
