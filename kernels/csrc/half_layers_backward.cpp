// The gradients of half_layers.cpp. A tile leaves the factors of the weights' gradients packed as the
// products over a chunk's tokens want them, while they are in the cache.

#include <utility>
#include <vector>

#include "gemm.h"
#include "half_layers.h"
#include "intrinsics.h"
#include "product.h"
#include "rms_norm.h"
#include "swiglu.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

constexpr int64_t CHUNK = 16 * TOKENS;  // tokens whose factors are packed before they are multiplied

// A factor of a product over the tokens of a chunk, in panels of pairs of tokens.
template <int64_t PANEL>
class Packed {
 public:
  Packed(int64_t tokens, int64_t columns)
      : pairs_((std::min(tokens, CHUNK) + 1) / 2),
        columns_(columns),
        data_(panels() * pairs_ * PANEL) {}

  void put(int64_t first, int64_t rows, const bf16* x) const {
    const int64_t pair = first % CHUNK / 2;
    for (int64_t i = 0; i < panels(); ++i) {
      pack_columns<PANEL>(x + i * PANEL, rows, columns_, size(i),
                          data_ + (i * pairs_ + pair) * PANEL);
    }
  }
  const uint32_t* panel(int64_t i) const { return data_ + i * pairs_ * PANEL; }
  int64_t panels() const { return (columns_ + PANEL - 1) / PANEL; }
  int64_t size(int64_t i) const { return std::min(PANEL, columns_ - i * PANEL); }
  int64_t columns() const { return columns_; }

 private:
  int64_t pairs_, columns_;
  Array<uint32_t> data_;
};
using Inputs = Packed<RIGHT_COLUMNS>;

// Of a linear layer: takes the gradients of its outputs, gives those of its weight and bias.
class LinearGradient {
 public:
  LinearGradient(const LcpoGradient& to, int64_t tokens, int64_t outputs)
      : to_(to), outputs_(tokens, outputs), bias_(to.bias ? tokens : 0, outputs) {}

  void put(int64_t first, int64_t rows, const bf16* x) {
    outputs_.put(first, rows, x);
    if (!to_.bias) return;
    for (int64_t r = 0; r < rows; ++r) {
      float* share = bias_.of(first + r);
      for (int64_t j = 0; j < outputs_.columns(); ++j) {
        share[j] += load(x + r * outputs_.columns() + j);
      }
    }
  }
  // Blocks of the weight's gradient, of panels of the layer's inputs one after the other: a panel
  // stays in the second-level cache.
  int64_t blocks(const Inputs& inputs) const { return inputs.panels() * outputs_.panels(); }
  // Adds what the chunk's tokens give to a block.
  void multiply(const Inputs& inputs, int64_t block, Span chunk) const {
    const int64_t j = block / outputs_.panels(), i = block % outputs_.panels();
    const int64_t columns = inputs.columns(), pairs = (chunk.count + 1) / 2;
    float* out = to_.weight + i * LEFT_COLUMNS * columns + j * RIGHT_COLUMNS;
    gemm_dot({outputs_.size(i), inputs.size(j), pairs, outputs_.panel(i), LEFT_COLUMNS,
              inputs.panel(j), RIGHT_COLUMNS, out, columns, true, to_.add || chunk.at > 0});
  }
  void finish() const {
    if (to_.bias) bias_.sum(static_cast<bf16*>(to_.bias));
  }

 private:
  const LcpoGradient& to_;
  Packed<LEFT_COLUMNS> outputs_;
  Shares bias_;
};

class NormGradient {
 public:
  explicit NormGradient(const LcpoHalfLayer& half)
      : width_(half.hidden), weight_(width_), shares_(half.tokens, width_) {
    for (int64_t j = 0; j < width_; ++j) weight_[j] = load(at(half.norm, 0, 0) + j);
  }
  // Of rows from `first`, which begins a block, on; grad_total may be null.
  void take(int64_t first, int64_t rows, const bf16* grad, const void* grad_total,
            const void* total, const float* rstd, void* d_x) {
    for (int64_t r = 0; r < rows; r += BLOCK) {
      const int64_t t = first + r;
      rms_norm_gradient(grad + r * width_, grad_total ? at(grad_total, t, width_) : nullptr,
                        at(total, t, width_), weight_.data(), rstd + r, std::min(BLOCK, rows - r),
                        width_, at(d_x, t, width_), shares_.of(t));
    }
  }
  void finish(void* d_weight) const { shares_.sum(static_cast<bf16*>(d_weight)); }

 private:
  int64_t width_;
  std::vector<float> weight_;
  Shares shares_;
};

struct Before {
  const LcpoBefore& layer;
  const void *total, *d_q, *d_k, *d_v, *d_total;
  void* d_x;
  RightFactor weights = RightFactor::backward({&layer.q, &layer.k, &layer.v});
  NormGradient norm_gradient{layer.half};
  Inputs inputs{layer.half.tokens, layer.half.hidden};
  LinearGradient of_q{layer.d_q, layer.half.tokens, layer.q.outputs},
      of_k{layer.d_k, layer.half.tokens, layer.k.outputs},
      of_v{layer.d_v, layer.half.tokens, layer.v.outputs};

  struct Room {
    explicit Room(const Before& b)
        : normed(TOKENS * b.layer.half.hidden),
          d_normed(TOKENS * b.layer.half.hidden),
          q(TOKENS * b.layer.q.outputs),
          k(TOKENS * b.layer.k.outputs),
          rstd(TOKENS) {}
    Array<bf16> normed, d_normed, q, k;
    Array<float> rstd;
  };

  void pack(const Team& team) const { weights.pack(team); }

  void run(int64_t t, int64_t rows, const Room& room) {
    const int64_t hidden = layer.half.hidden, wide = layer.q.outputs, narrow = layer.k.outputs;
    const bf16* v = at(d_v, t, narrow);
    rope(layer, t, rows, at(d_q, t, wide), at(d_k, t, narrow), room.q, room.k);
    weights.multiply({{room.q, wide}, {room.k, narrow}, {v, narrow}}, rows, room.d_normed);
    norm(layer.half, at(total, t, hidden), nullptr, rows, nullptr, room.normed, room.rstd);
    norm_gradient.take(t, rows, room.d_normed, d_total, total, room.rstd, d_x);
    inputs.put(t, rows, room.normed);
    of_q.put(t, rows, room.q);
    of_k.put(t, rows, room.k);
    of_v.put(t, rows, v);
  }

  std::vector<std::pair<LinearGradient*, Inputs*>> products() {
    return {{&of_q, &inputs}, {&of_k, &inputs}, {&of_v, &inputs}};
  }
};

struct After {
  const LcpoAfter& layer;
  const void *attended, *total, *gate, *up, *d_update, *d_total;
  void *d_x, *d_attended;
  int64_t tokens = layer.half.tokens, hidden = layer.half.hidden, width = layer.up.outputs;
  RightFactor o_weight = RightFactor::backward({&layer.o}),
              gate_up = RightFactor::backward({&layer.gate, &layer.up}),
              down_weight = RightFactor::backward({&layer.down});
  NormGradient norm_gradient{layer.half};
  Inputs to_o{tokens, layer.o.inputs}, to_gate_up{tokens, hidden}, to_down{tokens, width};
  LinearGradient of_o{layer.d_o, tokens, hidden}, of_gate{layer.d_gate, tokens, width},
      of_up{layer.d_up, tokens, width}, of_down{layer.d_down, tokens, hidden};

  struct Room {
    explicit Room(const After& a)
        : normed(TOKENS * a.hidden),
          d_normed(TOKENS * a.hidden),
          inner(TOKENS * a.width),
          d_inner(TOKENS * a.width),
          d_gate(TOKENS * a.width),
          d_up(TOKENS * a.width),
          rstd(TOKENS) {}
    Array<bf16> normed, d_normed, inner, d_inner, d_gate, d_up;
    Array<float> rstd;
  };

  void pack(const Team& team) const {
    for (const RightFactor* w : {&o_weight, &gate_up, &down_weight}) w->pack(team);
  }

  void run(int64_t t, int64_t rows, const Room& room) {
    const bf16 *d = at(d_update, t, hidden), *g = at(gate, t, width), *u = at(up, t, width);
    down_weight.multiply({{d, hidden}}, rows, room.d_inner);
    of_down.put(t, rows, d);
    swiglu_again(room.d_inner, g, u, rows * width, room.d_gate, room.d_up, room.inner);
    to_down.put(t, rows, room.inner);
    of_gate.put(t, rows, room.d_gate);
    of_up.put(t, rows, room.d_up);
    gate_up.multiply({{room.d_gate, width}, {room.d_up, width}}, rows, room.d_normed);
    norm(layer.half, at(total, t, hidden), nullptr, rows, nullptr, room.normed, room.rstd);
    to_gate_up.put(t, rows, room.normed);
    norm_gradient.take(t, rows, room.d_normed, d_total, total, room.rstd, d_x);
    of_o.put(t, rows, at(d_x, t, hidden));
    o_weight.multiply({{at(d_x, t, hidden), hidden}}, rows, at(d_attended, t, layer.o.inputs));
    to_o.put(t, rows, at(attended, t, layer.o.inputs));
  }

  std::vector<std::pair<LinearGradient*, Inputs*>> products() {
    return {{&of_o, &to_o}, {&of_gate, &to_gate_up}, {&of_up, &to_gate_up}, {&of_down, &to_down}};
  }
};

// All threads pack the weights; then, a chunk after the other, they take its tiles and blocks of the
// products over its tokens.
template <class Half>
void run(Half& half, void* d_norm, int32_t threads) {
  const auto products = half.products();
  const int64_t tokens = half.layer.half.tokens;
  std::vector<std::pair<size_t, int64_t>> blocks;  // a product, a block of it
  for (size_t i = 0; i < products.size(); ++i) {
    const int64_t count = products[i].first->blocks(*products[i].second);
    for (int64_t block = 0; block < count; ++block) blocks.emplace_back(i, block);
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    half.pack(this_team());
    const typename Half::Room room(half);
#pragma omp barrier
    for (int64_t t = 0; t == 0 || t < tokens; t += CHUNK) {  // without tokens, one that adds nothing
      const Span chunk{t, std::min(CHUNK, tokens - t)};
      const std::vector<Span> tiles = tiles_of(chunk, threads);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < tiles.size(); ++i) half.run(tiles[i].at, tiles[i].count, room);
#pragma omp for schedule(guided)
      for (size_t i = 0; i < blocks.size(); ++i) {
        const auto& [gradient, inputs] = products[blocks[i].first];
        gradient->multiply(*inputs, blocks[i].second, chunk);
      }
    }
  }
  for (const auto& [gradient, inputs] : products) gradient->finish();
  half.norm_gradient.finish(d_norm);
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_before_attention_backward(const LcpoBefore* layer, const void* total,
                                             const void* d_q, const void* d_k, const void* d_v,
                                             const void* d_total, void* d_x, void* d_norm,
                                             int32_t threads) {
  lcpo::Before half{*layer, total, d_q, d_k, d_v, d_total, d_x};
  lcpo::run(half, d_norm, threads);
}

LCPO_API void lcpo_after_attention_backward(const LcpoAfter* layer, const void* attended,
                                            const void* total, const void* gate, const void* up,
                                            const void* d_update, const void* d_total, void* d_x,
                                            void* d_attended, void* d_norm, int32_t threads) {
  lcpo::After half{*layer, attended, total, gate, up, d_update, d_total, d_x, d_attended};
  lcpo::run(half, d_norm, threads);
}
#endif
