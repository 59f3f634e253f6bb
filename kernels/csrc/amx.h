// AMX: tiles of 16 rows of 64 bytes, and tdpbf16ps, which adds the product of two tiles of bf16
// pairs to a tile of float32.
#pragma once

#include <cstdint>

#include "intrinsics.h"

#ifdef LCPO_BF16_DOT

#define LCPO_AMX __attribute__((target("amx-tile,amx-bf16,avx512f")))

namespace lcpo {

constexpr int64_t SIDE = 16;                // rows of a tile, and 32-bit entries of each
constexpr int64_t TILE = SIDE * SIDE;       // entries
constexpr int64_t TILE_LINE = SIDE * sizeof(uint32_t);  // bytes of a row

// Whether this process may use AMX; asks for it at the first call.
bool has_amx();

// All eight tiles at full size, for the thread that made it and as long as it lives. Only where
// has_amx().
class Amx {
 public:
  Amx();
  ~Amx();
  Amx(const Amx&) = delete;
};

}  // namespace lcpo
#endif
