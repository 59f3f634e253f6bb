// Small dense products for tiles that lie in cache; float32, row-major, strides in elements.
#pragma once

#include <cstdint>
#include <vector>

namespace lcpo {

// C[m, n] (+)= A[m, k] · B[k, n], n a multiple of 16. With `transposed` A is stored as [k, m].
// Each entry is one chain of multiply-adds over k in order, then added to C with `accumulate`,
// whatever m, n and the machine's registers: cutting a product along m or n changes no bit.
struct Gemm {
  int64_t m, n, k;
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  bool transposed, accumulate;
};
void gemm(const Gemm& g);

// The builds of `gemm` that this machine can run, the one it takes first.
using GemmRun = void (*)(const Gemm&);
std::vector<GemmRun> gemm_levels();

// out[c, r] = in[r, c]; rows and columns multiples of 4.
void transpose(const float* in, int64_t rows, int64_t columns, int64_t in_stride, float* out,
               int64_t out_stride);

}  // namespace lcpo
