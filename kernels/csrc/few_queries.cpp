#include "few_queries.h"

#include <algorithm>

#include "turn16.h"

#ifdef LCPO_BF16_DOT

#define LCPO_WIDE __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define LCPO_WIDE_INLINE \
  __attribute__((target("avx512f,avx512bw,avx512bf16"), always_inline)) inline

namespace lcpo {
namespace {

constexpr int64_t TOGETHER = 3;  // queries of a head: with what they share they fit into registers

// sum + left · right, as gemm.h's products add a unit.
LCPO_WIDE_INLINE __m512 add(__m512 sum, float left, __m512i right) {
  return _mm512_fmadd_ps(_mm512_set1_ps(left), _mm512_castsi512_ps(right), sum);
}
LCPO_WIDE_INLINE __m512 add(__m512 sum, uint32_t left, __m512i right) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(left)),
                          (__m512bh)right);
}

LCPO_WIDE_INLINE __m512i widened(const bf16* x) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}

// Units of a right factor: LANES columns, from `at` on, of the rows in unit u.
LCPO_WIDE_INLINE __m512i columns(const float* const* rows, int64_t, int64_t u, int64_t at) {
  return _mm512_loadu_si512(rows[u] + at);
}
LCPO_WIDE_INLINE __m512i columns(const bf16* const* rows, int64_t count, int64_t u, int64_t at) {
  const __m512i low = widened(rows[2 * u] + at);
  if (2 * u + 1 == count) return low;
  return _mm512_or_si512(low, _mm512_slli_epi32(widened(rows[2 * u + 1] + at), 16));
}

// Scores of QUERIES queries and LANES keys; block[i] holds unit i of each key.
template <int QUERIES, int UNITS, class U>
LCPO_WIDE_INLINE void score_some(const __m512i (&block)[LANES], const U* q, int64_t stride,
                                 bool first, float* scores) {
  __m512 sum[QUERIES];
  for (int r = 0; r < QUERIES; ++r) {
    sum[r] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(scores + r * KEYS);
  }
  for (int i = 0; i < UNITS; ++i) {
    for (int r = 0; r < QUERIES; ++r) sum[r] = add(sum[r], q[r * stride + i], block[i]);
  }
  for (int r = 0; r < QUERIES; ++r) _mm512_storeu_ps(scores + r * KEYS, sum[r]);
}

// Of LANES keys from j on and all queries of head h: UNITS units from u on.
template <int UNITS, class T>
LCPO_WIDE_INLINE void score_block(const FewQueries<T>& f, int64_t j, int64_t h, int64_t u,
                                  const T* q, float* scores) {
  constexpr __mmask16 some = (1 << UNITS) - 1;
  const int64_t left_over = std::min<int64_t>(LANES, f.count - j), width = units<T>(f.size);
  __m512i block[LANES];
  for (int64_t i = 0; i < LANES; ++i) {
    block[i] = i < left_over
                   ? _mm512_maskz_loadu_epi32(some, left(f.keys[j + i] + h * f.size) + u)
                   : _mm512_setzero_si512();
  }
  turn16(block);
  const Unit<T>* queries = left(q) + u;
  int64_t r = h * f.group;
  const int64_t stop = r + f.group;
  for (; r + TOGETHER <= stop; r += TOGETHER) {
    score_some<TOGETHER, UNITS>(block, queries + r * width, width, u == 0, scores + r * KEYS + j);
  }
  for (; r < stop; ++r) {
    score_some<1, UNITS>(block, queries + r * width, width, u == 0, scores + r * KEYS + j);
  }
}

template <class T>
LCPO_WIDE void score_all(const FewQueries<T>& f, const T* q, float* scores) {
  const int64_t steps = (f.count + LANES - 1) / LANES * f.heads;
  int64_t step = 0;
  for (int64_t j = 0; j < f.count; j += LANES) {
    for (int64_t h = 0; h < f.heads; ++h) {
      f.ahead.fetch(step++, steps);
      int64_t u = 0;
      for (; u + LANES <= units<T>(f.size); u += LANES) score_block<LANES>(f, j, h, u, q, scores);
      if (u < units<T>(f.size)) score_block<LANES / 2>(f, j, h, u, q, scores);
    }
  }
}

// QUERIES queries of a head, COUNT registers of their outputs.
template <int QUERIES, int COUNT, class T>
LCPO_WIDE_INLINE void add_tile(const FewQueries<T>& f, const Unit<T>* p, int64_t at, float* out) {
  __m512 sum[QUERIES][COUNT];
  for (int r = 0; r < QUERIES; ++r) {
    for (int c = 0; c < COUNT; ++c) sum[r][c] = _mm512_setzero_ps();
  }
  for (int64_t u = 0; u < units<T>(f.count); ++u) {
    __m512i value[COUNT];
    for (int c = 0; c < COUNT; ++c) value[c] = columns(f.values, f.count, u, at + c * LANES);
    for (int r = 0; r < QUERIES; ++r) {
      const Unit<T> weight = p[r * units<T>(KEYS) + u];
      for (int c = 0; c < COUNT; ++c) sum[r][c] = add(sum[r][c], weight, value[c]);
    }
  }
  for (int r = 0; r < QUERIES; ++r) {
    for (int c = 0; c < COUNT; ++c) {
      float* to = out + r * f.size + c * LANES;
      _mm512_storeu_ps(to, _mm512_add_ps(sum[r][c], _mm512_loadu_ps(to)));
    }
  }
}

template <int QUERIES, class T>
LCPO_WIDE_INLINE void add_queries(const FewQueries<T>& f, const Unit<T>* p, int64_t h, int64_t r,
                                  float* out) {
  const Unit<T>* weights = p + r * units<T>(KEYS);
  const int64_t at = h * f.size;
  float* to = out + r * f.size;
  int64_t d = 0;
  for (; d + 4 * LANES <= f.size; d += 4 * LANES) add_tile<QUERIES, 4>(f, weights, at + d, to + d);
  for (; d + 2 * LANES <= f.size; d += 2 * LANES) add_tile<QUERIES, 2>(f, weights, at + d, to + d);
  if (d < f.size) add_tile<QUERIES, 1>(f, weights, at + d, to + d);
}

template <class T>
LCPO_WIDE void add_all(const FewQueries<T>& f, const Unit<T>* p, float* out) {
  for (int64_t h = 0; h < f.heads; ++h) {
    int64_t r = h * f.group;
    const int64_t stop = r + f.group;
    for (; r + TOGETHER <= stop; r += TOGETHER) add_queries<TOGETHER>(f, p, h, r, out);
    for (; r < stop; ++r) add_queries<1>(f, p, h, r, out);
  }
}

}  // namespace

template <class T>
void FewQueries<T>::score(const T* q, float* scores) const {
  score_all(*this, q, scores);
}

template <class T>
void FewQueries<T>::add_values(const Unit<T>* p, float* out) const {
  add_all(*this, p, out);
}

bool has_few_queries(int64_t size) {
  static const bool found = __builtin_cpu_supports("avx512f") &&
                            __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512bf16");
  return found && size % LANES == 0;
}

}  // namespace lcpo
#else
namespace lcpo {
template <class T>
void FewQueries<T>::score(const T*, float*) const {}
template <class T>
void FewQueries<T>::add_values(const Unit<T>*, float*) const {}
bool has_few_queries(int64_t) { return false; }
}  // namespace lcpo
#endif

namespace lcpo {
template struct FewQueries<float>;
template struct FewQueries<bf16>;
}  // namespace lcpo
