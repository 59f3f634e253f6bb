// A product of bf16 matrices with a float32 result; see product.cpp.
#pragma once

#include <cstdint>

#include "bf16.h"

namespace lcpo {

// c [m, n] (+)= a · b, strides in elements: a is [m, k], or [k, m] transposed, b [k, n].
struct Product {
  const bf16* a;
  bool a_is_transposed;
  int64_t a_stride;
  const bf16* b;
  int64_t b_stride;
  int64_t m, n, k;
  float* c;
  int64_t c_stride;
  bool add;
};

// Panels of pairs along k, of columns of a and of b: what gemm_dot multiplies at a time. It takes 8
// columns of a together; 16 are a register when they are packed.
constexpr int64_t LEFT_COLUMNS = 16, RIGHT_COLUMNS = 48;

// Rows [0, rows) of such a panel: out[p][i] = (x[2p][i], x[2p + 1][i]), zero outside. x is [rows,
// columns], of which `size` <= PANEL are taken.
template <int64_t PANEL>
void pack_columns(const bf16* x, int64_t rows, int64_t stride, int64_t size, uint32_t* out);

// Only where lcpo_has_product().
void product_dot(const Product& product, int32_t threads);

// Only where has_amx().
void product_amx(const Product& product, int32_t threads);

}  // namespace lcpo
