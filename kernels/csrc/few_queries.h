// One query a head against keys and values that lie anywhere: what a decode step needs. Without
// copies of them, and with the sums of Queries::attend, term by term.
#pragma once

#include <cstdint>

#include "attention.h"
#include "simd.h"

namespace lcpo {

// Keys and values of the block that is worked on next. They are asked for a few at a time, and for the
// second-level cache: the first one can wait for fewer lines than memory could deliver, and a burst of
// requests stalls whatever is to be read meanwhile.
template <class T>
struct Ahead {
  const T *const *keys, *const *values;
  int64_t count, entries;  // of each, from where it points on

  // The part that falls to a step of so many. Inline by force: GCC takes a function that only
  // prefetches for one without effects and drops its calls.
  LCPO_INLINE_MEMBER void fetch(int64_t step, int64_t steps) const {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t j = count * step / steps; j < count * (step + 1) / steps; ++j) {
      for (int64_t i = 0; i < entries; i += line) __builtin_prefetch(keys[j] + i, 0, 2);
      for (int64_t i = 0; i < entries; i += line) __builtin_prefetch(values[j] + i, 0, 2);
    }
  }
};

// Some key/value heads of up to KEYS positions; those of a position lie side by side, `size` each.
template <class T>
struct FewQueries {
  const T *const *keys, *const *values;  // [count], the first of the heads
  int64_t count, heads, group, size;     // `group` queries share a head
  Ahead<T> ahead;  // asked for while scores are made

  // scores [heads · group, KEYS] = q · kᵀ, zeros up to a multiple of LANES; q [heads · group, size].
  void score(const T* q, float* scores) const;
  // out [heads · group, size] += p · v; p a left factor, units<T>(KEYS) a row.
  void add_values(const Unit<T>* p, float* out) const;
};

// Whether that runs here, and for heads of this size.
bool has_few_queries(int64_t size);

}  // namespace lcpo
