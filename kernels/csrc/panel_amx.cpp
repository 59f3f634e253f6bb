// Tiles of AMX: 16 rows of 64 bytes. tdpbf16ps adds to a tile of float32 the product of a tile of 16
// outputs by 32 inputs, which is a part of the weights as they lie, and one of 16 pairs by 16 rows.

#include <atomic>

#include "amx.h"
#include "panel_bf16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

// Fetches the weights that are next, some rows of them at a time, while these are multiplied.
struct Ahead {
  const uint32_t* at;
  int64_t stride, count;

  LCPO_INLINE_MEMBER void fetch(int64_t pair) const {
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(at + i * stride + pair, 0, 2);
  }
};

// Two tiles of outputs and two of rows: tiles 0-3 are sums, 4-5 weights, 6-7 rows.
LCPO_AMX void two_by_two(const PanelBf16& p, int64_t row, const Ahead& ahead) {
  const int64_t stride = p.pairs * sizeof(uint32_t), line = SIDE * sizeof(uint32_t);
  const uint32_t *w = p.w, *low = w + SIDE * p.pairs, *x = p.x + row * p.pairs;
  const uint32_t* right = x + SIDE * p.pairs;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < p.pairs; k += SIDE) {
    ahead.fetch(k);
    _tile_loadd(4, w + k, stride);
    _tile_loadd(6, x + k * SIDE, line);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, low + k, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, right + k * SIDE, line);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t c_stride = PANEL_ROWS * sizeof(float);
  float *c = p.c + row, *c_low = c + SIDE * PANEL_ROWS;
  _tile_stored(0, c, c_stride);
  _tile_stored(1, c + SIDE, c_stride);
  _tile_stored(2, c_low, c_stride);
  _tile_stored(3, c_low + SIDE, c_stride);
}

LCPO_AMX void two_by_one(const PanelBf16& p, int64_t row, const Ahead& ahead) {
  const int64_t stride = p.pairs * sizeof(uint32_t), line = SIDE * sizeof(uint32_t);
  const uint32_t *w = p.w, *low = w + SIDE * p.pairs, *x = p.x + row * p.pairs;
  _tile_zero(0);
  _tile_zero(2);
  for (int64_t k = 0; k < p.pairs; k += SIDE) {
    ahead.fetch(k);
    _tile_loadd(6, x + k * SIDE, line);
    _tile_loadd(4, w + k, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, low + k, stride);
    _tile_dpbf16ps(2, 5, 6);
  }
  constexpr int64_t c_stride = PANEL_ROWS * sizeof(float);
  float* c = p.c + row;
  _tile_stored(0, c, c_stride);
  _tile_stored(2, c + SIDE * PANEL_ROWS, c_stride);
}

LCPO_AMX void one_by_one(const PanelBf16& p, int64_t row) {
  const int64_t stride = p.pairs * sizeof(uint32_t), line = SIDE * sizeof(uint32_t);
  const uint32_t* x = p.x + row * p.pairs;
  _tile_zero(0);
  for (int64_t k = 0; k < p.pairs; k += SIDE) {
    _tile_loadd(6, x + k * SIDE, line);
    _tile_loadd(4, p.w + k, stride);
    _tile_dpbf16ps(0, 4, 6);
  }
  _tile_stored(0, p.c + row, PANEL_ROWS * sizeof(float));
}

}  // namespace

void panel_amx(const PanelBf16& p) {
  // Nor do the intrinsics say what they load: everything must be in memory before.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const int64_t steps = (p.rows + 2 * SIDE - 1) / (2 * SIDE);  // over pairs of tiles of rows
  for (int64_t step = 0; step < steps; ++step) {
    const int64_t row = 2 * SIDE * step;
    if (p.outputs == PANEL) {
      one_by_one(p, row);
      if (p.rows - row > SIDE) one_by_one(p, row + SIDE);
      continue;
    }
    const int64_t first = p.outputs * step / steps, last = p.outputs * (step + 1) / steps;
    const Ahead ahead{p.w + (p.outputs + first) * p.pairs, p.pairs, last - first};
    p.rows - row > SIDE ? two_by_two(p, row, ahead) : two_by_one(p, row, ahead);
  }
}

}  // namespace lcpo
#endif
