// Small dense products for tiles that lie in cache; float32, row-major, strides in elements.
#pragma once

#include <cstdint>
#include <vector>

namespace lcpo {

// C[m, n] (+)= A[m, k] · B[k, n], n a multiple of 16. With `transposed` A is stored as [k, m].
// A unit of k is a float, or as uint32_t two bf16 that are neighbours along k, the first one in the
// lower half: both products are added. Each entry is one chain of multiply-adds over k in order, then
// added to C with `accumulate`, whatever m, n and the machine's registers: cutting a product along m
// or n changes no bit.
template <class Unit>
struct Gemm {
  int64_t m, n, k;
  const Unit* a;
  int64_t lda;
  const Unit* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  bool transposed, accumulate;
};
using GemmFloat = Gemm<float>;
using GemmPairs = Gemm<uint32_t>;
void gemm(const GemmFloat& g);
void gemm(const GemmPairs& g);

// The builds of `gemm` that this machine can run, the one it takes first.
template <class Unit>
std::vector<void (*)(const Gemm<Unit>&)> gemm_levels();

// By AVX-512's vdpbf16ps, and for any n: rows of B are then read up to a multiple of 16, rows of C
// written up to n. Only where lcpo_has_product().
void gemm_dot(const GemmPairs& g);

// out[c, r] = in[r, c] of 32-bit entries; rows and columns multiples of 4.
template <class Unit>
void transpose(const Unit* in, int64_t rows, int64_t columns, int64_t in_stride, Unit* out,
               int64_t out_stride);

}  // namespace lcpo
