// The token policy loss and its gradient in one pass; see kernels/torch_ref/policy_loss.py.
//
// Double inside: exp(d) - d - 1 then keeps the digits of small d without an expm1, and sums of
// blocks of a fixed size, added in order, do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <vector>

#include "api.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr double LOG_RATIO_LIMIT = 20.0, KL_LIMIT = 10.0;  // as in the reference
constexpr int64_t BLOCK = 2048;                            // tokens
constexpr int WIDE = 8;                                    // doubles of one AVX-512 register

struct Settings {
  double low, high;  // bounds of the ratio
  double kl_coef, entropy_coef;
  bool corrected;
};

// Columns of R tokens, and of sequences.
struct Tokens {
  const float *logprob, *old, *ref, *entropy, *advantage, *seq_weight;
  const int32_t* seq_ids;
  float *d_logprob, *d_entropy;
};

enum Sum { LOSS, CLIPPED, KL, OLD_KL, ENTROPY, LIVE, SPOILED, SUMS };

struct Block {
  double sum[SUMS] = {};
  double deviation = 0.0;
};

// exp(x) for |x| <= 20, to 1e-12; NaN stays NaN.
LCPO_INLINE double exp_small(double x) {
  constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2**52
  const double shifted = x * LOG2E + to_integer;
  const double r = x - (shifted - to_integer) * LN2;
  double p = 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

LCPO_INLINE double clamped(double x, double low, double high) {
  const double above = x < low ? low : x;
  return above > high ? high : above;
}

template <bool REF, bool ENTROPY_TERM>
LCPO_CLONES void block_loss(const Tokens& t, const Settings& s, int64_t start, int64_t stop,
                            Block* block) {
  double sum[SUMS][WIDE] = {};
  double deviation[WIDE] = {};
  for (int64_t at = start; at < stop; at += WIDE) {
    const int64_t count = std::min<int64_t>(WIDE, stop - at);
    // Lanes beyond the end belong to no sequence: weight 0.
    double logprob[WIDE] = {}, old[WIDE] = {}, ref[WIDE] = {}, entropy[WIDE] = {};
    double a[WIDE] = {}, w[WIDE] = {}, slope[WIDE];
    for (int64_t i = 0; i < count; ++i) {
      logprob[i] = t.logprob[at + i];
      old[i] = t.old[at + i];
      if (REF) ref[i] = t.ref[at + i];
      if (ENTROPY_TERM) entropy[i] = t.entropy[at + i];
      a[i] = t.advantage[t.seq_ids[at + i]];
      w[i] = t.seq_weight[t.seq_ids[at + i]];
    }
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) {
      const bool live = w[i] != 0.0;
      const double log_ratio = logprob[i] - old[i];
      const bool moves = std::fabs(log_ratio) <= LOG_RATIO_LIMIT;
      const double bounded = clamped(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
      const double ratio = exp_small(bounded);
      const double free = -ratio * a[i], cut = -clamped(ratio, s.low, s.high) * a[i];
      const bool clip = cut > free;
      double value = clip ? cut : free;
      double by_logprob = (clip || !moves) ? 0.0 : free;
      double kl = 0.0;
      if (REF) {
        const double gap = ref[i] - logprob[i];
        const double d = clamped(gap, -KL_LIMIT, KL_LIMIT);
        const double e = exp_small(d) - 1.0;
        kl = e - d;
        const double k3 = std::fabs(gap) <= KL_LIMIT ? -e : 0.0;
        value += s.kl_coef * kl;
        by_logprob += s.kl_coef * (s.corrected ? -ratio * d : k3);
      }
      value -= s.entropy_coef * entropy[i];
      const double off = std::fabs(ratio - 1.0);
      // Selected, never multiplied: what a token without weight holds may be inf or NaN.
      slope[i] = live ? w[i] * by_logprob : 0.0;
      sum[LOSS][i] += live ? w[i] * value : 0.0;
      sum[CLIPPED][i] += live && clip ? 1.0 : 0.0;
      sum[KL][i] += live ? kl : 0.0;
      sum[OLD_KL][i] += live ? ratio - 1.0 - bounded : 0.0;
      sum[ENTROPY][i] += live ? entropy[i] : 0.0;
      sum[LIVE][i] += live ? 1.0 : 0.0;
      sum[SPOILED][i] += live ? off - off : 0.0;  // NaN, which a maximum would drop
      deviation[i] = live && off > deviation[i] ? off : deviation[i];
    }
    for (int64_t i = 0; i < count; ++i) {
      t.d_logprob[at + i] = static_cast<float>(slope[i]);
      t.d_entropy[at + i] = static_cast<float>(w[i] != 0.0 ? -w[i] * s.entropy_coef : 0.0);
    }
  }
  for (int i = 0; i < WIDE; ++i) {
    for (int k = 0; k < SUMS; ++k) block->sum[k] += sum[k][i];
    block->deviation = std::max(block->deviation, deviation[i]);
  }
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_policy_loss(const float* logprob, const float* old, const float* ref,
                               const float* entropy, const float* advantage,
                               const float* seq_weight, const int32_t* seq_ids, int64_t rows,
                               double clip_low, double clip_high, double kl_coef, bool corrected,
                               double entropy_coef, float* loss, float* d_logprob,
                               float* d_entropy, float* stats, int32_t threads) {
  using namespace lcpo;
  const Tokens tokens{logprob,    old,     ref,       entropy,  advantage,
                      seq_weight, seq_ids, d_logprob, d_entropy};
  const Settings settings{1.0 - clip_low, 1.0 + clip_high, kl_coef, entropy_coef, corrected};
  const auto run = ref ? (entropy ? block_loss<true, true> : block_loss<true, false>)
                       : (entropy ? block_loss<false, true> : block_loss<false, false>);
  std::vector<Block> blocks((rows + BLOCK - 1) / BLOCK);
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks.size() > 4)
  for (size_t b = 0; b < blocks.size(); ++b) {
    const int64_t start = static_cast<int64_t>(b) * BLOCK;
    run(tokens, settings, start, std::min(start + BLOCK, rows), &blocks[b]);
  }
  Block all;
  for (const Block& block : blocks) {
    for (int k = 0; k < SUMS; ++k) all.sum[k] += block.sum[k];
    all.deviation = std::max(all.deviation, block.deviation);
  }
  const double in_order[] = {all.sum[CLIPPED], all.deviation + all.sum[SPOILED],
                             all.sum[KL],      all.sum[OLD_KL],
                             all.sum[ENTROPY], all.sum[LIVE]};
  *loss = static_cast<float>(all.sum[LOSS]);
  for (int k = 0; k < 6; ++k) stats[k] = static_cast<float>(in_order[k]);
}
