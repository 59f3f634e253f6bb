// The gradient of an RMS norm in bf16, for those who make it a few rows at a time.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace lcpo {

// Of at most BLOCK rows (shares.h), as lcpo_rms_norm_backward; grad_total may be null. Their share of
// d_weight is added to what is there.
void rms_norm_gradient(const bf16* grad, const bf16* grad_total, const bf16* total,
                       const float* weight, const float* rstd, int64_t rows, int64_t width,
                       bf16* d_x, float* d_weight);

}  // namespace lcpo
