// Decode steps of a whole model in one call: what would otherwise be hundreds of ops a step, each with
// a dispatch, and for small models most of the time.

#include <algorithm>
#include <numeric>
#include <vector>

#include "api.h"
#include "layers.h"

namespace lcpo {
namespace {

template <class T>
struct DecodeBuffers {
  Buffers<T> layers;
  T* logits;  // [rows, vocabulary]
  // Of the step at hand, for those of the rows that have not ended.
  float *cos, *sin;  // [rows, size / 2]
  int64_t* row;      // [rows], its number in the call
  int64_t *tokens, *seeds, *positions, *drawn;
  float *logprob, *cut_logprob;
  int32_t* seen;  // [rows], tokens in the cache, the new one included
  int64_t* left;  // at the first row of a team: how many of its rows go on

  DecodeBuffers(const LcpoDecodeModel& m, int64_t rows, Arena& arena) : layers(m, rows, arena) {
    logits = arena.take<T>(rows * m.head.outputs);
    for (float** x : {&cos, &sin}) *x = arena.take<float>(rows * (m.size / 2));
    for (float** x : {&logprob, &cut_logprob}) *x = arena.take<float>(rows);
    for (int64_t** x : {&row, &tokens, &seeds, &positions, &drawn, &left}) {
      *x = arena.take<int64_t>(rows);
    }
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
  const Layers<T>& layers;    // of the tokens in the buffers
  const Drawing<T>& drawing;  // into the buffers
  const DecodeBuffers<T>& b;
  const LcpoDecodeRows& in;
  const LcpoDraw& draw;

  // Takes `rows` through all steps, with the other members of the team if there are any.
  void run(const Team& team, Span rows) const {
    const Span mine = team.share(rows);
    std::iota(b.row + mine.at, b.row + mine.at + mine.count, mine.at);
    std::copy_n(in.tokens.tokens + mine.at, mine.count, b.tokens + mine.at);
    for (int64_t step = 0; step < in.steps && rows.count > 0; ++step) {
      prepare(team.share(rows), step);
      take(team, rows);
      hand_over(team.share(rows), step);
      team.sync();
      if (team.rank == 0) b.left[rows.at] = close_gaps(rows);
      team.sync();
      rows.count = b.left[rows.at];
    }
  }

  void prepare(Span some, int64_t step) const {
    const int64_t half = layers.m.size / 2;
    for (int64_t i = some.at; i < some.at + some.count; ++i) {
      const int64_t r = b.row[i], place = in.lengths[r] + step;
      b.positions[i] = draw.positions[r] + step;
      b.seeds[i] = draw.seeds[r];
      b.seen[i] = static_cast<int32_t>(place + 1);
      std::copy_n(in.tokens.cos + place * half, half, b.cos + i * half);
      std::copy_n(in.tokens.sin + place * half, half, b.sin + i * half);
    }
  }

  void take(const Team& team, Span rows) const {
    const Span mine = team.share(rows);
    for (int64_t layer = 0; layer < layers.m.count; ++layer) {
      layers.before_attention(team, rows, layer);
      attend(mine, layer);
      layers.after_attention(team, rows, layer);
    }
    layers.norm(mine, layers.m.norm, true);
    drawing.run(team, rows, layers.b.normed);
  }

  void attend(Span some, int64_t layer) const {
    const int64_t end = some.at + some.count;
    for (int64_t i = some.at; i < end; ++i) {
      const int64_t place = b.seen[i] - 1, page = place / in.page_size;
      const int64_t slot = in.block_table[b.row[i] * in.pages_per_row + page] * in.page_size;
      layers.keep(i, layer, slot + place % in.page_size);
    }
    for (int64_t i = some.at, next; i < end; i = next) {  // rows whose block tables are neighbours
      for (next = i + 1; next < end && b.row[next] == b.row[next - 1] + 1;) ++next;
      attend({i, next - i}, layer, in.block_table + b.row[i] * in.pages_per_row);
    }
  }

  void attend(Span some, int64_t layer, const int32_t* block_table) const {
    const LcpoDecodeModel& m = layers.m;
    const int64_t at = some.at * m.heads * m.size;
    const int64_t cache_at = layer * in.tokens.slots * m.kv_heads * m.size;
    lcpo_paged_decode_attention(layers.b.q_turned + at,
                                static_cast<const T*>(in.tokens.k_cache) + cache_at,
                                static_cast<const T*>(in.tokens.v_cache) + cache_at, m.is_bf16,
                                block_table, b.seen + some.at, some.count, in.page_size,
                                in.pages_per_row, m.heads, m.kv_heads, m.size, m.scale,
                                layers.b.attended + at, 1);
  }

  void hand_over(Span some, int64_t step) const {
    for (int64_t i = some.at; i < some.at + some.count; ++i) {
      const int64_t at = step * in.tokens.count + b.row[i];
      draw.tokens[at] = b.tokens[i] = b.drawn[i];
      draw.logprob[at] = b.logprob[i];
    }
  }

  // Moves up the rows that go on; how many they are.
  int64_t close_gaps(Span rows) const {
    int64_t to = rows.at;
    for (int64_t i = rows.at; i < rows.at + rows.count; ++i) {
      if (b.tokens[i] == in.stop || b.tokens[i] < 0) continue;  // -1: logits were NaN
      b.tokens[to] = b.tokens[i];
      b.row[to++] = b.row[i];
    }
    return to - rows.at;
  }
};

template <class T>
void run(const LcpoDecodeModel& model, const LcpoDecodeRows& in, const LcpoDraw& draw,
         int32_t threads) {
  Arena arena(in.tokens.workspace);
  const DecodeBuffers<T> b(model, in.tokens.count, arena);
  LcpoTokens tokens = in.tokens;
  tokens.tokens = b.tokens;
  tokens.cos = b.cos;
  tokens.sin = b.sin;
  LcpoDraw drawn = draw;
  drawn.seeds = b.seeds;
  drawn.positions = b.positions;
  drawn.tokens = b.drawn;
  drawn.logprob = b.logprob;
  const Layers<T> layers{model, tokens, b.layers};
  const Drawing<T> drawing{layers, b, drawn};
  const Steps<T> steps{layers, drawing, b, in, draw};
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
