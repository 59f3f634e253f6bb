// A decode step of a whole model in one call: what would otherwise be hundreds of ops, each with a
// dispatch, and for small models most of the time. All arithmetic is that of the ops' own kernels,
// called with one thread on a part of the rows; only the products are others (packed.h).
//
// Small weights, which each core's cache can stream: every thread takes some rows through the whole
// model, and nobody waits. Large ones: the threads share the columns of every product, so that each
// weight is read once, and meet between the parts of a layer.

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "api.h"
#include "attention.h"
#include "decode_team.h"
#include "packed.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lcpo {
namespace {

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
  T* logits;                                  // [rows, vocabulary]
  float *rstd, *cut_logprob;                  // [rows, heads] what norms leave behind; [rows]
  int32_t* seen;                              // [rows], tokens in the cache, the new one included

  Buffers(const LcpoDecodeModel& m, int64_t rows, Arena& arena) {
    const int64_t width = rows * m.heads * m.size, kv_width = rows * m.kv_heads * m.size;
    for (T** x : {&residual, &update, &normed}) *x = arena.take<T>(rows * m.hidden);
    for (T** x : {&q, &q_turned, &attended}) *x = arena.take<T>(width);
    for (T** x : {&k, &k_turned, &v}) *x = arena.take<T>(kv_width);
    for (T** x : {&gate, &up}) *x = arena.take<T>(rows * m.inner);
    logits = arena.take<T>(rows * m.head.outputs);
    rstd = arena.take<float>(rows * m.heads);
    cut_logprob = arena.take<float>(rows);
    seen = arena.take<int32_t>(rows);
  }
};

template <class T>
struct Output {
  const LcpoLinear& linear;
  T* out;
};

template <class T>
class Step {
 public:
  Step(const LcpoDecodeModel& model, const LcpoDecodeRows& rows, const LcpoDraw& draw,
       const Buffers<T>& buffers)
      : m_(model), in_(rows), draw_(draw), b_(buffers) {}

  // Takes `rows` through the model, with the other members of the team if there are any.
  void run(const Team& team, Span rows) const {
    Span mine = team.share(rows.count);
    mine.at += rows.at;
    embed(mine);
    for (int64_t i = 0; i < m_.count; ++i) {
      const LcpoDecodeLayer& layer = m_.layers[i];
      norm(mine, layer.input_norm, i > 0);
      products(team, rows, b_.normed, {{layer.q, b_.q}, {layer.k, b_.k}, {layer.v, b_.v}});
      attend(mine, layer, i);
      products(team, rows, b_.attended, {{layer.o, b_.update}});
      norm(mine, layer.post_norm, true);
      products(team, rows, b_.normed, {{layer.gate, b_.gate}, {layer.up, b_.up}});
      lcpo_swiglu_forward(b_.gate + mine.at * m_.inner, b_.up + mine.at * m_.inner, IS_BF16,
                          mine.count * m_.inner, b_.gate + mine.at * m_.inner, 1);
      products(team, rows, b_.gate, {{layer.down, b_.update}});
    }
    norm(mine, m_.norm, m_.count > 0);
    products(team, rows, b_.normed, {{m_.head, b_.logits}});
    sample(mine);
  }

 private:
  static constexpr bool IS_BF16 = sizeof(T) == sizeof(bf16);

  void embed(Span some) const {
    const T* table = static_cast<const T*>(m_.embedding);
    for (int64_t r = some.at; r < some.at + some.count; ++r) {
      std::copy_n(table + in_.tokens[r] * m_.hidden, m_.hidden, b_.residual + r * m_.hidden);
    }
  }

  void norm(Span some, const void* weight, bool updated) const {
    const int64_t at = some.at * m_.hidden;
    T* residual = b_.residual + at;
    lcpo_rms_norm_forward(updated ? b_.update + at : residual, IS_BF16,
                          updated ? residual : nullptr, IS_BF16, weight, IS_BF16, some.count,
                          m_.hidden, m_.eps, b_.normed + at, residual, b_.rstd + some.at, 1);
  }

  // All of them between two meetings: x is complete before, and so are the outputs behind.
  void products(const Team& team, Span rows, const T* x,
                std::initializer_list<Output<T>> outputs) const {
    team.sync();
    int64_t total = 0;
    for (const Output<T>& o : outputs) total += panels(IS_BF16, o.linear.outputs);
    const Span mine = team.share(total);
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

  void attend(Span some, const LcpoDecodeLayer& layer, int64_t index) const {
    const int64_t q_at = some.at * m_.heads * m_.size, half = m_.size / 2;
    const int64_t kv_size = m_.kv_heads * m_.size, k_at = some.at * kv_size;
    const int64_t layer_at = index * in_.pages * in_.page_size * kv_size;
    T *k_cache = static_cast<T*>(in_.k_cache) + layer_at;
    T *v_cache = static_cast<T*>(in_.v_cache) + layer_at;
    head_norm(some, layer.q_norm, m_.heads, b_.q);
    head_norm(some, layer.k_norm, m_.kv_heads, b_.k);
    const int64_t strides[] = {m_.heads * m_.size, m_.size, kv_size, m_.size};
    lcpo_rope(b_.q + q_at, b_.k + k_at, IS_BF16, in_.cos + some.at * half,
              in_.sin + some.at * half, some.count, m_.heads, m_.kv_heads, half, strides,
              b_.q_turned + q_at, b_.k_turned + k_at, 1);
    for (int64_t r = some.at; r < some.at + some.count; ++r) {
      const int32_t* pages = in_.block_table + r * in_.pages_per_row;
      const int64_t place = in_.lengths[r];
      const int64_t slot = pages[place / in_.page_size] * in_.page_size + place % in_.page_size;
      std::copy_n(b_.k_turned + r * kv_size, kv_size, k_cache + slot * kv_size);
      std::copy_n(b_.v + r * kv_size, kv_size, v_cache + slot * kv_size);
      b_.seen[r] = static_cast<int32_t>(place + 1);
    }
    lcpo_paged_decode_attention(b_.q_turned + q_at, k_cache, v_cache, IS_BF16,
                                in_.block_table + some.at * in_.pages_per_row, b_.seen + some.at,
                                some.count, in_.page_size, in_.pages_per_row, m_.heads,
                                m_.kv_heads, m_.size, m_.scale, b_.attended + q_at, 1);
  }

  // In place, if the model has such norms.
  void head_norm(Span some, const void* weight, int64_t heads, T* x) const {
    if (!weight) return;
    T* at = x + some.at * heads * m_.size;
    lcpo_rms_norm_forward(at, IS_BF16, nullptr, IS_BF16, weight, IS_BF16, some.count * heads,
                          m_.size, m_.eps, at, nullptr, b_.rstd + some.at * m_.heads, 1);
  }

  void sample(Span some) const {
    const int64_t at = some.at;
    lcpo_sample_tokens(b_.logits + at * m_.head.outputs, IS_BF16, some.count, m_.head.outputs,
                       draw_.vocab_size, draw_.temperature, draw_.top_k, draw_.top_p,
                       draw_.seeds + at, draw_.positions + at, draw_.tokens + at,
                       draw_.logprob + at, b_.cut_logprob + at, 1);
  }

  const LcpoDecodeModel& m_;
  const LcpoDecodeRows& in_;
  const LcpoDraw& draw_;
  const Buffers<T>& b_;
};

int64_t weight_bytes(const LcpoDecodeModel& m) {
  const auto bytes = [&](const LcpoLinear& l) {
    return lcpo_packed_bytes(m.is_bf16, l.outputs, l.inputs);
  };
  int64_t sum = bytes(m.head);
  for (int64_t i = 0; i < m.count; ++i) {
    const LcpoDecodeLayer& l = m.layers[i];
    for (const LcpoLinear* x : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) sum += bytes(*x);
  }
  return sum;
}

template <class T>
void run(const LcpoDecodeModel& model, const LcpoDecodeRows& rows, const LcpoDraw& draw,
         int32_t threads) {
  Arena arena(rows.workspace);
  const Buffers<T> buffers(model, rows.rows, arena);
  const Step<T> step(model, rows, draw, buffers);
  const bool by_rows = weight_bytes(model) <= CACHED;
  Barrier barrier;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Team team{0, 1, &barrier};
#ifdef _OPENMP
    team = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
#endif
    if (by_rows) {
      step.run({0, 1, &barrier}, team.share(rows.rows));
    } else {
      step.run(team, {0, rows.rows});
    }
  }
}

// The first row whose token, length or pages are out of range, or -1.
int64_t first_bad_row(const LcpoDecodeModel& model, const LcpoDecodeRows& in) {
  const int64_t room = in.pages_per_row * in.page_size;
  for (int64_t r = 0; r < in.rows; ++r) {
    const int32_t* pages = in.block_table + r * in.pages_per_row;
    const bool known = in.tokens[r] >= 0 && in.tokens[r] < model.vocabulary;
    const bool fits = in.lengths[r] >= 0 && in.lengths[r] < room;
    const auto there = [&](int32_t page) { return page >= 0 && page < in.pages; };
    if (!known || !fits || !std::all_of(pages, pages + in.pages_per_row, there)) return r;
  }
  return -1;
}

}  // namespace
}  // namespace lcpo

LCPO_API int64_t lcpo_decode_workspace(const LcpoDecodeModel* model, int64_t rows) {
  lcpo::Arena arena(nullptr);
  if (model->is_bf16) {
    lcpo::Buffers<lcpo::bf16>(*model, rows, arena);
  } else {
    lcpo::Buffers<float>(*model, rows, arena);
  }
  return arena.used();
}

LCPO_API int64_t lcpo_decode_step(const LcpoDecodeModel* model, const LcpoDecodeRows* rows,
                                  const LcpoDraw* draw, int32_t threads) {
  const int64_t bad = lcpo::first_bad_row(*model, *rows);
  if (bad >= 0) return bad;
  model->is_bf16 ? lcpo::run<lcpo::bf16>(*model, *rows, *draw, threads)
                 : lcpo::run<float>(*model, *rows, *draw, threads);
  return -1;
}
