#include "half_layers.h"

#include "amx.h"

LCPO_API bool lcpo_has_half_layers() {
#ifdef LCPO_BF16_DOT
  return lcpo_has_product() && !lcpo::has_amx();
#else
  return false;
#endif
}

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

struct BeforeForward {
  const LcpoBefore& layer;
  const RightFactor &q_weight, &k_weight, &v_weight;
  const void *update, *residual;
  void *total, *q, *k, *v;
  Array<bf16> normed{TOKENS * layer.half.hidden}, q_flat{TOKENS * layer.q.outputs},
      k_flat{TOKENS * layer.k.outputs};
  Array<float> rstd{TOKENS};

  void run(int64_t t, int64_t rows) const {
    const int64_t hidden = layer.half.hidden, wide = layer.q.outputs, narrow = layer.k.outputs;
    norm(layer.half, at(update, t, hidden), residual ? at(residual, t, hidden) : nullptr, rows,
         residual ? at(total, t, hidden) : nullptr, normed, rstd);
    q_weight.multiply({{normed, hidden}}, rows, q_flat);
    k_weight.multiply({{normed, hidden}}, rows, k_flat);
    v_weight.multiply({{normed, hidden}}, rows, at(v, t, narrow));
    rope(layer, t, rows, q_flat, k_flat, at(q, t, wide), at(k, t, narrow));
  }
};

struct AfterForward {
  const LcpoAfter& layer;
  const RightFactor &o_weight, &gate_weight, &up_weight, &down_weight;
  const void *attended, *residual;
  void *total, *gate, *up, *update;
  int64_t room = gate ? 1 : TOKENS * layer.up.outputs;  // for a tile at a time of what is not kept
  Array<bf16> o{TOKENS * layer.half.hidden}, normed{TOKENS * layer.half.hidden},
      inner{TOKENS * layer.up.outputs}, gate_room{room}, up_room{room};
  Array<float> rstd{TOKENS};

  void run(int64_t t, int64_t rows) const {
    const int64_t hidden = layer.half.hidden, width = layer.up.outputs;
    o_weight.multiply({{at(attended, t, layer.o.inputs), layer.o.inputs}}, rows, o);
    norm(layer.half, o, at(residual, t, hidden), rows, at(total, t, hidden), normed, rstd);
    bf16* g = gate ? at(gate, t, width) : gate_room.data();
    bf16* u = gate ? at(up, t, width) : up_room.data();
    gate_weight.multiply({{normed, hidden}}, rows, g);
    up_weight.multiply({{normed, hidden}}, rows, u);
    lcpo_swiglu_forward(g, u, true, rows * width, inner, 1);
    down_weight.multiply({{inner, width}}, rows, at(update, t, hidden));
  }
};

// All threads pack the weights, then each makes its own worker and takes tiles.
template <class Make>
void in_tiles(int64_t tokens, int32_t threads, std::initializer_list<const RightFactor*> weights,
              const Make& make_worker) {
  const std::vector<Span> tiles = tiles_of({0, tokens}, threads);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    for (const RightFactor* w : weights) w->pack(this_team());
    const auto worker = make_worker();
#pragma omp barrier
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tiles.size(); ++i) worker.run(tiles[i].at, tiles[i].count);
  }
}

}  // namespace
}  // namespace lcpo

using lcpo::RightFactor;

LCPO_API void lcpo_before_attention(const LcpoBefore* layer, const void* update,
                                    const void* residual, void* total, void* q, void* k, void* v,
                                    int32_t threads) {
  const RightFactor of_q = RightFactor::forward(layer->q), of_k = RightFactor::forward(layer->k),
                    of_v = RightFactor::forward(layer->v);
  lcpo::in_tiles(layer->half.tokens, threads, {&of_q, &of_k, &of_v}, [&] {
    return lcpo::BeforeForward{*layer, of_q, of_k, of_v, update, residual, total, q, k, v};
  });
}

LCPO_API void lcpo_after_attention(const LcpoAfter* layer, const void* attended,
                                   const void* residual, void* total, void* gate, void* up,
                                   void* update, int32_t threads) {
  const RightFactor o = RightFactor::forward(layer->o), of_gate = RightFactor::forward(layer->gate),
                    of_up = RightFactor::forward(layer->up),
                    down = RightFactor::forward(layer->down);
  lcpo::in_tiles(layer->half.tokens, threads, {&o, &of_gate, &of_up, &down}, [&] {
    return lcpo::AfterForward{*layer,   o,        of_gate, of_up, down,  attended,
                              residual, total,    gate,    up,    update};
  });
}
#endif
