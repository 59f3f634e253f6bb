// A decoder layer but for its attention, forward and backward: a few tokens at a time go through all
// of it, so that what lies between two products stays in a core's own cache and nobody waits between
// two ops.
//
// The arithmetic is that of the ops' own kernels, called with one thread, and of PackedDecoder's
// products; the gradient of what several products read is one product, of their weights side by side.
#pragma once

#include <algorithm>
#include <vector>

#include "api.h"
#include "attention.h"
#include "right_factor.h"
#include "shares.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace lcpo {

constexpr int64_t TOKENS = 128;  // tokens at a time, whole blocks

// Rows of `width` from token t on.
inline const bf16* at(const void* x, int64_t t, int64_t width) {
  return static_cast<const bf16*>(x) + t * width;
}
inline bf16* at(void* x, int64_t t, int64_t width) { return static_cast<bf16*>(x) + t * width; }

// Some tokens, which begin a block, as threads take them: small tiles at the end, where nobody should
// wait long.
inline std::vector<Span> tiles_of(Span tokens, int32_t threads) {
  std::vector<Span> found;
  while (tokens.count > 0) {
    const int64_t share = tokens.count / (4 * threads) / BLOCK * BLOCK;
    const int64_t count = std::min(std::clamp(share, BLOCK, TOKENS), tokens.count);
    found.push_back({tokens.at, count});
    tokens = {tokens.at + count, tokens.count - count};
  }
  return found;
}

inline Team this_team() {
#ifdef _OPENMP
  return {omp_get_thread_num(), omp_get_num_threads(), nullptr};
#else
  return {0, 1, nullptr};
#endif
}

// out = norm(total) of some rows, total = update + residual unless there is no residual.
inline void norm(const LcpoHalfLayer& half, const bf16* update, const bf16* residual, int64_t rows,
                 bf16* total, bf16* out, float* rstd) {
  lcpo_rms_norm_forward(update, true, residual, true, half.norm, true, rows, half.hidden, half.eps,
                        out, total, rstd, 1);
}

inline void rope(const LcpoBefore& layer, int64_t t, int64_t rows, const bf16* q, const bf16* k,
                 bf16* q_out, bf16* k_out) {
  const int64_t size = layer.size, half = size / 2;
  const int64_t strides[] = {layer.q.outputs, size, layer.k.outputs, size};
  lcpo_rope(q, k, true, layer.cos + t * half, layer.sin + t * half, rows, layer.q.outputs / size,
            layer.k.outputs / size, half, strides, q_out, k_out, 1);
}

}  // namespace lcpo
