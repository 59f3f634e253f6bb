// The halves of a layer around its attention: products against sums in double, and runs whose memory
// a sanitizer watches, with one thread and with several. Values are tests/kernels/
// test_half_layers.py's to check.
// Usage: csrc_half_layers_test THREADS

#include <cmath>
#include <cstdlib>
#include <vector>

#include "api.h"
#include "csrc_check.h"
#include "right_factor.h"

#ifdef LCPO_BF16_DOT

namespace {

using lcpo::bf16;
using Values = std::vector<bf16>;

constexpr lcpo::Team ALONE{0, 1, nullptr};

float next = 0.0f;

Values random(int64_t size, float scale) {
  Values x(size);
  for (bf16& entry : x) lcpo::store(&entry, scale * std::sin(next += 1.7f));
  return x;
}

// Rows of two parts through two weights that lie side by side, in gradients' direction.
void test_backward_product(int64_t rows, int64_t inputs, int64_t first, int64_t second) {
  const Values a = random(first * inputs, 0.5f), b = random(second * inputs, 0.5f);
  const Values x = random(rows * first, 1.0f), y = random(rows * second, 1.0f);
  const LcpoLinear l{a.data(), nullptr, first, inputs}, m{b.data(), nullptr, second, inputs};
  const lcpo::RightFactor factor = lcpo::RightFactor::backward({&l, &m});
  factor.pack(ALONE);
  Values out(rows * inputs);
  factor.multiply({{x.data(), first}, {y.data(), second}}, rows, out.data());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < inputs; ++j) {
      double sum = 0.0;
      for (int64_t k = 0; k < first; ++k) {
        sum += double{lcpo::load(&x[r * first + k])} * lcpo::load(&a[k * inputs + j]);
      }
      for (int64_t k = 0; k < second; ++k) {
        sum += double{lcpo::load(&y[r * second + k])} * lcpo::load(&b[k * inputs + j]);
      }
      const double error = std::abs(lcpo::load(&out[r * inputs + j]) - sum);
      check(error <= std::abs(sum) * 0x1p-8 + 1e-4, "a product is what it should be");
    }
  }
}

struct Sizes {
  int64_t tokens, hidden, heads, kv_heads, size, inner;
};

// A linear layer with a bias, and room for its gradients.
struct Layer {
  int64_t outputs, inputs;
  Values weight = random(outputs * inputs, 0.2f), bias = random(outputs, 1.0f);
  std::vector<float> d_weight = std::vector<float>(outputs * inputs, 1.0f);
  Values d_bias = Values(outputs);

  LcpoLinear linear() const { return {weight.data(), bias.data(), outputs, inputs}; }
  LcpoGradient gradient() { return {d_weight.data(), d_bias.data(), true}; }
};

// All that the two halves write, forward and backward.
std::vector<Values> run(const Sizes& s, int32_t threads) {
  const int64_t wide = s.heads * s.size, narrow = s.kv_heads * s.size, n = s.tokens;
  next = 0.0f;
  Layer q{wide, s.hidden}, k{narrow, s.hidden}, v{narrow, s.hidden}, o{s.hidden, wide},
      gate{s.inner, s.hidden}, up{s.inner, s.hidden}, down{s.hidden, s.inner};
  const Values norm(s.hidden, 0x3f80), update(n * s.hidden, 0x3f00), residual(n * s.hidden, 0x3e80);
  const std::vector<float> cos(n * s.size / 2, 0.6f), sin(n * s.size / 2, 0.8f);
  const LcpoHalfLayer half{n, s.hidden, norm.data(), 1e-6};
  const LcpoBefore before{half, q.linear(), k.linear(), v.linear(), cos.data(), sin.data(), s.size,
                          q.gradient(), k.gradient(), v.gradient()};
  const LcpoAfter after{half,         o.linear(),      gate.linear(), up.linear(), down.linear(),
                        o.gradient(), gate.gradient(), up.gradient(), down.gradient()};
  const auto states = [&](int64_t width) { return Values(n * width); };
  Values total = states(s.hidden), q_out = states(wide), k_out = states(narrow);
  Values v_out = states(narrow), sum = states(s.hidden), g = states(s.inner), u = states(s.inner);
  Values out = states(s.hidden), d_x = states(s.hidden), d_attended = states(wide);
  Values d_norm(s.hidden), d_in = states(s.hidden), d_first(s.hidden), dropped = states(s.hidden);
  lcpo_before_attention(&before, update.data(), residual.data(), total.data(), q_out.data(),
                        k_out.data(), v_out.data(), threads);
  lcpo_after_attention(&after, q_out.data(), total.data(), sum.data(), g.data(), u.data(),
                       out.data(), threads);
  lcpo_after_attention(&after, q_out.data(), total.data(), sum.data(), nullptr, nullptr,
                       dropped.data(), threads);
  check(dropped == out, "what is not kept changes nothing");
  lcpo_after_attention_backward(&after, q_out.data(), sum.data(), g.data(), u.data(), out.data(),
                                nullptr, d_x.data(), d_attended.data(), d_norm.data(), threads);
  lcpo_before_attention_backward(&before, total.data(), d_attended.data(), k_out.data(),
                                 v_out.data(), d_x.data(), d_in.data(), d_first.data(), threads);
  std::vector<Values> found{total, q_out, k_out, v_out, sum,        g,      u,
                            out,   d_x,   d_in,  d_norm, d_attended, d_first};
  for (const Layer* layer : {&q, &k, &v, &o, &gate, &up, &down}) {
    found.push_back(layer->d_bias);
    const bf16* bits = reinterpret_cast<const bf16*>(layer->d_weight.data());
    found.emplace_back(bits, bits + 2 * layer->d_weight.size());
  }
  return found;
}

}  // namespace

int main(int argc, char** argv) {
  const int32_t threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (!lcpo_has_product()) return report();
  test_backward_product(1, 2, 2, 2);
  test_backward_product(9, 50, 34, 96);
  test_backward_product(17, 48, 16, 98);
  for (const Sizes& sizes : {Sizes{1, 2, 1, 1, 2, 2}, Sizes{33, 50, 3, 1, 16, 34},
                             Sizes{300, 96, 4, 2, 10, 98}}) {
    check(run(sizes, threads) == run(sizes, 1), "the number of threads does not matter");
  }
  return report();
}

#else
int main() { return report(); }
#endif
