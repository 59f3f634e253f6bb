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

// Only where lcpo_has_product().
void product_dot(const Product& product, int32_t threads);

// Only where has_amx().
void product_amx(const Product& product, int32_t threads);

}  // namespace lcpo
