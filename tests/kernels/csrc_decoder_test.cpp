// A small decoder through prefill and decode steps, without Python, so that it also runs under the
// sanitizers. Usage: csrc_decoder_test THREADS

#include <cmath>
#include <cstdlib>
#include <list>
#include <type_traits>
#include <vector>

#include "api.h"
#include "bf16.h"
#include "csrc_check.h"
#include "packed.h"

namespace {

constexpr int64_t HIDDEN = 20, HEADS = 4, KV_HEADS = 2, SIZE = 6, INNER = 70, PAGE = 3, PAGES = 9;
constexpr int64_t TILE = 20;  // of the 50 logits that count: two whole ones and a part

// Heap arrays of exactly the size needed: an access beyond is an address-sanitizer error.
template <class T>
struct Model {
  std::list<std::vector<T>> kept;
  std::list<std::vector<float>> packed;
  LcpoDecodeLayer layers[2];
  LcpoDecodeModel model;
  float next = 0.0f;

  const T* random(int64_t size, float scale, float mean = 0.0f) {
    std::vector<T> x(size);
    for (T& entry : x) lcpo::store(&entry, mean + scale * std::sin(next += 1.7f));
    kept.push_back(x);
    return kept.back().data();
  }
  LcpoLinear linear(int64_t outputs, int64_t inputs, bool bias) {
    const T* weight = random(outputs * inputs, 0.3f);
    const T* add = bias ? random(outputs, 0.3f) : nullptr;
    if constexpr (std::is_same_v<T, float>) {
      packed.emplace_back(lcpo_packed_bytes(outputs, inputs) / sizeof(float));
      lcpo_pack(weight, outputs, inputs, packed.back().data(), 2);
      return {packed.back().data(), add, outputs, inputs};
    }
    return {weight, add, outputs, inputs};
  }
  explicit Model(int64_t vocabulary) {
    for (LcpoDecodeLayer& l : layers) {
      const bool first = &l == layers;
      l.input_norm = random(HIDDEN, 0.1f, 1.0f);
      l.post_norm = random(HIDDEN, 0.1f, 1.0f);
      l.q_norm = first ? random(SIZE, 0.1f, 1.0f) : nullptr;
      l.k_norm = first ? random(SIZE, 0.1f, 1.0f) : nullptr;
      l.q = linear(HEADS * SIZE, HIDDEN, true);
      l.k = linear(KV_HEADS * SIZE, HIDDEN, true);
      l.v = linear(KV_HEADS * SIZE, HIDDEN, false);
      l.o = linear(HIDDEN, HEADS * SIZE, false);
      l.gate = linear(INNER, HIDDEN, false);
      l.up = linear(INNER, HIDDEN, true);
      l.down = linear(HIDDEN, INNER, false);
    }
    model = {layers, 2, vocabulary, HIDDEN, HEADS, KV_HEADS, SIZE, INNER,
             random(vocabulary * HIDDEN, 1.0f), random(HIDDEN, 0.1f, 1.0f),
             linear(vocabulary, HIDDEN, false), 1e-6, 0.4f, sizeof(T) == 2};
  }
};

// Three prompts that begin alike, from one prefill, then two tokens of `rows` rows, `steps` a call.
template <class T>
std::vector<float> sample(const Model<T>& m, int64_t first, int64_t rows, int64_t steps,
                          int threads) {
  const int64_t count = 7, wanted = 3;
  const int64_t ids[count] = {3, 1, 4, 1, 5, 9, 2};
  const int64_t places[count] = {0, 1, 2, 2, 3, 2, 3};
  const int32_t cu_seqlens[] = {0, 2, 3, 5, 7}, prefix[] = {-1, 0, 0, 0};
  const int64_t sources[] = {0, 1, 2, 0, 1, 3, 4, 0, 1, 5, 6};
  const int64_t targets[] = {0, 1, 2, 6, 7, 8, 9, 15, 16, 17, 18}, last[] = {2, 4, 6};
  const int32_t table[] = {0, 1, 2, 3, 5, 6};
  std::vector<T> k(2 * PAGES * PAGE * KV_HEADS * SIZE), v(k.size()), hidden(wanted * HIDDEN);
  const auto angles = [](const int64_t* at, int64_t n, bool cosine) {
    std::vector<float> out;
    for (int64_t i = 0; i < n * SIZE / 2; ++i) {
      const float angle = static_cast<float>(at[i / (SIZE / 2)]) / (1.0f + i % (SIZE / 2));
      out.push_back(cosine ? std::cos(angle) : std::sin(angle));
    }
    return out;
  };
  std::vector<float> cos = angles(places, count, true), sin = angles(places, count, false);
  std::vector<char> room(lcpo_prefill_workspace(&m.model, count));
  const LcpoPrompts prompts{{ids, cos.data(), sin.data(), k.data(), v.data(), count, PAGES * PAGE,
                             room.data()},
                            cu_seqlens, prefix, sources, targets, last, 4, 11, wanted,
                            hidden.data()};
  lcpo_prefill(&m.model, &prompts, threads);
  std::vector<float> found;
  for (const T& x : hidden) found.push_back(lcpo::load(&x));
  std::vector<int64_t> tokens{7, 8, 11}, lengths{3, 4, 4}, seeds{1, 2, 3}, drawn(steps * rows);
  std::vector<float> logprob(steps * rows);
  room.assign(lcpo_decode_workspace(&m.model, rows), 0);
  const LcpoDraw of_prompts{&seeds[first], &lengths[first], drawn.data(), logprob.data(), 50, 0, 1.0,
                            0.8f, TILE};
  lcpo_draw(&m.model, hidden.data() + first * HIDDEN, rows, room.data(), &of_prompts, threads);
  found.insert(found.end(), logprob.begin(), logprob.begin() + rows);
  const std::vector<int64_t> every{0, 1, 2, 3, 4, 5};
  cos = angles(every.data(), 6, true);
  sin = angles(every.data(), 6, false);
  const LcpoDecodeRows in{{&tokens[first], cos.data(), sin.data(), k.data(), v.data(), rows,
                           PAGES * PAGE, room.data()},
                          &lengths[first], table + 2 * first, PAGE, 2, 6, steps, -1};
  for (int64_t step = 0; step < 2; step += steps) {
    const LcpoDraw draw{&seeds[first], &lengths[first], drawn.data(), logprob.data(), 50, 0, 1.0,
                        0.8f, TILE};
    const int64_t bad = lcpo_decode_steps(&m.model, &in, &draw, threads);
    check(bad == -1, "rows in range");
    for (int64_t i = 0; i < steps * rows; ++i) {
      check(drawn[i] >= 0 && drawn[i] < 50 && logprob[i] <= 0.0f, "token in the vocabulary");
      tokens[first + i % rows] = drawn[i];  // in the end that of the last step
      found.push_back(logprob[i]);
    }
    for (int64_t r = 0; r < rows; ++r) lengths[first + r] += steps;
  }
  lengths[first] = 7 - steps;  // its two pages have no room for so many
  check(lcpo_decode_steps(&m.model, &in, nullptr, threads) == 0, "a row without room is told");
  return found;
}

// A vocabulary that fits a cache, where threads take rows, and one that does not.
template <class T>
void test_decoder(int threads) {
  for (const int64_t vocabulary : {70, 450000}) {
    const Model<T> m(vocabulary);
    const std::vector<float> all = sample(m, 0, 3, 1, threads);
    check(all == sample(m, 0, 3, 1, 1), "the number of threads changes nothing");
    check(all == sample(m, 0, 3, 2, threads), "nor does the number of steps a call");
    const std::vector<float> one = sample(m, 1, 1, 2, threads);
    const size_t states = 3 * HIDDEN;
    for (const int64_t drawn : {0, 1, 2}) {
      check(one[states + drawn] == all[states + 3 * drawn + 1],
            "a row does not depend on the others");
    }
    for (const float x : all) check(std::isfinite(x), "finite");
  }
}

// Rows of a weight as it lies and of its packed copy, and all of them at once; two blocks of rows.
void test_linear(int64_t outputs, int64_t inputs, int threads) {
  const int64_t rows = 600;
  const auto wave = [](int64_t size, float step) {
    std::vector<float> x(size);
    for (int64_t i = 0; i < size; ++i) x[i] = std::sin(step * i);
    return x;
  };
  const std::vector<float> x = wave(rows * inputs, 1.7f), bias = wave(outputs, 0.3f);
  const std::vector<float> weight = wave(outputs * inputs, 0.7f);
  std::vector<float> all(rows * outputs), one(outputs), other(outputs);
  std::vector<float> packed(lcpo_packed_bytes(outputs, inputs) / sizeof(float));
  lcpo_linear(x.data(), rows, weight.data(), bias.data(), outputs, inputs, all.data(), threads);
  lcpo_pack(weight.data(), outputs, inputs, packed.data(), threads);
  const LcpoLinear linear{packed.data(), bias.data(), outputs, inputs};
  for (const int64_t r : {0, 5, 479, 480, 599}) {
    lcpo_linear(&x[r * inputs], 1, weight.data(), bias.data(), outputs, inputs, one.data(), 1);
    lcpo::multiply(linear, &x[r * inputs], 1, 0, lcpo::panels(false, outputs), other.data());
    for (int64_t j = 0; j < outputs; ++j) {
      double sum = bias[j];
      for (int64_t k = 0; k < inputs; ++k) sum += double{x[r * inputs + k]} * weight[j * inputs + k];
      check(std::abs(one[j] - sum) < 1e-3, "a product is what it should be");
      check(one[j] == all[r * outputs + j] && one[j] == other[j], "one product for a row");
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  test_decoder<float>(threads);
  for (const int64_t inputs : {7, 320}) {
    for (const int64_t outputs : {5, 64, 130}) test_linear(outputs, inputs, threads);
  }
  if (lcpo_has_product()) test_decoder<lcpo::bf16>(threads);
  return report();
}
