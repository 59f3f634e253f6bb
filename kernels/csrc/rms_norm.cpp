// RMS norm of rows, with the residual addition before it; contract: kernels/ops/rms_norm.py.
//
// A row is read from memory once and is in L1 for what follows. x, residual, weight and the outputs
// are float32 or bf16 each, in the combinations that torch's promotion makes.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "rms_norm.h"
#include "shares.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int WIDE = 2 * LANES;
constexpr int64_t SMALL = 1 << 14;  // entries for which waking threads does not pay

template <class A, class B>
using Promoted = std::conditional_t<std::is_same_v<A, bf16> && std::is_same_v<B, bf16>, bf16, float>;

template <class T>
LCPO_INLINE float rounded_to(float x) {
  T stored;
  store(&stored, x);
  return load(&stored);
}

// Sum of lane sums in a fixed order.
LCPO_INLINE float across(float* lanes) {
  for (int half = WIDE / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class T>
LCPO_CLONES void widen(const T* x, int64_t size, float* out) {
  LCPO_SIMD
  for (int64_t j = 0; j < size; ++j) out[j] = load(x + j);
}

// total = x + residual, rounded as it is stored; `row` is the same in float32.
template <class X, class R, class S>
LCPO_CLONES void add_rows(const X* x, const R* residual, int64_t width, S* total, float* row) {
  LCPO_SIMD
  for (int64_t j = 0; j < width; ++j) {
    const float t = load(x + j) + load(residual + j);
    store(total + j, t);
    row[j] = rounded_to<S>(t);
  }
}

LCPO_CLONES float dot(const float* a, const float* b, int64_t width) {
  float sum[WIDE] = {};
  int64_t j = 0;
  for (; j + WIDE <= width; j += WIDE) {
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) sum[i] = fused(a[j + i], b[j + i], sum[i]);
  }
  for (; j < width; ++j) sum[0] = fused(a[j], b[j], sum[0]);
  return across(sum);
}

// The normalised value is rounded as S before it meets the weight, as in transformers.
template <class S, class Y>
LCPO_CLONES void scale_row(const float* row, const float* weight, float scale, int64_t width,
                           Y* y) {
  LCPO_SIMD
  for (int64_t j = 0; j < width; ++j) store(y + j, weight[j] * rounded_to<S>(row[j] * scale));
}

template <class X, class R, class W>
void forward(const X* x, const R* residual, const W* weight, int64_t rows, int64_t width,
             double eps, void* y_data, void* total_data, float* rstd, int32_t threads) {
  using S = Promoted<X, R>;
  using Y = Promoted<S, W>;
  S* total = static_cast<S*>(total_data);
  Y* y = static_cast<Y*>(y_data);
#pragma omp parallel num_threads(threads) if (rows * width > SMALL)
  {
    std::vector<float> room(2 * width);
    float *row = room.data(), *w = row + width;
    widen(weight, width, w);
#pragma omp for schedule(static)
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * width;
      if (residual) {
        add_rows(x + at, residual + at, width, total + at, row);
      } else {
        widen(x + at, width, row);
      }
      const double mean = static_cast<double>(dot(row, row, width)) / static_cast<double>(width);
      rstd[r] = static_cast<float>(1.0 / std::sqrt(mean + eps));
      scale_row<S>(row, w, rstd[r], width, y + at);
    }
  }
}

// mean(u · n) of a row, u = weight · grad, n = total · rstd; adds grad · n to d_weight. What is
// needed again is computed again: scratch for u and n would push the row out of L1.
template <class S, class Y>
LCPO_CLONES float project_row(const Y* grad, const S* total, const float* weight, float rstd,
                              int64_t width, float* d_weight) {
  float sum[WIDE] = {};
  int64_t j = 0;
  for (; j + WIDE <= width; j += WIDE) {
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) {
      const float gn = load(grad + j + i) * (load(total + j + i) * rstd);
      sum[i] = fused(gn, weight[j + i], sum[i]);
      d_weight[j + i] += gn;
    }
  }
  for (; j < width; ++j) {
    const float gn = load(grad + j) * (load(total + j) * rstd);
    sum[0] = fused(gn, weight[j], sum[0]);
    d_weight[j] += gn;
  }
  return across(sum) / static_cast<float>(width);
}

// d_x = rstd · (u - n · mean) + grad_total
template <class S, class Y>
LCPO_CLONES void gradient_row(const Y* grad, const S* grad_total, const S* total,
                              const float* weight, float rstd, float mean, int64_t width,
                              S* d_x) {
  const float a = rstd * rstd * mean;
  if (grad_total) {
    LCPO_SIMD
    for (int64_t j = 0; j < width; ++j) {
      const float direct = load(grad + j) * weight[j] * rstd + load(grad_total + j);
      store(d_x + j, fused(load(total + j), -a, direct));
    }
  } else {
    LCPO_SIMD
    for (int64_t j = 0; j < width; ++j) {
      store(d_x + j, fused(load(total + j), -a, load(grad + j) * weight[j] * rstd));
    }
  }
}

// Of a block; its share of d_weight is added to what is there.
template <class S, class Y>
void gradient_rows(const Y* grad, const S* grad_total, const S* total, const float* weight,
                   const float* rstd, int64_t rows, int64_t width, S* d_x, float* d_weight) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = r * width;
    const float mean = project_row(grad + at, total + at, weight, rstd[r], width, d_weight);
    gradient_row(grad + at, grad_total ? grad_total + at : nullptr, total + at, weight, rstd[r],
                 mean, width, d_x + at);
  }
}

template <class S, class W>
void backward(const void* grad_data, const S* grad_total, const S* total, const W* weight,
              const float* rstd, int64_t rows, int64_t width, S* d_x, W* d_weight,
              int32_t threads) {
  using Y = Promoted<S, W>;
  const Y* grad = static_cast<const Y*>(grad_data);
  Shares shares(rows, width);
#pragma omp parallel num_threads(threads) if (rows * width > SMALL)
  {
    std::vector<float> w(width);
    widen(weight, width, w.data());
#pragma omp for schedule(static)
    for (int64_t first = 0; first < rows; first += BLOCK) {
      const int64_t at = first * width;
      gradient_rows(grad + at, grad_total ? grad_total + at : nullptr, total + at, w.data(),
                    rstd + first, std::min(BLOCK, rows - first), width, d_x + at,
                    shares.of(first));
    }
  }
  shares.sum(d_weight);
}

// Calls f with a null pointer of the stored type.
template <class F>
void typed(bool is_bf16, const F& f) {
  is_bf16 ? f(static_cast<bf16*>(nullptr)) : f(static_cast<float*>(nullptr));
}

template <class P>
using Stored = std::remove_pointer_t<P>;

}  // namespace

void rms_norm_gradient(const bf16* grad, const bf16* grad_total, const bf16* total,
                       const float* weight, const float* rstd, int64_t rows, int64_t width,
                       bf16* d_x, float* d_weight) {
  gradient_rows(grad, grad_total, total, weight, rstd, rows, width, d_x, d_weight);
}

}  // namespace lcpo

LCPO_API void lcpo_rms_norm_forward(const void* x, bool x_bf16, const void* residual,
                                    bool residual_bf16, const void* weight, bool weight_bf16,
                                    int64_t rows, int64_t width, double eps, void* y, void* total,
                                    float* rstd, int32_t threads) {
  lcpo::typed(x_bf16, [&](auto* x_type) {
    lcpo::typed(residual_bf16, [&](auto* residual_type) {
      lcpo::typed(weight_bf16, [&](auto* weight_type) {
        lcpo::forward(static_cast<const lcpo::Stored<decltype(x_type)>*>(x),
                      static_cast<const lcpo::Stored<decltype(residual_type)>*>(residual),
                      static_cast<const lcpo::Stored<decltype(weight_type)>*>(weight), rows, width,
                      eps, y, total, rstd, threads);
      });
    });
  });
}

LCPO_API void lcpo_rms_norm_backward(const void* grad_y, const void* grad_total,
                                     const void* total, bool total_bf16, const void* weight,
                                     bool weight_bf16, const float* rstd, int64_t rows,
                                     int64_t width, void* d_x, void* d_weight, int32_t threads) {
  lcpo::typed(total_bf16, [&](auto* total_type) {
    lcpo::typed(weight_bf16, [&](auto* weight_type) {
      using S = lcpo::Stored<decltype(total_type)>;
      using W = lcpo::Stored<decltype(weight_type)>;
      lcpo::backward(grad_y, static_cast<const S*>(grad_total), static_cast<const S*>(total),
                     static_cast<const W*>(weight), rstd, rows, width, static_cast<S*>(d_x),
                     static_cast<W*>(d_weight), threads);
    });
  });
}
