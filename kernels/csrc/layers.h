// What a decode step and a prefill of a whole model share: the layers, but for the attention.
//
// All arithmetic is that of the ops' own kernels, called with one thread on a part of the rows; only
// the products are others (packed.h). Small weights, which each core's cache can stream: every
// thread takes some rows through the layers, and nobody waits. Large ones: the threads share the
// columns of every product, so that each weight is read once, and meet between the parts of a layer.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "api.h"
#include "attention.h"
#include "decode_team.h"
#include "packed.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lcpo {

constexpr int64_t CACHED = int64_t{16} << 20;  // bytes of weights that caches hold

// Cuts the caller's memory into arrays; without memory it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    char* at = memory_ ? memory_ + used_ : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), ALIGNMENT);
    return reinterpret_cast<T*>(at);
  }
  int64_t used() const { return used_; }

 private:
  static constexpr int64_t ALIGNMENT = 64;
  char* memory_;
  int64_t used_ = 0;
};

template <class T>
struct Buffers {
  T *residual, *update, *normed;              // [rows, hidden]
  T *q, *q_turned, *attended;                 // [rows, heads, size]
  T *k, *k_turned, *v;                        // [rows, kv_heads, size]
  T *gate, *up;                               // [rows, inner]
  float* rest;                                // [rows, heads], what norms and attention leave

  Buffers(const LcpoDecodeModel& m, int64_t rows, Arena& arena) {
    const int64_t width = rows * m.heads * m.size, kv_width = rows * m.kv_heads * m.size;
    for (T** x : {&residual, &update, &normed}) *x = arena.take<T>(rows * m.hidden);
    for (T** x : {&q, &q_turned, &attended}) *x = arena.take<T>(width);
    for (T** x : {&k, &k_turned, &v}) *x = arena.take<T>(kv_width);
    for (T** x : {&gate, &up}) *x = arena.take<T>(rows * m.inner);
    rest = arena.take<float>(rows * m.heads);
  }
};

template <class T>
struct Output {
  const LcpoLinear& linear;
  T* out;
};

template <class T>
class Layers {
 public:
  Layers(const LcpoDecodeModel& model, const LcpoTokens& tokens, const Buffers<T>& buffers)
      : m(model), in(tokens), b(buffers) {}

  static constexpr bool IS_BF16 = sizeof(T) == sizeof(bf16);

  void embed(Span some) const {
    const T* table = static_cast<const T*>(m.embedding);
    for (int64_t r = some.at; r < some.at + some.count; ++r) {
      std::copy_n(table + in.tokens[r] * m.hidden, m.hidden, b.residual + r * m.hidden);
    }
  }

  // Up to the queries, keys and values of a layer, turned by their positions.
  void before_attention(const Team& team, Span rows, int64_t index) const {
    const LcpoDecodeLayer& layer = m.layers[index];
    const Span mine = team.share(rows);
    if (index == 0) embed(mine);
    norm(mine, layer.input_norm, index > 0);
    products(team, rows, b.normed, {{layer.q, b.q}, {layer.k, b.k}, {layer.v, b.v}});
    head_norm(mine, layer.q_norm, m.heads, b.q);
    head_norm(mine, layer.k_norm, m.kv_heads, b.k);
    const int64_t half = m.size / 2, q_width = m.heads * m.size, k_width = m.kv_heads * m.size;
    const int64_t strides[] = {q_width, m.size, k_width, m.size};
    lcpo_rope(b.q + mine.at * q_width, b.k + mine.at * k_width, IS_BF16, in.cos + mine.at * half,
              in.sin + mine.at * half, mine.count, m.heads, m.kv_heads, half, strides,
              b.q_turned + mine.at * q_width, b.k_turned + mine.at * k_width, 1);
  }

  // From b.attended on; leaves the update that the next norm adds to the residual.
  void after_attention(const Team& team, Span rows, int64_t index) const {
    const LcpoDecodeLayer& layer = m.layers[index];
    const Span mine = team.share(rows);
    products(team, rows, b.attended, {{layer.o, b.update}});
    norm(mine, layer.post_norm, true);
    products(team, rows, b.normed, {{layer.gate, b.gate}, {layer.up, b.up}});
    lcpo_swiglu_forward(b.gate + mine.at * m.inner, b.up + mine.at * m.inner, IS_BF16,
                        mine.count * m.inner, b.gate + mine.at * m.inner, 1);
    products(team, rows, b.gate, {{layer.down, b.update}});
  }

  void norm(Span some, const void* weight, bool updated) const {
    const int64_t at = some.at * m.hidden;
    norm_rows(some, weight, updated, b.normed + at);
  }

  void norm_rows(Span some, const void* weight, bool updated, T* out) const {
    T *residual = b.residual + some.at * m.hidden, *update = b.update + some.at * m.hidden;
    lcpo_rms_norm_forward(updated ? update : residual, IS_BF16, updated ? residual : nullptr,
                          IS_BF16, weight, IS_BF16, some.count, m.hidden, m.eps, out, residual,
                          b.rest + some.at, 1);
  }

  // All of them between two meetings: x is complete before, and so are the outputs behind.
  void products(const Team& team, Span rows, const T* x,
                std::initializer_list<Output<T>> outputs) const {
    team.sync();
    int64_t total = 0;
    for (const Output<T>& o : outputs) total += panels(IS_BF16, o.linear.outputs);
    const Span mine = team.share({0, total});
    int64_t before = 0;
    for (const Output<T>& o : outputs) {
      const int64_t count = panels(IS_BF16, o.linear.outputs);
      const int64_t first = std::clamp<int64_t>(mine.at - before, 0, count);
      const int64_t last = std::clamp<int64_t>(mine.at + mine.count - before, 0, count);
      multiply(o.linear, x + rows.at * o.linear.inputs, rows.count, first, last,
               o.out + rows.at * o.linear.outputs);
      before += count;
    }
    team.sync();
  }

  // Keys and values of token `row` to a slot of layer `index`.
  void keep(int64_t row, int64_t index, int64_t slot) const {
    const int64_t width = m.kv_heads * m.size, to = (index * in.slots + slot) * width;
    std::copy_n(b.k_turned + row * width, width, static_cast<T*>(in.k_cache) + to);
    std::copy_n(b.v + row * width, width, static_cast<T*>(in.v_cache) + to);
  }

  const LcpoDecodeModel& m;
  const LcpoTokens& in;
  const Buffers<T>& b;

 private:
  // In place, if the model has such norms.
  void head_norm(Span some, const void* weight, int64_t heads, T* x) const {
    if (!weight) return;
    T* at = x + some.at * heads * m.size;
    lcpo_rms_norm_forward(at, IS_BF16, nullptr, IS_BF16, weight, IS_BF16, some.count * heads,
                          m.size, m.eps, at, nullptr, b.rest + some.at * m.heads, 1);
  }
};

// Whether caches hold the weights.
inline bool cached(const LcpoDecodeModel& m) {
  const auto bytes = [&](const LcpoLinear& l) {
    return l.outputs * l.inputs * static_cast<int64_t>(m.is_bf16 ? sizeof(bf16) : sizeof(float));
  };
  int64_t sum = bytes(m.head);
  for (int64_t i = 0; i < m.count; ++i) {
    const LcpoDecodeLayer& l = m.layers[i];
    for (const LcpoLinear* x : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) sum += bytes(*x);
  }
  return sum <= CACHED;
}

// Runs f(team, its rows) on `threads` threads: teams of one with some rows each, or one team.
template <class F>
void in_teams(const LcpoDecodeModel& model, int64_t rows, int32_t threads, const F& f) {
  const bool by_rows = cached(model);
  Barrier barrier;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Team team{0, 1, &barrier};
#ifdef _OPENMP
    team = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
#endif
    if (by_rows) {
      f(Team{0, 1, &barrier}, team.share({0, rows}));
    } else {
      f(team, Span{0, rows});
    }
  }
}

}  // namespace lcpo
