// The gradient of swiglu, for those who want its result once more.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace lcpo {

// As lcpo_swiglu_backward on one thread; `out` gets the bits of lcpo_swiglu_forward.
void swiglu_again(const bf16* grad, const bf16* gate, const bf16* up, int64_t size, bf16* d_gate,
                  bf16* d_up, bf16* out);

}  // namespace lcpo
