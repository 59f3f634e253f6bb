// Register-blocked products, one build for each width of vector registers.
//
// Contraction to FMA is allowed here (see CMakeLists.txt): results may differ in the last bits
// between machines with and without it, and with nothing else.

#include "gemm.h"

#include <cstring>
#include <type_traits>

#include "api.h"
#include "intrinsics.h"

#if defined(__clang__)
#define LCPO_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define LCPO_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, Int4{__VA_ARGS__})
#endif

namespace lcpo {
namespace {

typedef int32_t Int4 __attribute__((vector_size(16)));
typedef float Float4 __attribute__((vector_size(16)));
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float16 __attribute__((vector_size(64)));

// Units of B next to each other, and what one of A adds to their sums.
template <class V, class Unit>
struct Right;

template <class V>
struct Right<V, float> {
  V entries;
  LCPO_INLINE_MEMBER void load(const float* b) { std::memcpy(&entries, b, sizeof(V)); }
  LCPO_INLINE_MEMBER void add(float a, V& sum) const { sum += a * entries; }
};

template <class V>
struct Right<V, uint32_t> {
  V first, second;
  LCPO_INLINE_MEMBER void load(const uint32_t* b) {
    typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
    Bits bits;
    std::memcpy(&bits, b, sizeof(V));
    first = (V)(bits << 16);
    second = (V)(bits & 0xffff0000u);
  }
  LCPO_INLINE_MEMBER void add(uint32_t a, V& sum) const {
    sum += from_bits(a & 0xffff0000u) * second;
    sum += from_bits(a << 16) * first;
  }
};

// MR rows and NR vectors of C in registers: MR · NR sums, NR entries of B and one of A.
template <class V, int MR, int NR, class Unit>
LCPO_INLINE void tile(const Gemm<Unit>& g, int64_t i0, int64_t j0) {
  constexpr int64_t W = sizeof(V) / sizeof(float);
  const Unit* a = g.transposed ? g.a + i0 : g.a + i0 * g.lda;
  const int64_t by_row = g.transposed ? 1 : g.lda, by_step = g.transposed ? g.lda : 1;
  const Unit* b = g.b + j0;
  float* c = g.c + i0 * g.ldc + j0;
  V sum[MR][NR] = {};
  for (int64_t p = 0; p < g.k; ++p) {
    Right<V, Unit> row[NR];
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) row[j].load(b + j * W);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const Unit entry = a[i * by_row];
#pragma GCC unroll 8
      for (int j = 0; j < NR; ++j) row[j].add(entry, sum[i][j]);
    }
    a += by_step;
    b += g.ldb;
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      float* to = c + i * g.ldc + j * W;
      V before = {};
      if (g.accumulate) std::memcpy(&before, to, sizeof(V));
      sum[i][j] += before;
      std::memcpy(to, &sum[i][j], sizeof(V));
    }
  }
}

template <class V, int NR, class Unit>
LCPO_INLINE void panel(const Gemm<Unit>& g, int64_t j0) {
  int64_t i = 0;
  for (; i + 6 <= g.m; i += 6) tile<V, 6, NR>(g, i, j0);
  if constexpr (std::is_same_v<Unit, uint32_t>) {  // these are a fallback: little code
    for (; i < g.m; ++i) tile<V, 1, NR>(g, i, j0);
    return;
  }
  switch (g.m - i) {
    case 5: return tile<V, 5, NR>(g, i, j0);
    case 4: return tile<V, 4, NR>(g, i, j0);
    case 3: return tile<V, 3, NR>(g, i, j0);
    case 2: return tile<V, 2, NR>(g, i, j0);
    case 1: return tile<V, 1, NR>(g, i, j0);
  }
}

template <class V, int NR, class Unit>
LCPO_INLINE void panels(const Gemm<Unit>& g) {
  constexpr int64_t W = sizeof(V) / sizeof(float);
  int64_t j = 0;
  for (; j + NR * W <= g.n; j += NR * W) panel<V, NR>(g, j);
  if constexpr (NR == 4) {
    switch ((g.n - j) / W) {
      case 3: return panel<V, 3>(g, j);
      case 2: return panel<V, 2>(g, j);
      case 1: return panel<V, 1>(g, j);
    }
  }
}

template <class Unit>
using Run = void (*)(const Gemm<Unit>&);

#if defined(__x86_64__)
template <class Unit>
__attribute__((target("avx512f"))) void gemm_avx512(const Gemm<Unit>& g) {
  panels<Float16, 4>(g);
}
template <class Unit>
__attribute__((target("avx2,fma"))) void gemm_avx2(const Gemm<Unit>& g) {
  panels<Float8, 2>(g);
}
template <class Unit>
void gemm_plain(const Gemm<Unit>& g) {
  panels<Float4, 2>(g);
}
#else
template <class Unit>
void gemm_plain(const Gemm<Unit>& g) {
  panels<Float4, 4>(g);
}
#endif

template <class Unit>
void add_levels(std::vector<Run<Unit>>& found) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) found.push_back(gemm_avx512<Unit>);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(gemm_avx2<Unit>);
  }
#endif
  found.push_back(gemm_plain<Unit>);
}

// Four rows of four, by two rounds of interleaving rows i and i + 2.
LCPO_INLINE Float4 low(Float4 x, Float4 y) { return LCPO_SHUFFLE(x, y, 0, 4, 1, 5); }
LCPO_INLINE Float4 high(Float4 x, Float4 y) { return LCPO_SHUFFLE(x, y, 2, 6, 3, 7); }

}  // namespace

template <>
std::vector<Run<float>> gemm_levels<float>() {
  std::vector<Run<float>> found;
  add_levels(found);
  return found;
}

template <>
std::vector<Run<uint32_t>> gemm_levels<uint32_t>() {
  std::vector<Run<uint32_t>> found;
#ifdef LCPO_BF16_DOT
  if (lcpo_has_product()) found.push_back(gemm_dot);
#endif
  add_levels(found);
  return found;
}

void gemm(const GemmFloat& g) {
  static const Run<float> run = gemm_levels<float>().front();
  run(g);
}

void gemm(const GemmPairs& g) {
  static const Run<uint32_t> run = gemm_levels<uint32_t>().front();
  run(g);
}

template <class Unit>
void transpose(const Unit* in, int64_t rows, int64_t columns, int64_t in_stride, Unit* out,
               int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += 4) {
    for (int64_t r = 0; r < rows; r += 4) {
      Float4 x[4], y[4];
      for (int i = 0; i < 4; ++i) std::memcpy(&x[i], in + (r + i) * in_stride + c, sizeof x[i]);
      for (int i = 0; i < 2; ++i) {
        y[2 * i] = low(x[i], x[i + 2]);
        y[2 * i + 1] = high(x[i], x[i + 2]);
      }
      for (int i = 0; i < 2; ++i) {
        x[2 * i] = low(y[i], y[i + 2]);
        x[2 * i + 1] = high(y[i], y[i + 2]);
      }
      for (int i = 0; i < 4; ++i) std::memcpy(out + (c + i) * out_stride + r, &x[i], sizeof x[i]);
    }
  }
}

template void transpose(const float*, int64_t, int64_t, int64_t, float*, int64_t);
template void transpose(const uint32_t*, int64_t, int64_t, int64_t, uint32_t*, int64_t);

}  // namespace lcpo
