// Attention through the C interface without Python, so that it also runs under the sanitizers: heap
// arrays of exactly the size needed, where an access beyond is an error.
// Usage: csrc_attention_test THREADS

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "csrc_check.h"
#include "gemm.h"

namespace {

std::vector<float> noise(int64_t size, float phase) {
  std::vector<float> x(size);
  for (int64_t i = 0; i < size; ++i) x[i] = std::sin(1.7f * static_cast<float>(i) + phase);
  return x;
}

std::vector<lcpo::bf16> rounded(const std::vector<float>& x) {
  std::vector<lcpo::bf16> y(x.size());
  std::transform(x.begin(), x.end(), y.begin(), lcpo::to_bf16);
  return y;
}

// Rows below, at and above a register tile of 6; columns that leave 1 to 3 vectors over.
void test_gemm() {
  for (const lcpo::GemmRun run : lcpo::gemm_levels()) {
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 17}) {
      for (const int64_t n : {16, 32, 48, 64, 80, 128}) {
        for (const int64_t k : {1, 5, 64}) {
          for (const bool transposed : {false, true}) {
            const auto a = noise(m * k, 0.1f), b = noise(k * n, 0.2f);
            auto c = noise(m * n, 0.3f);
            const auto before = c;
            const int64_t lda = transposed ? m : k;
            run({m, n, k, a.data(), lda, b.data(), n, c.data(), n, transposed, true});
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < n; ++j) {
                double want = before[i * n + j];
                for (int64_t p = 0; p < k; ++p) {
                  want += double{a[transposed ? p * m + i : i * k + p]} * b[p * n + j];
                }
                check(std::fabs(c[i * n + j] - want) < 1e-5, "product");
              }
            }
          }
        }
      }
    }
  }
}

void test_transpose() {
  const auto x = noise(8 * 20, 0.0f);
  std::vector<float> y(20 * 8);
  lcpo::transpose(x.data(), 8, 20, 20, y.data(), 8);
  for (int r = 0; r < 8; ++r) {
    for (int c = 0; c < 20; ++c) check(y[c * 8 + r] == x[r * 20 + c], "transpose");
  }
}

// Sequences around a register and a block of keys; sizes with and without padding to a register. With
// `sharing` the last two, of 65 and 129 tokens, have the one of 17 before them.
void test_attention(int64_t heads, int64_t kv_heads, int64_t size, int threads, bool sharing) {
  const std::vector<int32_t> cu_seqlens = {0, 1, 1, 18, 82, 147, 276};
  const std::vector<int32_t> shares = {-1, -1, -1, -1, 2, 2};
  const int32_t* prefix = sharing ? shares.data() : nullptr;
  const int64_t sequences = 6, tokens = 276, group = heads / kv_heads;
  const float scale = 0.3f;
  const auto q = noise(tokens * heads * size, 0.0f), grad = noise(tokens * heads * size, 1.0f);
  const auto k = noise(tokens * kv_heads * size, 2.0f), v = noise(tokens * kv_heads * size, 3.0f);
  std::vector<float> out(q.size()), lse(heads * tokens), dq(q.size()), dk(k.size()), dv(v.size());
  lcpo_varlen_attention_forward(q.data(), k.data(), v.data(), false, cu_seqlens.data(), prefix,
                                sequences, heads, kv_heads, size, scale, out.data(), lse.data(),
                                threads);
  lcpo_varlen_attention_backward(grad.data(), q.data(), k.data(), v.data(), out.data(), lse.data(),
                                 false, cu_seqlens.data(), prefix, sequences, heads, kv_heads,
                                 size, scale, dq.data(), dk.data(), dv.data(), threads);
  std::vector<double> want_dq(q.size()), want_dk(k.size()), want_dv(v.size());
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t i = cu_seqlens[b]; i < cu_seqlens[b + 1]; ++i) {
      std::vector<int64_t> seen;  // tokens
      if (sharing && shares[b] >= 0) {
        for (int64_t j = cu_seqlens[shares[b]]; j < cu_seqlens[shares[b] + 1]; ++j) seen.push_back(j);
      }
      for (int64_t j = cu_seqlens[b]; j <= i; ++j) seen.push_back(j);
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t row = (i * heads + h) * size;
        const auto key = [&](int64_t j) { return (j * kv_heads + h / group) * size; };
        std::vector<double> p;
        double sum = 0.0, delta = 0.0;
        for (const int64_t j : seen) {
          double score = 0.0;
          for (int64_t d = 0; d < size; ++d) score += double{q[row + d]} * k[key(j) + d];
          p.push_back(std::exp(scale * score));
          sum += p.back();
        }
        check(std::fabs(lse[h * tokens + i] - std::log(sum)) < 1e-5, "log-sum-exp");
        for (int64_t d = 0; d < size; ++d) {
          double want = 0.0;
          for (size_t j = 0; j < p.size(); ++j) want += p[j] / sum * v[key(seen[j]) + d];
          check(std::fabs(out[row + d] - want) < 1e-5, "output");
          delta += want * grad[row + d];
        }
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t at = key(seen[j]);
          double slope = 0.0;
          for (int64_t d = 0; d < size; ++d) slope += double{grad[row + d]} * v[at + d];
          const double ds = scale * p[j] / sum * (slope - delta);
          for (int64_t d = 0; d < size; ++d) {
            want_dq[row + d] += ds * k[at + d];
            want_dk[at + d] += ds * q[row + d];
            want_dv[at + d] += p[j] / sum * grad[row + d];
          }
        }
      }
    }
  }
  const auto close = [](const std::vector<float>& x, const std::vector<double>& want) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (!(std::fabs(x[i] - want[i]) < 1e-4)) return false;
    }
    return true;
  };
  check(close(dq, want_dq), "dq");
  check(close(dk, want_dk), "dk");
  check(close(dv, want_dv), "dv");
  // bf16: here only that it stays within its arrays; the rest is tested from Python.
  const auto q16 = rounded(q), k16 = rounded(k), v16 = rounded(v), grad16 = rounded(grad);
  std::vector<lcpo::bf16> out16(q.size()), dq16(q.size()), dk16(k.size()), dv16(v.size());
  lcpo_varlen_attention_forward(q16.data(), k16.data(), v16.data(), true, cu_seqlens.data(),
                                prefix, sequences, heads, kv_heads, size, scale, out16.data(), lse.data(),
                                threads);
  lcpo_varlen_attention_backward(grad16.data(), q16.data(), k16.data(), v16.data(), out16.data(),
                                 lse.data(), true, cu_seqlens.data(), prefix, sequences, heads,
                                 kv_heads, size, scale, dq16.data(), dk16.data(), dv16.data(), threads);
  check(std::fabs(lcpo::load(out16.data()) - out[0]) < 1e-2, "bf16 output");
}

// The last token of a sequence, its keys in pages dealt backwards: the bits of the forward pass.
void test_decode(int64_t heads, int64_t kv_heads, int64_t size, int threads) {
  for (const int64_t length : {1, 15, 64, 65, 130}) {
    const auto q = noise(length * heads * size, 0.0f), k = noise(length * kv_heads * size, 1.0f);
    const auto v = noise(length * kv_heads * size, 2.0f);
    const std::vector<int32_t> cu_seqlens = {0, static_cast<int32_t>(length)};
    std::vector<float> want(q.size()), lse(heads * length);
    lcpo_varlen_attention_forward(q.data(), k.data(), v.data(), false, cu_seqlens.data(), nullptr,
                                  1, heads, kv_heads, size, 0.3f, want.data(), lse.data(), threads);
    for (const int64_t page : {1, 3, 16, 256}) {
      const int64_t pages = (length + page - 1) / page, token = kv_heads * size;
      std::vector<float> k_cache(pages * page * token), v_cache(k_cache.size());
      std::vector<int32_t> block_table(pages);
      for (int64_t n = 0; n < pages; ++n) block_table[n] = static_cast<int32_t>(pages - 1 - n);
      for (int64_t t = 0; t < length; ++t) {
        const int64_t slot = block_table[t / page] * page + t % page;
        std::copy_n(&k[t * token], token, &k_cache[slot * token]);
        std::copy_n(&v[t * token], token, &v_cache[slot * token]);
      }
      std::vector<float> out(heads * size);
      const std::vector<float> last(q.end() - heads * size, q.end());
      lcpo_paged_decode_attention(last.data(), k_cache.data(), v_cache.data(), false,
                                  block_table.data(), cu_seqlens.data() + 1, 1, page, pages, heads,
                                  kv_heads, size, 0.3f, out.data(), threads);
      check(std::equal(out.begin(), out.end(), want.end() - heads * size), "decode");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  test_gemm();
  test_transpose();
  for (const auto& [heads, kv_heads, size] : {std::array{6, 2, 64}, {4, 4, 24}, {30, 1, 8}}) {
    for (const bool sharing : {false, true}) test_attention(heads, kv_heads, size, threads, sharing);
    test_decode(heads, kv_heads, size, threads);
  }
  return report();
}
