// AdamW on float32 weights stored as two halves; contract: kernels/ops/adamw_split.py.

#include <cmath>

#include "api.h"
#include "bf16.h"
#include "blocks.h"
#include "simd.h"

namespace lcpo {
namespace {

struct Step {
  float decay, minus_rate, root;  // the step's factors
  float to_grad, beta2, to_square, eps;
  bool near;  // to_grad < 0.5: lerp starts from the nearer end
};

// In the order of torch's fused AdamW, fused multiply-adds where its vector code has them: with
// torch 2.13 and AVX-512 the same bits, but for the last size % 16 entries, which it does one by one.
LCPO_CLONES void update(bf16* weight, int16_t* low, const float* grad, float* exp_avg,
                        float* exp_avg_sq, int64_t size, const Step& step) {
  const Step s = step;
  const float coefficient = s.near ? s.to_grad : s.to_grad - 1.0f;
  LCPO_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits =
        (static_cast<uint32_t>(weight[i]) << 16) + static_cast<uint32_t>(int32_t{low[i]});
    const float g = grad[i], before = exp_avg[i];
    const float m = fused(coefficient, g - before, s.near ? before : g);
    const float v = fused(s.to_square * g, g, exp_avg_sq[i] * s.beta2);
    const float w = from_bits(bits) * s.decay + s.minus_rate * m / (std::sqrt(v) / s.root + s.eps);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    const uint32_t after = to_bits(w);
    weight[i] = static_cast<bf16>((after + 0x8000u) >> 16);
    low[i] = static_cast<int16_t>(after);
  }
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_adamw_split(uint16_t* weight, int16_t* low, const float* grad, float* exp_avg,
                               float* exp_avg_sq, int64_t size, const float* factors,
                               const bool* skip, double beta1, double beta2, double eps,
                               int32_t threads) {
  if (*skip) return;
  const float to_grad = static_cast<float>(1.0 - beta1);
  const lcpo::Step step{factors[0],
                        factors[1],
                        factors[2],
                        to_grad,
                        static_cast<float>(beta2),
                        static_cast<float>(1.0 - beta2),
                        static_cast<float>(eps),
                        to_grad < 0.5f};
  lcpo::over_blocks(size, threads, [&](int64_t at, int64_t count) {
    lcpo::update(weight + at, low + at, grad + at, exp_avg + at, exp_avg_sq + at, count, step);
  });
}
