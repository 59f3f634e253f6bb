// Products of weights that lie as they are, bf16 [outputs, inputs], with a few rows turned over: two
// kernels for the same operands, one of AVX-512's vdpbf16ps and one of AMX tiles.
#pragma once

#include <cstdint>

#include "intrinsics.h"

namespace lcpo {

constexpr int64_t PANEL = 16;         // outputs of a panel
constexpr int64_t PANEL_ROWS = 128;   // rows at a time, all that read a weight once

// c [outputs, rows] = w · x. Pair p of inputs of row r is x[r / 16][p][r % 16], zeros behind the last
// row. Each element of c is one chain over the inputs, whatever else is computed with it.
struct PanelBf16 {
  const uint32_t* w;  // [outputs, pairs]
  const uint32_t* x;  // [rows / 16, pairs, 16]
  int64_t outputs, pairs, rows;  // outputs <= PANEL, or 2 PANEL for AMX; rows <= PANEL_ROWS
  float* c;                      // [outputs, PANEL_ROWS]
};

#ifdef LCPO_BF16_DOT
// Only where lcpo_has_product().
void panel_dot(const PanelBf16& panel);

// While the calling thread holds an Amx (amx.h): outputs a multiple of PANEL, inputs of 32.
void panel_amx(const PanelBf16& panel);
#endif

}  // namespace lcpo
