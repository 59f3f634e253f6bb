// Reductions over one row of logits, shared by the sampler and the log-prob kernels.
#pragma once

#include <cstdint>

namespace lcpo {

// Largest of x[0..size); NaN if any entry is NaN.
float row_max(const float* x, int64_t size);

}  // namespace lcpo
