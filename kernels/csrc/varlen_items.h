// How packed sequences are cut into items of work, for both passes of varlen_attention.
//
// A sequence may begin with the keys of another one, its prefix: it is then treated as what it would
// be with a copy of them in front, key for key, so that sharing changes no bit of an output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention.h"

namespace lcpo {

// Consecutive positions of one sequence under one key/value head. Those below `shared` are the
// prefix's, whose first token is `before`; position p from there on is token start + p.
struct Item {
  int64_t head, start, first, stop, before, shared;
};

struct Shape {
  const int32_t *cu_seqlens, *prefix;  // prefix: a sequence for each sequence, or -1
  int64_t sequences, heads, kv_heads, size;
  float scale;

  int64_t group() const { return heads / kv_heads; }  // query heads that share a key head
  int64_t width() const { return padded(size); }
  int64_t tokens() const { return cu_seqlens[sequences]; }
  int64_t length(int64_t b) const { return cu_seqlens[b + 1] - cu_seqlens[b]; }

  // All that sequence b computes.
  Item whole(int64_t b, int64_t head) const {
    const int64_t before = prefix == nullptr ? -1 : prefix[b];
    const int64_t shared = before < 0 ? 0 : length(before);
    const int64_t at = before < 0 ? 0 : cu_seqlens[before];
    return {head, cu_seqlens[b] - shared, shared, shared + length(b), at, shared};
  }
};

// Rows of keys or values at `count` positions from j0 on.
template <class T>
void pack_keys(const Shape& s, const Item& item, const T* x, int64_t j0, int64_t count,
               T* out) {
  const int64_t stride = s.kv_heads * s.size;
  const int64_t shared = std::clamp<int64_t>(item.shared - j0, 0, count);
  x += item.head * s.size;
  if (shared > 0) pack(x + (item.before + j0) * stride, shared, stride, 1, s.size, out);
  if (shared == count) return;
  const int64_t own = item.start + j0 + shared;
  pack(x + own * stride, count - shared, stride, 1, s.size, out + shared * s.width());
}

inline int64_t cost(const Item& x) { return (x.stop - x.first) * (x.first + x.stop); }

// Items with most work first, as the last ones to end leave threads idle.
template <class Work>
void costly_first(std::vector<Work>& found) {
  std::stable_sort(found.begin(), found.end(),
                   [](const Work& a, const Work& b) { return cost(a) > cost(b); });
}

// How many keys of the block from j0 on each query row of positions from `first` on may see.
inline void causal(int32_t* seen, int64_t first, int64_t stop, int64_t group, int64_t j0) {
  for (int64_t p = first; p < stop; ++p) {
    const int64_t count = std::clamp<int64_t>(p + 1 - j0, 0, KEYS);
    seen = std::fill_n(seen, group, static_cast<int32_t>(count));
  }
}

// Runs body(item, workspace) for all items; each thread makes its own workspace once.
template <class Work, class Workspace, class Body>
void for_each(const std::vector<Work>& work, int32_t threads, const Workspace& make,
              const Body& body) {
#pragma omp parallel num_threads(threads) if (work.size() > 1)
  {
    auto workspace = make();
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); ++i) body(work[i], workspace);
  }
}

}  // namespace lcpo
