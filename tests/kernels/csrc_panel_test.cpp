// Products with bf16 weights, by AVX-512 and by AMX, against sums in double.
// Usage: csrc_panel_test THREADS

#include <cmath>
#include <vector>

#include "amx.h"
#include "api.h"
#include "csrc_check.h"
#include "packed.h"
#include "panel_bf16.h"
#include "product.h"

namespace {

using lcpo::bf16;

std::vector<bf16> random(int64_t size, float scale) {
  static float next = 0.0f;
  std::vector<bf16> x(size);
  for (bf16& entry : x) lcpo::store(&entry, scale * std::sin(next += 1.7f));
  return x;
}

// Outputs and inputs that fill tiles, and some that do not; a part of the panels only.
void test_multiply(int64_t outputs, int64_t inputs, bool with_bias) {
  const std::vector<bf16> weight = random(outputs * inputs, 0.5f), bias = random(outputs, 1.0f);
  const int64_t most = 2 * lcpo::PANEL_ROWS + 3, last = lcpo::panels(true, outputs);
  const std::vector<bf16> x = random(most * inputs, 1.0f);
  const LcpoLinear linear{weight.data(), with_bias ? bias.data() : nullptr, outputs, inputs};
  std::vector<bf16> all(most * outputs);
  lcpo::multiply(linear, x.data(), most, 0, last, all.data());
  for (int64_t r = 0; r < most; r += 13) {
    for (int64_t j = 0; j < outputs; ++j) {
      double sum = with_bias ? lcpo::load(&bias[j]) : 0.0;
      for (int64_t k = 0; k < inputs; ++k) {
        sum += double{lcpo::load(&x[r * inputs + k])} * lcpo::load(&weight[j * inputs + k]);
      }
      const double error = std::abs(lcpo::load(&all[r * outputs + j]) - sum);
      check(error <= std::abs(sum) * 0x1p-8 + 1e-4, "a product is what it should be");
    }
  }
  for (const int64_t rows : {1, 7, 8, 9, 16, 17, 31, 33, 40, 56, 64, 129}) {
    std::vector<bf16> some(rows * outputs, 7);
    lcpo::multiply(linear, x.data(), rows, 1, last, some.data());
    bool same = true, left_alone = true;
    for (int64_t i = 0; i < rows * outputs; ++i) {
      const bool mine = i % outputs >= lcpo::PANEL;
      same &= !mine || some[i] == all[i];
      left_alone &= mine || some[i] == 7;
    }
    check(same, "a row does not depend on the others");
    check(left_alone, "other panels are left alone");
  }
}

#ifdef LCPO_BF16_DOT
// The product of training by AMX and by AVX-512: edges of tiles, and pairs that are halved.
void test_products(bool transposed, bool add, int64_t m, int64_t n, int64_t k) {
  const std::vector<bf16> a = random(m * k, 0.5f), b = random(k * n, 1.0f);
  std::vector<float> c(m * n, 1.0f), other(m * n, 1.0f);
  lcpo::Product product{a.data(), transposed, transposed ? m : k, b.data(), n,
                        m,        n,          k,                  c.data(), n, add};
  lcpo::product_dot(product, 2);
  product.c = other.data();
  lcpo::product_amx(product, 2);
  for (int64_t i = 0; i < m * n; ++i) {
    check(std::abs(c[i] - other[i]) <= 1e-4f * (1.0f + std::abs(c[i])), "both products agree");
  }
}

// Both kernels on the same operands: they differ in the order of their sums only.
void test_kernels() {
  constexpr int64_t pairs = 48, rows = 24, outputs = 2 * lcpo::PANEL;
  const std::vector<bf16> w = random(outputs * pairs * 2, 0.5f), x = random(32 * pairs * 2, 1.0f);
  std::vector<float> c(outputs * lcpo::PANEL_ROWS), other(c.size());
  lcpo::PanelBf16 panel{reinterpret_cast<const uint32_t*>(w.data()),
                        reinterpret_cast<const uint32_t*>(x.data()), outputs, pairs, rows,
                        c.data()};
  lcpo::panel_dot(panel);
  panel.c = other.data();
  const lcpo::Amx tiles;
  lcpo::panel_amx(panel);
  for (int64_t i = 0; i < outputs; ++i) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = i * lcpo::PANEL_ROWS + r;
      check(std::abs(c[at] - other[at]) <= 1e-4f * (1.0f + std::abs(c[at])), "both kernels agree");
    }
  }
}
#endif

}  // namespace

int main() {
  if (!lcpo_has_product()) return report();
  for (const bool with_bias : {false, true}) {
    test_multiply(48, 96, with_bias);
    test_multiply(112, 576, with_bias);
    test_multiply(40, 64, with_bias);
    test_multiply(48, 70, with_bias);
  }
#ifdef LCPO_BF16_DOT
  if (lcpo::has_amx()) {
    test_kernels();
    for (const bool transposed : {false, true}) {
      for (const bool add : {false, true}) {
        test_products(transposed, add, 1, 1, 1);
        test_products(transposed, add, 33, 17, 31);
        test_products(transposed, add, 64, 96, 130);
      }
    }
  }
#endif
  return report();
}
