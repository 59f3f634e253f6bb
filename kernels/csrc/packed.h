// Products of few rows with weights that are used again and again. float32 weights are packed once, in
// panels of columns that the inner loops walk through without strides; bf16 ones are read as they lie.
#pragma once

#include <cstdint>

#include "api.h"
#include "bf16.h"

namespace lcpo {

// Panels of a weight with so many outputs.
int64_t panels(bool is_bf16, int64_t outputs);

// out [rows, outputs] = x [rows, inputs] · weightᵀ + bias, for the columns of panels first..last-1.
// A row's result depends neither on the other rows nor on how the panels are shared out: each
// element is a chain of multiply-adds over the inputs, or a few of them added up, then the bias.
void multiply(const LcpoLinear& linear, const float* x, int64_t rows, int64_t first, int64_t last,
              float* out);
void multiply(const LcpoLinear& linear, const bf16* x, int64_t rows, int64_t first, int64_t last,
              bf16* out);

}  // namespace lcpo
