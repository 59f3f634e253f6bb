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

constexpr int64_t BLOCK = 2048;  // tokens
constexpr int WIDE = 8;          // doubles of one AVX-512 register

struct Settings {
  double low, high;  // bounds of the ratio
  double kl_coef, entropy_coef;
  bool corrected;
  double log_ratio_limit = 20.0, kl_limit = 10.0;  // as in the reference
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

// x where the mask is set, else 0, whatever x is. Not `mask ? x : 0`: out of several of these on one
// condition the compiler makes a branch, and no vector code.
using Mask = int64_t;
LCPO_INLINE Mask mask(bool condition) { return condition ? -1 : 0; }
LCPO_INLINE double masked(double x, Mask keep) {
  Mask bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits &= keep;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// What a token adds: the terms of each lane, then the sums over those with a weight.
template <bool REF, bool ENTROPY_TERM>
LCPO_CLONES void block_loss(const Tokens& t, const Settings& s, int64_t start, int64_t stop,
                            Block* block) {
  double sum[SUMS][WIDE] = {};
  double deviation[WIDE] = {};
  for (int64_t at = start; at < stop; at += WIDE) {
    const int64_t count = std::min<int64_t>(WIDE, stop - at);
    // Lanes beyond the end belong to no sequence: weight 0.
    double logprob[WIDE] = {}, old[WIDE] = {}, ref[WIDE] = {}, entropy[WIDE] = {};
    double a[WIDE] = {}, w[WIDE] = {}, d_logprob[WIDE], d_entropy[WIDE];
    for (int64_t i = 0; i < count; ++i) {
      logprob[i] = t.logprob[at + i];
      old[i] = t.old[at + i];
      if (REF) ref[i] = t.ref[at + i];
      if (ENTROPY_TERM) entropy[i] = t.entropy[at + i];
      a[i] = t.advantage[t.seq_ids[at + i]];
      w[i] = t.seq_weight[t.seq_ids[at + i]];
    }
    Mask live[WIDE], moves[WIDE], clips[WIDE], kl_moves[WIDE];
    double log_ratio[WIDE], ratio[WIDE], value[WIDE], slope[WIDE], gap[WIDE], kl[WIDE] = {};
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) {
      live[i] = mask(w[i] != 0.0);
      const double difference = logprob[i] - old[i];
      moves[i] = mask(std::fabs(difference) <= s.log_ratio_limit);
      log_ratio[i] = clamped(difference, -s.log_ratio_limit, s.log_ratio_limit);
      gap[i] = clamped(ref[i] - logprob[i], -s.kl_limit, s.kl_limit);
      kl_moves[i] = mask(std::fabs(ref[i] - logprob[i]) <= s.kl_limit);
    }
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) {
      ratio[i] = exp_small(log_ratio[i]);
      const double free = -ratio[i] * a[i], cut = -clamped(ratio[i], s.low, s.high) * a[i];
      clips[i] = mask(cut > free);
      value[i] = cut > free ? cut : free;
      slope[i] = masked(free, ~clips[i] & moves[i]);
    }
    if (REF) {
      const Mask corrected = mask(s.corrected);
      LCPO_SIMD
      for (int i = 0; i < WIDE; ++i) {
        const double growth = exp_small(gap[i]) - 1.0;
        kl[i] = growth - gap[i];
        value[i] += s.kl_coef * kl[i];
        slope[i] += s.kl_coef * (masked(-ratio[i] * gap[i], corrected) +
                                 masked(-growth, kl_moves[i] & ~corrected));
      }
    }
    LCPO_SIMD
    for (int i = 0; i < WIDE; ++i) {
      d_logprob[i] = masked(w[i] * slope[i], live[i]);
      d_entropy[i] = masked(-w[i] * s.entropy_coef, live[i]);
      sum[LOSS][i] += masked(w[i] * (value[i] - s.entropy_coef * entropy[i]), live[i]);
      sum[CLIPPED][i] += masked(1.0, live[i] & clips[i]);
      sum[KL][i] += masked(kl[i], live[i]);
      sum[OLD_KL][i] += masked(ratio[i] - 1.0 - log_ratio[i], live[i]);
      sum[ENTROPY][i] += masked(entropy[i], live[i]);
      sum[LIVE][i] += masked(1.0, live[i]);
      const double off = masked(std::fabs(ratio[i] - 1.0), live[i]);
      sum[SPOILED][i] += off - off;  // NaN, which a maximum would drop
      deviation[i] = off > deviation[i] ? off : deviation[i];
    }
    for (int64_t i = 0; i < count; ++i) {
      t.d_logprob[at + i] = static_cast<float>(d_logprob[i]);
      t.d_entropy[at + i] = static_cast<float>(d_entropy[i]);
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
