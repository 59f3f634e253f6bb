// LCPO rewards and advantages of groups; the formulas are in kernels/torch_ref/lcpo_advantage.py.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "api.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int32_t EXACT = 1, MAX = 2;
enum Estimator : int32_t { GRPO, DR_GRPO, RLOO };

float sigmoid(float x) { return static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x)))); }

struct Group {
  float low = INF;
  int64_t count = 0;
  double sum = 0.0, squares = 0.0;
};

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_lcpo_advantage(const float* correct, const int32_t* n_y, const int32_t* n_gold,
                                  const int32_t* mode, const int32_t* group, int64_t rows,
                                  int64_t groups, bool sigmoid, float alpha_exact, float alpha_max,
                                  float delta, int32_t estimator, double eps, float* length,
                                  float* reward, float* advantage) {
  std::vector<lcpo::Group> all(groups);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t left = static_cast<int64_t>(n_gold[i]) - n_y[i];
    const float slack = static_cast<float>(left), off = static_cast<float>(std::llabs(left));
    reward[i] = correct[i];
    if (mode[i] == lcpo::EXACT) {
      reward[i] = sigmoid ? lcpo::sigmoid(-alpha_exact * off) + correct[i]
                          : correct[i] - alpha_exact * off;
    } else if (mode[i] == lcpo::MAX) {
      const float within = left >= 0 ? 0.1f : 0.0f;
      reward[i] = sigmoid
                      ? std::clamp(lcpo::sigmoid(alpha_max * slack) + within, 0.0f, 1.0f) +
                            correct[i]
                      : correct[i] * std::clamp(alpha_max * slack + delta, 0.0f, 1.0f);
    }
    length[i] = reward[i] - correct[i];
    lcpo::Group& g = all[group[i]];
    g.low = std::min(g.low, reward[i]);
    ++g.count;
  }
  // Relative to the group's minimum equal rewards are zeros, and so are their advantages, exactly.
  for (int64_t i = 0; i < rows; ++i) all[group[i]].sum += reward[i] - all[group[i]].low;
  const auto centred = [&](int64_t i) {
    const lcpo::Group& g = all[group[i]];
    return (reward[i] - g.low) - g.sum / static_cast<double>(g.count);
  };
  for (int64_t i = 0; i < rows; ++i) all[group[i]].squares += centred(i) * centred(i);
  for (int64_t i = 0; i < rows; ++i) {
    const lcpo::Group& g = all[group[i]];
    const double others = std::max<double>(static_cast<double>(g.count) - 1.0, 1.0);
    double scale = 1.0;
    if (estimator == lcpo::RLOO) scale = static_cast<double>(g.count) / others;
    if (estimator == lcpo::GRPO) scale = 1.0 / (std::sqrt(g.squares / others) + eps);
    advantage[i] = static_cast<float>(centred(i) * scale);
  }
}
