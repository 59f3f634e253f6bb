// The prompts of a batch through a whole model in one call, into their pages; products on the packed
// weights of the decode step.

#include <algorithm>

#include "api.h"
#include "layers.h"

namespace lcpo {
namespace {

template <class T>
void run(const LcpoDecodeModel& m, const LcpoPrompts& in, int32_t threads) {
  Arena arena(in.tokens.workspace);
  const int64_t count = in.tokens.count;
  const Buffers<T> b(m, count, arena);
  const Layers<T> layers(m, in.tokens, b);
  for (int64_t i = 0; i < m.count; ++i) {
    in_teams(m, count, threads,
             [&](const Team& team, Span rows) { layers.before_attention(team, rows, i); });
    lcpo_varlen_attention_forward(b.q_turned, b.k_turned, b.v, m.is_bf16, in.cu_seqlens,
                                  in.prefix, in.sequences, m.heads, m.kv_heads, m.size, m.scale,
                                  b.attended, b.rest, threads);
    for (int64_t w = 0; w < in.writes; ++w) layers.keep(in.sources[w], i, in.targets[w]);
    in_teams(m, count, threads,
             [&](const Team& team, Span rows) { layers.after_attention(team, rows, i); });
  }
  for (int64_t s = 0; s < in.wanted; ++s) {
    layers.norm_rows({in.last[s], 1}, m.norm, true, static_cast<T*>(in.hidden) + s * m.hidden);
  }
}

}  // namespace
}  // namespace lcpo

LCPO_API int64_t lcpo_prefill_workspace(const LcpoDecodeModel* model, int64_t tokens) {
  lcpo::Arena arena(nullptr);
  if (model->is_bf16) {
    lcpo::Buffers<lcpo::bf16>(*model, tokens, arena);
  } else {
    lcpo::Buffers<float>(*model, tokens, arena);
  }
  return arena.used();
}

LCPO_API void lcpo_prefill(const LcpoDecodeModel* model, const LcpoPrompts* prompts,
                           int32_t threads) {
  model->is_bf16 ? lcpo::run<lcpo::bf16>(*model, *prompts, threads)
                 : lcpo::run<float>(*model, *prompts, threads);
}
