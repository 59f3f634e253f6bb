// Decode steps of a whole model in one call: what would otherwise be hundreds of ops a step, each with
// a dispatch, and for small models most of the time.

#include <algorithm>
#include <vector>

#include "api.h"
#include "layers.h"

namespace lcpo {
namespace {

template <class T>
struct DecodeBuffers {
  Buffers<T> layers;
  T* logits;           // [rows, vocabulary]
  float* cut_logprob;  // [rows]
  // Of the step at hand, as in LcpoTokens and LcpoDraw.
  float *cos, *sin;             // [rows, size / 2]
  int64_t *tokens, *positions;  // [rows]
  int32_t* seen;                // [rows], tokens in the cache, the new one included

  DecodeBuffers(const LcpoDecodeModel& m, int64_t rows, Arena& arena) : layers(m, rows, arena) {
    logits = arena.take<T>(rows * m.head.outputs);
    cut_logprob = arena.take<float>(rows);
    for (float** x : {&cos, &sin}) *x = arena.take<float>(rows * (m.size / 2));
    for (int64_t** x : {&tokens, &positions}) *x = arena.take<int64_t>(rows);
    seen = arena.take<int32_t>(rows);
  }
};

// From final states to tokens. Log-probs are those of training (ops.linear_logprob): of the same
// tiles, merged in the same way.
template <class T>
struct Drawing {
  const Layers<T>& layers;
  const DecodeBuffers<T>& b;
  const LcpoDraw& draw;

  void run(const Team& team, Span rows, const T* hidden) const {
    layers.products(team, rows, hidden, {{layers.m.head, b.logits}});
    sample(team.share(rows));
  }

  void sample(Span some) const {
    const int64_t at = some.at, stride = layers.m.head.outputs;
    lcpo_sample_tokens(b.logits + at * stride, layers.m.is_bf16, some.count, stride,
                       draw.vocab_size, draw.temperature, draw.top_k, draw.top_p,
                       draw.seeds + at, draw.positions + at, draw.tokens + at, draw.logprob + at,
                       b.cut_logprob + at, 1);
    if (draw.temperature == 0.0f) return;
    const int64_t tiles = (draw.vocab_size + draw.head_columns - 1) / draw.head_columns;
    std::vector<float> logprob(tiles), stats(3 * tiles);
    for (int64_t r = at; r < at + some.count; ++r) {
      if (draw.tokens[r] >= 0) weigh(r, tiles, logprob.data(), stats.data());
    }
  }

  void weigh(int64_t row, int64_t tiles, float* logprob, float* stats) const {
    const T* logits = b.logits + row * layers.m.head.outputs;
    const int64_t token = draw.tokens[row], width = draw.head_columns;
    float whole[3];
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t columns = std::min(width, draw.vocab_size - t * width);
      const int64_t inside = std::clamp<int64_t>(token - t * width, 0, columns - 1);
      lcpo_logprob_forward(logits + t * width, layers.m.is_bf16, 1, columns, columns,
                           draw.temperature, &inside, logprob + t, stats + 3 * t, 1);
    }
    draw.logprob[row] = logprob[0];
    if (tiles == 1) return;
    lcpo_logprob_merge(logprob, stats, tiles, 1, width, draw.temperature, &token,
                       draw.logprob + row, whole);
  }
};

template <class T>
struct Steps {
  Layers<T> layers;  // their tokens are those in the buffers
  const DecodeBuffers<T>& b;
  const LcpoDecodeRows& in;
  const LcpoDraw& draw;

  // Takes `rows` through all steps, with the other members of the team if there are any. Between
  // two steps nobody waits: of the one before, a thread needs what it has drawn itself.
  void run(const Team& team, Span rows) const {
    for (int64_t step = 0; step < in.steps; ++step) {
      begin(team.share(rows), step);
      take(team, rows, step);
    }
  }

  void begin(Span mine, int64_t step) const {
    const int64_t half = layers.m.size / 2;
    const int64_t* last = step ? draw.tokens + (step - 1) * in.tokens.count : in.tokens.tokens;
    for (int64_t r = mine.at; r < mine.at + mine.count; ++r) {
      const int64_t place = in.lengths[r] + step;
      b.tokens[r] = std::max<int64_t>(last[r], 0);  // -1 where logits were NaN
      b.positions[r] = draw.positions[r] + step;
      b.seen[r] = static_cast<int32_t>(place + 1);
      std::copy_n(in.tokens.cos + place * half, half, b.cos + r * half);
      std::copy_n(in.tokens.sin + place * half, half, b.sin + r * half);
    }
  }

  void take(const Team& team, Span rows, int64_t step) const {
    const LcpoDecodeModel& m = layers.m;
    const Span mine = team.share(rows);
    for (int64_t i = 0; i < m.count; ++i) {
      layers.before_attention(team, rows, i);
      attend(mine, i);
      layers.after_attention(team, rows, i);
    }
    layers.norm(mine, m.norm, true);
    LcpoDraw now = draw;
    now.positions = b.positions;
    now.tokens += step * in.tokens.count;
    now.logprob += step * in.tokens.count;
    Drawing<T>{layers, b, now}.run(team, rows, layers.b.normed);
  }

  void attend(Span some, int64_t index) const {
    const LcpoDecodeModel& m = layers.m;
    for (int64_t r = some.at; r < some.at + some.count; ++r) {
      const int64_t place = b.seen[r] - 1, page = place / in.page_size;
      const int64_t slot = in.block_table[r * in.pages_per_row + page] * in.page_size;
      layers.keep(r, index, slot + place % in.page_size);
    }
    const int64_t at = some.at * m.heads * m.size;
    const int64_t cache_at = index * in.tokens.slots * m.kv_heads * m.size;
    lcpo_paged_decode_attention(layers.b.q_turned + at,
                                static_cast<const T*>(in.tokens.k_cache) + cache_at,
                                static_cast<const T*>(in.tokens.v_cache) + cache_at, m.is_bf16,
                                in.block_table + some.at * in.pages_per_row, b.seen + some.at,
                                some.count, in.page_size, in.pages_per_row, m.heads, m.kv_heads,
                                m.size, m.scale, layers.b.attended + at, 1);
  }
};

template <class T>
void run(const LcpoDecodeModel& model, const LcpoDecodeRows& in, const LcpoDraw& draw,
         int32_t threads) {
  Arena arena(in.tokens.workspace);
  const DecodeBuffers<T> buffers(model, in.tokens.count, arena);
  LcpoTokens now = in.tokens;
  now.tokens = buffers.tokens;
  now.cos = buffers.cos;
  now.sin = buffers.sin;
  const Steps<T> steps{{model, now, buffers.layers}, buffers, in, draw};
  in_teams(model, in.tokens.count, threads,
           [&](const Team& team, Span rows) { steps.run(team, rows); });
}

template <class T>
void run(const LcpoDecodeModel& model, const T* hidden, int64_t rows, void* workspace,
         const LcpoDraw& draw, int32_t threads) {
  Arena arena(workspace);
  const DecodeBuffers<T> buffers(model, rows, arena);
  const LcpoTokens none{};
  const Layers<T> layers(model, none, buffers.layers);
  const Drawing<T> drawing{layers, buffers, draw};
  in_teams(model, rows, threads,
           [&](const Team& team, Span some) { drawing.run(team, some, hidden); });
}

// The first row whose token, length or pages are out of range, or -1.
int64_t first_bad_row(const LcpoDecodeModel& model, const LcpoDecodeRows& in) {
  const int64_t room = std::min(in.pages_per_row * in.page_size, in.angles) - in.steps;
  const int64_t pages = in.tokens.slots / in.page_size;
  for (int64_t r = 0; r < in.tokens.count; ++r) {
    const int32_t* table = in.block_table + r * in.pages_per_row;
    const bool known = in.tokens.tokens[r] >= 0 && in.tokens.tokens[r] < model.vocabulary;
    const bool fits = in.lengths[r] >= 0 && in.lengths[r] <= room;
    const auto there = [&](int32_t page) { return page >= 0 && page < pages; };
    if (!known || !fits || !std::all_of(table, table + in.pages_per_row, there)) return r;
  }
  return -1;
}

}  // namespace
}  // namespace lcpo

LCPO_API int64_t lcpo_decode_workspace(const LcpoDecodeModel* model, int64_t rows) {
  lcpo::Arena arena(nullptr);
  if (model->is_bf16) {
    lcpo::DecodeBuffers<lcpo::bf16>(*model, rows, arena);
  } else {
    lcpo::DecodeBuffers<float>(*model, rows, arena);
  }
  return arena.used();
}

LCPO_API bool lcpo_is_cached(const LcpoDecodeModel* model) { return lcpo::cached(*model); }

LCPO_API int64_t lcpo_decode_steps(const LcpoDecodeModel* model, const LcpoDecodeRows* rows,
                                   const LcpoDraw* draw, int32_t threads) {
  const int64_t bad = lcpo::first_bad_row(*model, *rows);
  if (bad >= 0) return bad;
  model->is_bf16 ? lcpo::run<lcpo::bf16>(*model, *rows, *draw, threads)
                 : lcpo::run<float>(*model, *rows, *draw, threads);
  return -1;
}

LCPO_API void lcpo_draw(const LcpoDecodeModel* model, const void* hidden, int64_t rows,
                        void* workspace, const LcpoDraw* draw, int32_t threads) {
  const auto run = [&](const auto* x) { lcpo::run(*model, x, rows, workspace, *draw, threads); };
  model->is_bf16 ? run(static_cast<const lcpo::bf16*>(hidden))
                 : run(static_cast<const float*>(hidden));
}
