#include "few_queries.h"

#include <algorithm>

#include "turn16.h"

#ifdef LCPO_BF16_DOT

#define LCPO_WIDE __attribute__((target("avx512f,avx512bw")))
#define LCPO_WIDE_INLINE __attribute__((target("avx512f,avx512bw"), always_inline)) inline

namespace lcpo {
namespace {

LCPO_WIDE_INLINE __m512 load16(const float* x) { return _mm512_loadu_ps(x); }
LCPO_WIDE_INLINE __m512 load16(const bf16* x) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

// sum[r] + q · k of QUERIES queries and LANES keys, whose entries turned registers hold one by one.
template <int QUERIES, int UNITS>
LCPO_WIDE_INLINE void add_scores(const float*, const __m512i (&block)[LANES], const float* q,
                                 int64_t stride, __m512 (&sum)[QUERIES]) {
  for (int i = 0; i < UNITS; ++i) {
    const __m512 key = _mm512_castsi512_ps(block[i]);
    for (int r = 0; r < QUERIES; ++r) {
      sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * stride + i]), key, sum[r]);
    }
  }
}

// An entry is a pair of bf16.
template <int QUERIES, int UNITS>
LCPO_WIDE_INLINE void add_scores(const bf16*, const __m512i (&block)[LANES], const float* q,
                                 int64_t stride, __m512 (&sum)[QUERIES]) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int i = 0; i < UNITS; ++i) {
    const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(block[i], 16));
    const __m512 second = _mm512_castsi512_ps(_mm512_and_si512(block[i], upper));
    for (int r = 0; r < QUERIES; ++r) {
      const float* at = q + r * stride + 2 * i;
      sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[0]), first, sum[r]);
      sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(at[1]), second, sum[r]);
    }
  }
}

// Up to UNITS * 4 bytes of each of LANES keys at a time, from entry d on.
template <int QUERIES, int UNITS, class T>
LCPO_WIDE_INLINE void score_some(const __m512i (&block)[LANES], const float* q, int64_t size,
                                 bool first, float* scores) {
  __m512 sum[QUERIES];
  for (int r = 0; r < QUERIES; ++r) {
    sum[r] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(scores + r * KEYS);
  }
  add_scores<QUERIES, UNITS>(static_cast<const T*>(nullptr), block, q, size, sum);
  for (int r = 0; r < QUERIES; ++r) _mm512_storeu_ps(scores + r * KEYS, sum[r]);
}

template <int UNITS, class T>
LCPO_WIDE_INLINE void score_block(const FewQueries<T>& f, int64_t j, int64_t h, int64_t d,
                                  const float* q, float* scores) {
  constexpr __mmask16 some = UNITS == LANES ? 0xffff : (1 << UNITS) - 1;
  __m512i block[LANES];
  for (int64_t i = 0; i < LANES; ++i) {
    block[i] = j + i < f.count ? _mm512_maskz_loadu_epi32(some, f.keys[j + i] + h * f.size + d)
                               : _mm512_setzero_si512();
  }
  // Values are wanted next: asked for here and there, they come while keys are worked on.
  const int64_t left = std::min<int64_t>(LANES, f.count - j);
  for (int64_t i = 0; i < left; ++i) __builtin_prefetch(f.values[j + i] + h * f.size + d);
  turn16(block);
  int64_t r = h * f.group;
  const int64_t stop = r + f.group;
  for (; r + 3 <= stop; r += 3) {
    score_some<3, UNITS, T>(block, q + r * f.size + d, f.size, d == 0, scores + r * KEYS + j);
  }
  for (; r < stop; ++r) {
    score_some<1, UNITS, T>(block, q + r * f.size + d, f.size, d == 0, scores + r * KEYS + j);
  }
}

template <class T>
LCPO_WIDE void score_all(const FewQueries<T>& f, const float* q, float* scores) {
  constexpr int64_t step = LANES * sizeof(float) / sizeof(T);
  for (int64_t j = 0; j < f.count; j += LANES) {
    for (int64_t h = 0; h < f.heads; ++h) {
      int64_t d = 0;
      for (; d + step <= f.size; d += step) score_block<LANES>(f, j, h, d, q, scores);
      if (d < f.size) score_block<LANES / 2>(f, j, h, d, q, scores);
    }
  }
}

// QUERIES queries of a head, COUNT registers of their outputs.
template <int QUERIES, int COUNT, class T>
LCPO_WIDE_INLINE void add_tile(const FewQueries<T>& f, const float* p, int64_t offset, float* out) {
  __m512 sum[QUERIES][COUNT];
  for (int r = 0; r < QUERIES; ++r) {
    for (int c = 0; c < COUNT; ++c) sum[r][c] = _mm512_setzero_ps();
  }
  for (int64_t j = 0; j < f.count; ++j) {
    __m512 value[COUNT];
    for (int c = 0; c < COUNT; ++c) value[c] = load16(f.values[j] + offset + c * LANES);
    for (int r = 0; r < QUERIES; ++r) {
      const __m512 weight = _mm512_set1_ps(p[r * KEYS + j]);
      for (int c = 0; c < COUNT; ++c) sum[r][c] = _mm512_fmadd_ps(weight, value[c], sum[r][c]);
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
LCPO_WIDE_INLINE void add_queries(const FewQueries<T>& f, const float* p, int64_t h, int64_t r,
                                  float* out) {
  int64_t d = 0;
  for (; d + 4 * LANES <= f.size; d += 4 * LANES) {
    add_tile<QUERIES, 4>(f, p + r * KEYS, h * f.size + d, out + r * f.size + d);
  }
  for (; d + 2 * LANES <= f.size; d += 2 * LANES) {
    add_tile<QUERIES, 2>(f, p + r * KEYS, h * f.size + d, out + r * f.size + d);
  }
  if (d < f.size) add_tile<QUERIES, 1>(f, p + r * KEYS, h * f.size + d, out + r * f.size + d);
}

template <class T>
LCPO_WIDE void add_all(const FewQueries<T>& f, const float* p, float* out) {
  for (int64_t h = 0; h < f.heads; ++h) {
    int64_t r = h * f.group;
    const int64_t stop = r + f.group;
    for (; r + 3 <= stop; r += 3) add_queries<3>(f, p, h, r, out);
    for (; r < stop; ++r) add_queries<1>(f, p, h, r, out);
  }
}

}  // namespace

template <class T>
void FewQueries<T>::score(const float* q, float* scores) const {
  score_all(*this, q, scores);
}

template <class T>
void FewQueries<T>::add_values(const float* p, float* out) const {
  add_all(*this, p, out);
}

template struct FewQueries<float>;
template struct FewQueries<bf16>;

bool has_few_queries(int64_t size) {
  static const bool found =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  return found && size % LANES == 0;
}

}  // namespace lcpo
#else
namespace lcpo {
template <class T>
void FewQueries<T>::score(const float*, float*) const {}
template <class T>
void FewQueries<T>::add_values(const float*, float*) const {}
template struct FewQueries<float>;
template struct FewQueries<bf16>;
bool has_few_queries(int64_t) { return false; }
}  // namespace lcpo
#endif
