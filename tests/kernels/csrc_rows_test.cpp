// The row-wise model ops and the token loss through the C interface, for the sanitizers: heap arrays
// of exactly the size needed, where an access beyond is an error.
// Usage: csrc_rows_test THREADS

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "csrc_check.h"

namespace {

// float32 or bf16 values with what they stand for.
struct Data {
  explicit Data(int64_t size, bool is_bf16, float phase) : low(is_bf16), value(size), half(size) {
    for (int64_t i = 0; i < size; ++i) value[i] = std::sin(1.7f * static_cast<float>(i) + phase);
    std::transform(value.begin(), value.end(), half.begin(), lcpo::to_bf16);
    if (low) read();
  }
  void* data() { return low ? static_cast<void*>(half.data()) : value.data(); }
  // After a kernel wrote to data().
  void read() {
    if (!low) return;
    for (size_t i = 0; i < half.size(); ++i) value[i] = lcpo::load(&half[i]);
  }
  double operator[](int64_t i) const { return value[i]; }

  bool low;
  std::vector<float> value;
  std::vector<lcpo::bf16> half;
};

bool near(double got, double want, bool low) {
  return std::fabs(got - want) <= (low ? 1e-2 : 1e-5) * (1.0 + std::fabs(want));
}

// Widths below, at and above one and two registers; rows of one block and of two.
void test_rms_norm(int threads) {
  for (const bool low : {false, true}) {
    for (const int64_t width : {1, 15, 16, 17, 31, 32, 33, 129}) {
      const int64_t rows = 35;
      Data x(rows * width, low, 0.1f), residual(rows * width, low, 0.2f), w(width, low, 0.3f);
      Data y(rows * width, low, 0.0f), total(rows * width, low, 0.0f), d_x(rows * width, low, 0.0f);
      Data d_w(width, low, 0.0f);
      std::vector<float> rstd(rows);
      lcpo_rms_norm_forward(x.data(), low, residual.data(), low, w.data(), low, rows, width, 1e-6,
                            y.data(), total.data(), rstd.data(), threads);
      lcpo_rms_norm_backward(y.data(), nullptr, total.data(), low, w.data(), low, rstd.data(), rows,
                             width, d_x.data(), d_w.data(), threads);
      for (Data* written : {&y, &total, &d_w}) written->read();
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0.0;
        for (int64_t j = 0; j < width; ++j) squares += std::pow(total[r * width + j], 2);
        const double scale = 1.0 / std::sqrt(squares / static_cast<double>(width) + 1e-6);
        for (int64_t j = 0; j < width; ++j) {
          const int64_t i = r * width + j;
          check(near(total[i], x[i] + residual[i], low), "x + residual");
          check(near(y[i], w[j] * total[i] * scale, low), "rms_norm");
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        double want = 0.0;
        for (int64_t r = 0; r < rows; ++r) want += y[r * width + j] * total[r * width + j] * rstd[r];
        check(near(d_w[j], want, low), "gradient of the weight");
      }
      lcpo_rms_norm_forward(x.data(), low, nullptr, low, w.data(), low, rows, width, 1e-6,
                            y.data(), nullptr, rstd.data(), threads);
    }
  }
}

void test_rope(int threads) {
  for (const bool low : {false, true}) {
    for (const int64_t half : {1, 15, 16, 17, 64}) {
      const int64_t tokens = 5, q_heads = 3, k_heads = 2, size = 2 * half;
      const int64_t wide = (q_heads + k_heads) * size;  // q and k are slices of one tensor
      Data x(tokens * wide, low, 0.1f);
      Data q(tokens * q_heads * size, low, 0.0f), k(tokens * k_heads * size, low, 0.0f);
      std::vector<float> cos(tokens * half, 0.6f), sin(tokens * half, 0.8f);
      const int64_t strides[] = {wide, size, wide, size};
      const int64_t offset = q_heads * size;
      const void* k_in = low ? static_cast<const void*>(x.half.data() + offset)
                             : x.value.data() + offset;
      lcpo_rope(x.data(), k_in, low, cos.data(), sin.data(), tokens, q_heads, k_heads, half,
                strides, q.data(), k.data(), threads);
      k.read();
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < k_heads; ++h) {
          for (int64_t i = 0; i < half; ++i) {
            const int64_t from = t * wide + offset + h * size + i, to = (t * k_heads + h) * size + i;
            check(near(k[to], 0.6 * x[from] - 0.8 * x[from + half], low), "first half");
            check(near(k[to + half], 0.6 * x[from + half] + 0.8 * x[from], low), "second half");
          }
        }
      }
    }
  }
}

void test_swiglu(int threads) {
  for (const bool low : {false, true}) {
    for (const int64_t size : {1, 15, 16, 17, 4096, 17000}) {
      Data gate(size, low, 0.1f), up(size, low, 0.2f), grad(size, low, 0.3f);
      Data out(size, low, 0.0f), d_gate(size, low, 0.0f), d_up(size, low, 0.0f);
      lcpo_swiglu_forward(gate.data(), up.data(), low, size, out.data(), threads);
      lcpo_swiglu_backward(grad.data(), gate.data(), up.data(), low, size, d_gate.data(),
                           d_up.data(), threads);
      for (Data* written : {&out, &d_gate, &d_up}) written->read();
      for (int64_t i = 0; i < size; ++i) {
        const double s = 1.0 / (1.0 + std::exp(-gate[i]));
        check(near(out[i], gate[i] * s * up[i], low), "swiglu");
        check(near(d_up[i], grad[i] * gate[i] * s, low), "d_up");
        const double want = grad[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        check(near(d_gate[i], want, low), "d_gate");
      }
    }
  }
}

// Sizes as above; the second step is skipped.
void test_adamw_split(int threads) {
  for (const int64_t size : {0, 1, 15, 16, 17, 4096, 17000}) {
    const Data start(size, false, 0.1f), grad(size, false, 0.2f);
    std::vector<lcpo::bf16> weight(start.half);
    std::vector<int16_t> rest(size);
    std::vector<float> m(size, 0.1f), v(size, 0.2f);
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t bits = lcpo::to_bits(start.value[i]);
      weight[i] = static_cast<lcpo::bf16>((bits + 0x8000u) >> 16);
      rest[i] = static_cast<int16_t>(bits);
    }
    const float factors[] = {0.9f, -0.01f, 0.5f};
    for (const bool skip : {false, true}) {
      lcpo_adamw_split(weight.data(), rest.data(), grad.value.data(), m.data(), v.data(), size,
                       factors, &skip, 0.9, 0.99, 1e-8, threads);
    }
    for (int64_t i = 0; i < size; ++i) {
      const double g = grad[i], first = 0.09 + 0.1 * g, second = 0.198 + 0.01 * g * g;
      check(near(m[i], first, false) && near(v[i], second, false), "moments");
      const double want = 0.9 * start[i] - 0.01 * first / (std::sqrt(second) / 0.5 + 1e-8);
      const uint32_t bits = (static_cast<uint32_t>(weight[i]) << 16) +
                            static_cast<uint32_t>(static_cast<int32_t>(rest[i]));
      check(near(lcpo::from_bits(bits), want, false), "weight");
    }
  }
}

// Rows below, at and above the lanes, and more than the blocks that wake threads.
void test_policy_loss(int threads) {
  for (const int64_t rows : {0, 1, 7, 8, 9, 2049, 11000}) {
    const Data logprob(rows, false, 0.1f), old(rows, false, 0.15f), entropy(rows, false, 0.3f);
    const std::vector<float> advantage{1.0f, -2.0f, NAN}, weight{0.5f, 0.25f, 0.0f};
    std::vector<int32_t> ids(rows);
    for (int64_t i = 0; i < rows; ++i) ids[i] = static_cast<int32_t>(i % 3);
    std::vector<float> d_logprob(rows), d_entropy(rows), loss(1), stats(6);
    for (const float* ref : {static_cast<const float*>(nullptr), old.value.data()}) {
      lcpo_policy_loss(logprob.value.data(), old.value.data(), ref, ref ? entropy.value.data() : ref,
                       advantage.data(), weight.data(), ids.data(), rows, 0.2, 0.2,
                       ref ? 0.1 : 0.0, true, ref ? 0.01 : 0.0, loss.data(), d_logprob.data(),
                       d_entropy.data(), stats.data(), threads);
      double want = 0.0;
      for (int64_t i = 0; i < rows; ++i) {
        check(ids[i] != 2 || (d_logprob[i] == 0.0f && d_entropy[i] == 0.0f), "no weight");
        if (ids[i] == 2) continue;
        const double gap = logprob[i] - old[i], ratio = std::exp(gap), a = advantage[ids[i]];
        double value = std::max(-ratio * a, -std::clamp(ratio, 0.8, 1.2) * a);
        if (ref) value += 0.1 * (std::exp(-gap) + gap - 1.0) - 0.01 * entropy[i];
        want += weight[ids[i]] * value;
      }
      check(near(loss[0], want, false), "policy loss");
      check(stats[5] == static_cast<float>(rows - rows / 3), "tokens");
    }
  }
}

void test_lcpo_advantage() {
  // Exact mode, 1 and 3 tokens off; max mode within; a group of one; an empty group.
  const std::vector<float> correct{1, 1, 0, 1};
  const std::vector<int32_t> n_y{9, 7, 5, 20}, n_gold{10, 10, 10, 10}, mode{1, 1, 2, 0};
  const std::vector<int32_t> group{0, 0, 0, 2};
  std::vector<float> length(4), reward(4), advantage(4);
  lcpo_lcpo_advantage(correct.data(), n_y.data(), n_gold.data(), mode.data(), group.data(), 4, 3,
                      false, 0.1f, 0.1f, 0.5f, 1, 1e-6, length.data(), reward.data(),
                      advantage.data());
  const double want[] = {0.9, 0.7, 0.0, 1.0};
  for (int i = 0; i < 4; ++i) check(near(reward[i], want[i], false), "reward");
  for (int i = 0; i < 3; ++i) check(near(advantage[i], want[i] - 1.6 / 3, false), "advantage");
  check(advantage[3] == 0.0f && near(length[1], -0.3, false), "group of one, length term");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  test_rms_norm(threads);
  test_rope(threads);
  test_swiglu(threads);
  test_adamw_split(threads);
  test_policy_loss(threads);
  test_lcpo_advantage();
  return report();
}
