// Sampling by an exponential race; the algorithm is that of kernels/torch_ref/sample_tokens.py.

#include <algorithm>
#include <cmath>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "philox.h"
#include "rows.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int BLOCK = 4 * LANES;  // entries of LANES Philox calls

struct Draw {
  int64_t token;
  float logprob;
  float cut_logprob;
};

struct Row {
  const float* logits;
  int64_t size;
  float temperature;
  float shift;  // max / temperature
  uint64_t seed;
  uint32_t position;

  LCPO_INLINE_MEMBER float z(int64_t j) const { return logits[j] / temperature - shift; }
};

LCPO_INLINE float uniform(uint32_t bits) { return (static_cast<float>(bits) + 0.5f) * 0x1p-32f; }

// Standard exponential variate from 32 bits: -log(1 - u), by a series where u is small.
LCPO_INLINE float exponential(uint32_t bits) {
  const float raw = uniform(bits);
  const float u = raw < 1.0f - 0x1p-24f ? raw : 1.0f - 0x1p-24f;
  const float series = u + u * u * (0.5f + u * (1.0f / 3.0f));
  return u < 0x1p-10f ? series : -log_positive(1.0f - u);
}

// The best entry of each lane so far.
struct Leaders {
  float score[LANES];
  int32_t block[LANES];  // of each lane: the block's first entry plus the quarter's offset

  LCPO_INLINE_MEMBER Leaders() {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      score[i] = -1.0f;
      block[i] = 0;
    }
  }

  LCPO_INLINE_MEMBER void take(const float* weight, const uint32_t* bits, int64_t start) {
    float found[BLOCK];
    LCPO_SIMD
    for (int i = 0; i < BLOCK; ++i) found[i] = weight[i] / exponential(bits[i]);
    for (int part = 0; part < BLOCK; part += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) {
        const bool better = found[part + i] > score[i];  // strict: the first of equals stays
        score[i] = better ? found[part + i] : score[i];
        block[i] = better ? static_cast<int32_t>(start) + part : block[i];
      }
    }
  }

  // The lane of the winner; of equals the one of the lowest entry.
  LCPO_INLINE_MEMBER int lane() const {
    int lane = 0;
    for (int i = 1; i < LANES; ++i) {
      const bool tie_before = score[i] == score[lane] && block[i] < block[lane];
      if (score[i] > score[lane] || tie_before) lane = i;
    }
    return lane;
  }
};

// The whole vocabulary races: winner and sum of weights in one pass over the row. A variate is never
// below its uniform u, so no entry with weight / u under the best score so far can win: few blocks
// have one that can, and only those take logarithms and divide. UNIT: the temperature is 1.
template <bool UNIT>
LCPO_INLINE void race(const Row& row, int64_t* winner, double* total) {
  constexpr float MARGIN = 1.0f - 1e-6f;  // of the comparison's rounding
  Leaders best;
  float bar = -1.0f;
  LaneSum sum;
  uint32_t bits[4 * CALLS];
  float weight[BLOCK];
  for (int64_t start = 0; start < row.size; start += BLOCK) {
    const int64_t count = std::min<int64_t>(BLOCK, row.size - start), at = start % (4 * CALLS);
    if (at == 0) philox_many(static_cast<uint32_t>(start / 4), row.position, row.seed, bits);
    if (count == BLOCK) {
      LCPO_SIMD
      for (int i = 0; i < BLOCK; ++i) {
        weight[i] = UNIT ? row.logits[start + i] - row.shift : row.z(start + i);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) weight[i] = row.z(start + i);
      for (int64_t i = count; i < BLOCK; ++i) weight[i] = -INF;  // weight 0 never wins
    }
    int32_t can_win[LANES] = {};
    for (int part = 0; part < BLOCK; part += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) {
        const float w = exp_nonpositive(weight[part + i]);
        weight[part + i] = w;
        sum.part[i] += w;
        can_win[i] |= w > bar * uniform(bits[at + part + i]);
      }
    }
    if ((start / BLOCK) % 16 == 15) sum.flush();
    int32_t any = 0;
    for (int i = 0; i < LANES; ++i) any |= can_win[i];
    if (!any) continue;
    best.take(weight, bits + at, start);
    bar = best.score[best.lane()] * MARGIN;
  }
  sum.flush();
  *total = sum.whole;
  const int lane = best.lane();
  *winner = best.block[lane] + lane;
}

LCPO_CLONES void race_at_one(const Row& row, int64_t* winner, double* total) {
  race<true>(row, winner, total);
}

LCPO_CLONES void race_at_any(const Row& row, int64_t* winner, double* total) {
  race<false>(row, winner, total);
}

LCPO_CLONES void widen(const bf16* x, int64_t size, float* out) { widened(x, size, out); }

LCPO_CLONES void fill_weights(const Row& row, float* weight, double* total) {
  LaneSum sum;
  int64_t j = 0;
  for (; j + LANES <= row.size; j += LANES) {
    LCPO_SIMD
    for (int i = 0; i < LANES; ++i) {
      weight[j + i] = exp_nonpositive(row.z(j + i));
      sum.part[i] += weight[j + i];
    }
    if ((j / LANES) % 64 == 63) sum.flush();
  }
  sum.flush();
  for (; j < row.size; ++j) {
    weight[j] = exp_nonpositive(row.z(j));
    sum.whole += weight[j];
  }
  *total = sum.whole;
}

// Ids that survive top-k, then top-p, best first.
void keep(const Row& row, const std::vector<float>& weight, double total, int64_t top_k,
          double top_p, std::vector<int32_t>& kept) {
  const auto better = [&](int32_t a, int32_t b) {
    return row.logits[a] != row.logits[b] ? row.logits[a] > row.logits[b] : a < b;
  };
  kept.clear();
  // Without top-k, entries this light weigh less than (1 - top_p) together and can only be cut.
  const bool cut_k = top_k > 0 && top_k < row.size;
  const double floor = cut_k ? -1.0 : (1.0 - top_p) * total / static_cast<double>(row.size) * 0.5;
  for (int64_t j = 0; j < row.size; ++j) {
    if (weight[j] >= floor) kept.push_back(static_cast<int32_t>(j));
  }
  if (cut_k) {
    std::nth_element(kept.begin(), kept.begin() + (top_k - 1), kept.end(), better);
    kept.resize(top_k);
  }
  if (top_p >= 1.0) return;
  std::sort(kept.begin(), kept.end(), better);
  double mass = total;
  if (cut_k) {
    mass = 0.0;
    for (const int32_t j : kept) mass += weight[j];
  }
  double before = 0.0;
  size_t count = 0;
  while (count < kept.size() && (count == 0 || before < top_p * mass)) {
    before += weight[kept[count++]];
  }
  kept.resize(count);
}

Draw draw_cut(const Row& row, int64_t top_k, double top_p) {
  std::vector<float> weight(row.size);
  std::vector<int32_t> kept;
  double total = 0.0;
  fill_weights(row, weight.data(), &total);
  keep(row, weight, total, top_k, top_p, kept);
  double cut_total = 0.0;
  float best = -1.0f;
  int64_t winner = 0;
  uint32_t bits[4];
  for (const int32_t j : kept) {
    philox<1>(static_cast<uint32_t>(j / 4), row.position, row.seed, bits);
    const float score = weight[j] / exponential(bits[j % 4]);
    if (score > best || (score == best && j < winner)) {  // of equals the lowest id
      best = score;
      winner = j;
    }
    cut_total += weight[j];
  }
  const double z = row.z(winner);
  return {winner, static_cast<float>(z - std::log(total)),
          static_cast<float>(z - std::log(cut_total))};
}

Draw draw(const float* logits, int64_t size, float temperature, int64_t top_k, double top_p,
          int64_t seed, int64_t position) {
  const float peak = row_max(logits, size);
  if (!std::isfinite(peak)) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    return {-1, nan, nan};
  }
  if (temperature == 0.0f) {
    return {std::find(logits, logits + size, peak) - logits, 0.0f, 0.0f};
  }
  const Row row{logits,      size, temperature, peak / temperature, static_cast<uint64_t>(seed),
                static_cast<uint32_t>(position)};
  if ((top_k > 0 && top_k < size) || top_p < 1.0) return draw_cut(row, top_k, top_p);
  Draw out{};
  double total = 0.0;
  (temperature == 1.0f ? race_at_one : race_at_any)(row, &out.token, &total);
  out.logprob = static_cast<float>(row.z(out.token) - std::log(total));
  out.cut_logprob = out.logprob;
  return out;
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_sample_tokens(const void* logits, bool is_bf16, int64_t rows, int64_t stride,
                                 int64_t vocab_size, float temperature, int64_t top_k,
                                 double top_p, const int64_t* seeds, const int64_t* positions,
                                 int64_t* tokens, float* logprob, float* cut_logprob,
                                 int32_t threads) {
#pragma omp parallel num_threads(threads) if (rows > 1)
  {
    std::vector<float> room(is_bf16 ? vocab_size : 0);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < rows; ++b) {
      const float* row = room.data();
      if (is_bf16) {
        lcpo::widen(static_cast<const lcpo::bf16*>(logits) + b * stride, vocab_size, room.data());
      } else {
        row = static_cast<const float*>(logits) + b * stride;
      }
      const lcpo::Draw out =
          lcpo::draw(row, vocab_size, temperature, top_k, top_p, seeds[b], positions[b]);
      tokens[b] = out.token;
      logprob[b] = out.logprob;
      cut_logprob[b] = out.cut_logprob;
    }
  }
}
