// One query a head against keys and values that lie anywhere: what a decode step needs. Without
// copies of them, and with the sums of Queries::attend, term by term.
#pragma once

#include <cstdint>

#include "attention.h"

namespace lcpo {

// Some key/value heads of up to KEYS positions; those of a position lie side by side, `size` each.
template <class T>
struct FewQueries {
  const T *const *keys, *const *values;  // [count], the first of the heads
  int64_t count, heads, group, size;     // `group` queries share a head

  // scores [heads · group, KEYS] = q · kᵀ, zeros up to a multiple of LANES; q [heads · group, size].
  void score(const T* q, float* scores) const;
  // out [heads · group, size] += p · v; p a left factor, units<T>(KEYS) a row.
  void add_values(const Unit<T>* p, float* out) const;
};

// Whether that runs here, and for heads of this size.
bool has_few_queries(int64_t size);

}  // namespace lcpo
