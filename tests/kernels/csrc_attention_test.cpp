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
#include "factors.h"
#include "gemm.h"
#include "intrinsics.h"

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

// Products of A and B as they are told apart by their units: what was packed, and the sum for c[i, j].
struct FloatFactors {
  std::vector<float> a, b;
  FloatFactors(int64_t m, int64_t n, int64_t k) : a(noise(m * k, 0.1f)), b(noise(k * n, 0.2f)) {}
  static double product(float x, float y) { return double{x} * y; }
};
struct PairFactors {
  std::vector<uint32_t> a, b;
  PairFactors(int64_t m, int64_t n, int64_t k) : a(pairs(m * k, 0.1f)), b(pairs(k * n, 0.2f)) {}
  static std::vector<uint32_t> pairs(int64_t size, float phase) {
    const auto x = rounded(noise(2 * size, phase));
    std::vector<uint32_t> y(size);
    for (int64_t i = 0; i < size; ++i) y[i] = x[2 * i] | static_cast<uint32_t>(x[2 * i + 1]) << 16;
    return y;
  }
  static double product(uint32_t x, uint32_t y) {
    const auto low = [](uint32_t z) { return double{lcpo::from_bits(z << 16)}; };
    const auto high = [](uint32_t z) { return double{lcpo::from_bits(z & 0xffff0000u)}; };
    return low(x) * low(y) + high(x) * high(y);
  }
};

// C [m, n] between columns that must stay, for both layouts of A, set and added to.
template <class Factors, class Run>
void test_product(const Run& run, int64_t m, int64_t n, int64_t k) {
  const int64_t ldb = (n + 15) / 16 * 16, ldc = n + 1;
  const Factors f(m, ldb, k);
  for (const bool transposed : {false, true}) {
    for (const bool accumulate : {false, true}) {
      auto c = noise(m * ldc, 0.3f);
      const auto before = c;
      run({m, n, k, f.a.data(), transposed ? m : k, f.b.data(), ldb, c.data(), ldc, transposed,
           accumulate});
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          double want = accumulate ? before[i * ldc + j] : 0.0;
          for (int64_t p = 0; p < k; ++p) {
            want += Factors::product(f.a[transposed ? p * m + i : i * k + p], f.b[p * ldb + j]);
          }
          check(std::fabs(c[i * ldc + j] - want) < 2e-5, "product");
        }
        check(c[i * ldc + n] == before[i * ldc + n], "nothing behind a row");
      }
    }
  }
}

// Rows below, at and above register tiles of 6 and 8; columns that leave 1 to 3 vectors over, and for
// gemm_dot, which has panels of any width, parts of one.
void test_gemm() {
  for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17}) {
    for (const int64_t k : {1, 5, 64}) {
      for (const int64_t n : {16, 32, 48, 64, 80, 128}) {
        for (const auto run : lcpo::gemm_levels<float>()) test_product<FloatFactors>(run, m, n, k);
        for (const auto run : lcpo::gemm_levels<uint32_t>()) test_product<PairFactors>(run, m, n, k);
      }
#ifdef LCPO_BF16_DOT
      if (!lcpo_has_product()) continue;
      for (const int64_t n : {1, 15, 17, 47, 65}) test_product<PairFactors>(lcpo::gemm_dot, m, n, k);
#endif
    }
  }
}

// Rounded by the instruction, where there is one, and without it (columns that fill no register): an
// even and an odd number of rows, whose last pair holds a zero.
void test_factors() {
  for (const int64_t columns : {7, 16, 48}) {
    for (const int64_t rows : {1, 2, 5}) {
      const int64_t stride = 48;
      auto x = noise(rows * stride, 0.4f);
      x[0] = std::nanf("");
      const auto y = rounded(x);
      const auto bits = [&](int64_t r, int64_t j) { return r < rows ? y[r * stride + j] : 0; };
      const auto same = [](lcpo::bf16 a, lcpo::bf16 b) {
        return a == b || (std::isnan(lcpo::load(&a)) && std::isnan(lcpo::load(&b)));
      };
      std::vector<uint32_t> left(rows * stride / 2), pairs((rows + 1) / 2 * stride), of_bf16(pairs);
      lcpo::rounded_left(x.data(), rows, columns, stride, left.data());
      lcpo::right(x.data(), rows, columns, stride, pairs.data());
      lcpo::right(y.data(), rows, columns, stride, of_bf16.data());
      const auto* by_row = reinterpret_cast<const lcpo::bf16*>(left.data());
      for (int64_t j = 0; j < columns; ++j) {
        for (int64_t r = 0; r < rows + rows % 2; ++r) {
          const int64_t at = r / 2 * stride + j, shift = r % 2 * 16;
          if (r < rows) check(same(by_row[r * stride + j], bits(r, j)), "rounded left factor");
          check(same(pairs[at] >> shift & 0xffffu, bits(r, j)), "rounded right factor");
          check(same(of_bf16[at] >> shift & 0xffffu, bits(r, j)), "right factor");
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
  const auto close = [](const auto& x, const auto& want, double tolerance) {
    for (size_t i = 0; i < x.size(); ++i) {
      if (!(std::fabs(lcpo::load(&x[i]) - want[i]) < tolerance)) return false;
    }
    return true;
  };
  check(close(dq, want_dq, 1e-4), "dq");
  check(close(dk, want_dk, 1e-4), "dk");
  check(close(dv, want_dv, 1e-4), "dv");
  // bf16: near those; how near is tested from Python.
  const auto q16 = rounded(q), k16 = rounded(k), v16 = rounded(v), grad16 = rounded(grad);
  std::vector<lcpo::bf16> out16(q.size()), dq16(q.size()), dk16(k.size()), dv16(v.size());
  lcpo_varlen_attention_forward(q16.data(), k16.data(), v16.data(), true, cu_seqlens.data(),
                                prefix, sequences, heads, kv_heads, size, scale, out16.data(), lse.data(),
                                threads);
  lcpo_varlen_attention_backward(grad16.data(), q16.data(), k16.data(), v16.data(), out16.data(),
                                 lse.data(), true, cu_seqlens.data(), prefix, sequences, heads,
                                 kv_heads, size, scale, dq16.data(), dk16.data(), dv16.data(), threads);
  const auto largest = [](const std::vector<double>& x) {
    return std::fabs(*std::max_element(x.begin(), x.end(), [](double a, double b) {
      return std::fabs(a) < std::fabs(b);
    }));
  };
  check(close(out16, out, 2e-2), "bf16 output");
  check(close(dq16, want_dq, 2e-2 * largest(want_dq) + 2e-2), "bf16 dq");
  check(close(dk16, want_dk, 2e-2 * largest(want_dk) + 2e-2), "bf16 dk");
  check(close(dv16, want_dv, 2e-2 * largest(want_dv) + 2e-2), "bf16 dv");
}

// The last token of a sequence, its keys in pages dealt backwards: the bits of the forward pass.
template <class T>
void test_decode(int64_t heads, int64_t kv_heads, int64_t size, int threads) {
  constexpr bool is_bf16 = sizeof(T) == sizeof(lcpo::bf16);
  const auto inputs = [](int64_t count, float phase) {
    const auto x = noise(count, phase);
    if constexpr (is_bf16) {
      return rounded(x);
    } else {
      return x;
    }
  };
  for (const int64_t length : {1, 15, 64, 65, 130}) {
    const auto q = inputs(length * heads * size, 0.0f), k = inputs(length * kv_heads * size, 1.0f);
    const auto v = inputs(length * kv_heads * size, 2.0f);
    const std::vector<int32_t> cu_seqlens = {0, static_cast<int32_t>(length)};
    std::vector<T> want(q.size());
    std::vector<float> lse(heads * length);
    lcpo_varlen_attention_forward(q.data(), k.data(), v.data(), is_bf16, cu_seqlens.data(), nullptr,
                                  1, heads, kv_heads, size, 0.3f, want.data(), lse.data(), threads);
    for (const int64_t page : {1, 3, 16, 256}) {
      const int64_t pages = (length + page - 1) / page, token = kv_heads * size;
      std::vector<T> k_cache(pages * page * token), v_cache(k_cache.size());
      std::vector<int32_t> block_table(pages);
      for (int64_t n = 0; n < pages; ++n) block_table[n] = static_cast<int32_t>(pages - 1 - n);
      for (int64_t t = 0; t < length; ++t) {
        const int64_t slot = block_table[t / page] * page + t % page;
        std::copy_n(&k[t * token], token, &k_cache[slot * token]);
        std::copy_n(&v[t * token], token, &v_cache[slot * token]);
      }
      std::vector<T> out(heads * size);
      const std::vector<T> last(q.end() - heads * size, q.end());
      lcpo_paged_decode_attention(last.data(), k_cache.data(), v_cache.data(), is_bf16,
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
  test_factors();
  for (const auto& [heads, kv_heads, size] : {std::array{6, 2, 64}, {4, 4, 24}, {30, 1, 8}, {3, 1, 5},
                                              {8, 2, 80}}) {
    for (const bool sharing : {false, true}) test_attention(heads, kv_heads, size, threads, sharing);
    test_decode<float>(heads, kv_heads, size, threads);
    test_decode<lcpo::bf16>(heads, kv_heads, size, threads);
  }
  return report();
}
