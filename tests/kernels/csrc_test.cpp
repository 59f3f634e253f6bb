// Tests of the C interface without Python, so that they also run under the sanitizers.
// Usage: csrc_test THREADS

#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "csrc_check.h"
#include "philox.h"
#include "simd.h"

namespace {

// The first two vectors of Random123's kat_vectors that fit the counter layout (c2 = c3 = 0).
void test_philox() {
  uint32_t one[4], many[64];
  lcpo::philox<1>(0, 0, 0, one);
  check(one[0] == 0x6627e8d5u && one[1] == 0xe169c58du, "philox words 0 and 1");
  check(one[2] == 0xbc57ac4cu && one[3] == 0x9b00dbd8u, "philox words 2 and 3");
  lcpo::philox<16>(5, 7, 0x123456789abcdefull, many);
  for (uint32_t lane = 0; lane < 16; ++lane) {
    lcpo::philox<1>(5 + lane, 7, 0x123456789abcdefull, one);
    for (int word = 0; word < 4; ++word) {
      check(one[word] == many[4 * lane + word], "philox lanes are independent calls");
    }
  }
}

void test_exp_and_log() {
  for (float x = -87.0f; x <= 0.0f; x += 0.0137f) {
    const double want = std::exp(static_cast<double>(x));
    check(std::fabs(lcpo::exp_nonpositive(x) - want) <= 3e-7 * want, "exp within 2 ulp");
  }
  for (float y = -126.0f; y <= 1.0f; y += 0.0137f) {
    const double want = std::exp2(static_cast<double>(y));
    check(std::fabs(lcpo::exp2_clamped(y) - want) <= 3e-7 * want, "exp2 within 2 ulp");
  }
  check(lcpo::exp2_clamped(0.0f) == 1.0f, "exp2(0) = 1");
  check(lcpo::exp2_clamped(lcpo::clamp_exponent(-lcpo::INF)) == 0.0f, "exp2(-inf) = 0");
  check(std::isnan(lcpo::exp2_clamped(lcpo::clamp_exponent(std::nanf("")))), "exp2(NaN) is NaN");
  check(lcpo::exp_nonpositive(0.0f) == 1.0f, "exp(0) = 1");
  check(lcpo::exp_nonpositive(-lcpo::INF) == 0.0f, "exp(-inf) = 0");
  check(std::isnan(lcpo::exp_nonpositive(std::nanf(""))), "exp(NaN) is NaN");
  for (float x = 6e-8f; x < 3.0f; x *= 1.01f) {
    const double want = std::log(static_cast<double>(x));
    check(std::fabs(lcpo::log_positive(x) - want) <= 2e-7 * std::fabs(want) + 1e-7, "log");
  }
}

void test_bf16() {
  // exact; ties to even, down and up; above a tie; overflow to infinity; a NaN in the low half only
  const struct { uint32_t from; uint16_t want; } cases[] = {
      {0x3f800000u, 0x3f80}, {0x3f808000u, 0x3f80}, {0x3f818000u, 0x3f82}, {0x3f808001u, 0x3f81},
      {0x7f7fffffu, 0x7f80}, {0xff800000u, 0xff80}, {0x7f800001u, 0x7fc0}};
  for (const auto& one : cases) {
    check(lcpo::to_bf16(lcpo::from_bits(one.from)) == one.want, "rounding to bf16");
  }
  const lcpo::bf16 half = 0x3f00;
  check(lcpo::load(&half) == 0.5f, "bf16 to float");
}

// Heap arrays of exactly the size needed: an access beyond is an address-sanitizer error. The
// sizes straddle a register (16 floats), a Philox block (64 entries) and a flush of the sums.
void test_rows(int threads) {
  for (const int64_t columns : {1, 3, 15, 16, 17, 63, 64, 65, 129, 1024, 2053}) {
    const int64_t rows = 5;
    std::vector<float> logits(rows * columns);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(1.7f * static_cast<float>(i));
    std::vector<int64_t> targets(rows), seeds(rows, 11), positions(rows), tokens(rows);
    for (int64_t r = 0; r < rows; ++r) {
      targets[r] = (3 * r) % columns;
      positions[r] = r;
    }
    std::vector<float> logprob(rows), stats(3 * rows), sampled(rows), cut(rows), grad(rows, 0.5f);
    lcpo_logprob_forward(logits.data(), false, rows, columns, columns, 0.7f, targets.data(),
                         logprob.data(), stats.data(), threads);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t j = 0; j < columns; ++j) sum += std::exp(logits[r * columns + j] / 0.7);
      const double want = logits[r * columns + targets[r]] / 0.7 - std::log(sum);
      check(std::fabs(logprob[r] - want) < 1e-5, "log-prob of the target");
    }
    for (const int64_t top_k : {int64_t{0}, int64_t{1}, columns}) {
      for (const double top_p : {1.0, 0.5}) {
        lcpo_sample_tokens(logits.data(), false, rows, columns, columns, 0.7f, top_k, top_p,
                           seeds.data(), positions.data(), tokens.data(), sampled.data(), cut.data(), threads);
        for (int64_t r = 0; r < rows; ++r) {
          check(tokens[r] >= 0 && tokens[r] < columns, "token in the vocabulary");
          check(cut[r] >= sampled[r] && cut[r] <= 1e-6f, "cutting raises the probability");
        }
      }
    }
    lcpo_logprob_backward(logits.data(), false, rows, columns, columns, 0.7f, targets.data(),
                          stats.data(), grad.data(), nullptr, logits.data(), columns, threads);
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t j = 0; j < columns; ++j) sum += logits[r * columns + j];
      check(std::fabs(sum) < 1e-5, "the gradient of a softmax row sums to 0");
    }
  }
}

void test_count_lengths() {
  const int64_t eos = 9, pattern[2] = {4, 5};
  // whole; empty; no end of thinking; end of thinking after EOS; pattern cut by the next sequence
  const int64_t ids[] = {1, 4, 5, 9, 9, 1, 9, 1, 9, 4, 5, 1, 4, 5, 9};
  const int32_t cu_seqlens[] = {0, 5, 5, 7, 11, 13, 15};
  int32_t total[6], think[6], answer[6];
  bool truncated[6];
  lcpo_count_lengths(ids, cu_seqlens, 6, eos, pattern, 2, total, think, answer, truncated);
  const int32_t want_total[] = {4, 0, 2, 2, 2, 2}, want_think[] = {3, 0, 2, 2, 2, 2};
  const bool want_truncated[] = {false, true, false, false, true, false};
  for (int b = 0; b < 6; ++b) {
    check(total[b] == want_total[b], "n_total");
    check(think[b] == want_think[b] && answer[b] == total[b] - think[b], "n_think, n_answer");
    check(truncated[b] == want_truncated[b], "truncated");
  }
}

// An odd k, and edges that fill no panel; sums of small integers are exact.
void test_product(int threads) {
  if (!lcpo_has_product()) return;
  const int64_t m = 11, n = 50, k = 7;
  std::vector<uint16_t> a(m * k), b(k * n);
  for (int64_t i = 0; i < m * k; ++i) a[i] = lcpo::to_bf16(static_cast<float>(i % 5 - 2));
  for (int64_t i = 0; i < k * n; ++i) b[i] = lcpo::to_bf16(static_cast<float>(i % 7 - 3));
  std::vector<float> c(m * n, 1.0f);
  lcpo_product(a.data(), false, k, b.data(), n, m, n, k, c.data(), n, true, threads);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      float want = 1.0f;
      for (int64_t p = 0; p < k; ++p) want += lcpo::load(&a[i * k + p]) * lcpo::load(&b[p * n + j]);
      check(c[i * n + j] == want, "product of bf16 matrices");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  test_philox();
  test_exp_and_log();
  test_bf16();
  test_rows(threads);
  test_product(threads);
  test_count_lengths();
  return report();
}
