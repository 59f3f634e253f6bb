// What lets plain loops become vector code, and the exp and log they need.
//
// Functions marked LCPO_CLONES are compiled for several x86 levels and picked at load time, so one
// build runs everywhere. Sums keep a fixed number of lanes and the build forbids contraction to
// FMA, so all levels give the same bits (gemm.cpp is the exception).
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#define LCPO_INLINE static inline __attribute__((always_inline))
// Before a loop over lanes: GCC would else unroll it first and then find little to vectorise.
#define LCPO_SIMD _Pragma("omp simd")
#define LCPO_INLINE_MEMBER inline __attribute__((always_inline))

// Levels, and not arch= of a processor, which matches single models of one vendor; older compilers
// know single features only. Function versions need glibc's ifunc; its resolvers run before a
// sanitizer is ready.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(LCPO_SANITIZE)
#if !defined(__clang__) && __GNUC__ >= 12
#define LCPO_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define LCPO_FMA
#elif defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 8
#define LCPO_CLONES \
  __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef LCPO_CLONES
#define LCPO_CLONES
#endif
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define LCPO_FMA
#endif

namespace lcpo {

constexpr int LANES = 16;  // floats of one AVX-512 register
constexpr float INF = std::numeric_limits<float>::infinity();
constexpr double LOG2E = 1.44269504088896340736, LN2 = 0.69314718055994530942;

LCPO_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

LCPO_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// a · b + c, rounded once where the build's fast levels have the instruction; at the plain level of
// such a build it is a library call: slow, and the same bits.
LCPO_INLINE float fused(float a, float b, float c) {
#ifdef LCPO_FMA
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// exp(x) for x <= 0, -inf included; below -87.3 (results under 1.2e-38) it is 0; NaN stays NaN.
// The polynomial and the split of ln 2 are those of Cephes' expf; error below 2 ulp.
LCPO_INLINE float exp_nonpositive(float x) {
  const float clamped = x >= -87.3f ? x : -87.3f;  // NaN too: it has no integer part
  constexpr float to_integer = 12582912.0f;  // 1.5 * 2**23: adding it rounds to an integer
  const float n = (clamped * 1.44269504088896341f + to_integer) - to_integer;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float scale = from_bits(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23);
  const float result = x < -87.3f ? 0.0f : p * scale;
  return x == x ? result : x;
}

// Where exponents of 2 are cut off. Defined in rows.cpp, out of the compiler's sight: it would else
// split off the path of the constant, and no loop with a branch becomes vector code.
extern const float LOWEST_EXPONENT;   // -127
extern const float HIGHEST_EXPONENT;  // 127

LCPO_INLINE float clamp_exponent(float y) { return y < LOWEST_EXPONENT ? LOWEST_EXPONENT : y; }

// 2**y for -127 <= y <= 127 (see clamp_exponent); 0 where y rounds to -127, and NaN stays NaN.
// Degree 5, minimax with p(0) = 1; error below 2 ulp.
LCPO_INLINE float exp2_clamped(float y) {
  constexpr float to_integer = 12582912.0f + 127.0f;  // leaves n + 127 in the low bits
  const float shifted = y + to_integer;
  const float r = y - (shifted - to_integer);
  float p = 1.3264713566511364e-3f;
  p = fused(p, r, 9.671523270838934e-3f);
  p = fused(p, r, 5.5507338718858164e-2f);
  p = fused(p, r, 2.402224192311821e-1f);
  p = fused(p, r, 6.931469774778268e-1f);
  p = fused(p, r, 1.0f);
  return p * from_bits(to_bits(shifted) << 23);
}

// log(x) for normal x > 0; Cephes' logf, error below 2 ulp.
LCPO_INLINE float log_positive(float x) {
  const uint32_t bits = to_bits(x);
  int32_t exponent = static_cast<int32_t>(bits >> 23) - 126;
  float m = from_bits((bits & 0x007fffffu) | 0x3f000000u);  // in [0.5, 1)
  const bool low = m < 0.707106781186547524f;
  exponent -= low ? 1 : 0;
  m = (low ? m + m : m) - 1.0f;
  const float e = static_cast<float>(exponent);
  const float square = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * square + e * -2.12194440e-4f - 0.5f * square;
  return m + p + e * 0.693359375f;
}

// Sums in float lanes, flushed to double often enough that long rows stay exact to a few ulp.
struct LaneSum {
  float part[LANES] = {};
  double whole = 0.0;

  LCPO_INLINE_MEMBER void flush() {
    for (int i = 0; i < LANES; ++i) {
      whole += part[i];
      part[i] = 0.0f;
    }
  }
};

}  // namespace lcpo
