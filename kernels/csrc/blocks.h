// Elementwise kernels: blocks of entries, each on one thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace lcpo {

constexpr int64_t BLOCK = 4096;     // entries of one call
constexpr int64_t SMALL = 1 << 14;  // entries for which waking threads does not pay

// Runs f(start, size) over blocks of `size` entries.
template <class F>
void over_blocks(int64_t size, int32_t threads, const F& f) {
#pragma omp parallel for num_threads(threads) schedule(static) if (size > SMALL)
  for (int64_t start = 0; start < size; start += BLOCK) f(start, std::min(BLOCK, size - start));
}

}  // namespace lcpo
