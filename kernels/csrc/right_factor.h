// Weights of linear layers as right factors of bf16 products with many rows, which are read as they
// lie and give rows that are written as they are wanted.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "api.h"
#include "attention.h"
#include "bf16.h"
#include "decode_team.h"

namespace lcpo {

// Dense rows of an even width.
struct Rows {
  const bf16* x;
  int64_t width;
};

// Only where lcpo_has_product(). Each element of a product is one chain over the inputs, as in packed.h:
// a forward pass has the bits of `multiply` there.
class RightFactor {
 public:
  // weightᵀ of a layer: takes its input to its output.
  static RightFactor forward(const LcpoLinear& layer) { return {{&layer}, false}; }
  // Weights of layers with the same input: takes gradients of their outputs to that of the input.
  static RightFactor backward(std::vector<const LcpoLinear*> layers) { return {layers, true}; }

  // Packs a thread's share of the weights; all of it must be done before a product.
  void pack(const Team& team) const;
  // out [rows, columns] = the rows of all parts, side by side, times this, + bias forward.
  void multiply(std::initializer_list<Rows> parts, int64_t rows, bf16* out) const;

 private:
  RightFactor(std::vector<const LcpoLinear*> layers, bool backward);

  std::vector<const LcpoLinear*> layers_;
  bool backward_;
  int64_t pairs_, columns_, panels_;
  Array<uint32_t> data_;  // [panels, pairs, RIGHT_COLUMNS], zeros behind the last column
};

}  // namespace lcpo
