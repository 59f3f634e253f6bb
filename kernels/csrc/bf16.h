// bfloat16 in memory, float32 in registers: kernels are templates over the stored type.
#pragma once

#include <cstdint>

#include "simd.h"

namespace lcpo {

using bf16 = uint16_t;  // the upper half of a float32

LCPO_INLINE float load(const float* x) { return *x; }
LCPO_INLINE float load(const bf16* x) { return from_bits(static_cast<uint32_t>(*x) << 16); }

// To the nearest, ties to even; NaN becomes the quiet NaN that torch writes.
LCPO_INLINE bf16 to_bf16(float value) {
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<bf16>(value == value ? rounded : 0x7fc0u);
}

LCPO_INLINE void store(float* x, float value) { *x = value; }
LCPO_INLINE void store(bf16* x, float value) { *x = to_bf16(value); }

// x[0..size) as float32, for kernels that read a block more than once; `room` holds what is widened.
LCPO_INLINE const float* widened(const float* x, int64_t, float*) { return x; }
LCPO_INLINE const float* widened(const bf16* x, int64_t size, float* room) {
  LCPO_SIMD
  for (int64_t i = 0; i < size; ++i) room[i] = load(x + i);
  return room;
}

}  // namespace lcpo
