// One query a row over a paged cache, with the arithmetic of varlen_attention's forward pass: keys
// in the same blocks from position 0, wherever their pages lie.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "few_queries.h"

namespace lcpo {
namespace {

// Where keys and values of up to KEYS positions of an item lie.
template <class T>
struct Block {
  std::vector<const T*> keys = std::vector<const T*>(KEYS), values = keys;
  int64_t item = -1, j0 = 0, count = 0;
};

// Of a row's key/value heads `together` at a time: an item is such a part of a row.
template <class T>
struct Decode {
  const T *q, *k_cache, *v_cache;
  const int32_t *block_table, *cache_seqlens;
  int64_t rows, page_size, pages_per_row, heads, kv_heads, size;
  float scale;
  T* out;
  int64_t together = kv_heads;

  struct Workspace {
    QueryRoom<T> queries;  // of all heads
    Array<float> scores;   // [queries, KEYS]
    Array<Unit<T>> rounded;
    Array<T> v, room;  // a block of values of all heads, and one head's keys
    Array<Unit<T>> v_right, k_t;
    Block<T> now, next;
    std::vector<int32_t> seen;

    Workspace(int64_t heads, int64_t kv_heads, int64_t width)
        : queries(heads, width),
          scores(heads * KEYS),
          rounded(heads * units<T>(KEYS)),
          v(KEYS * kv_heads * width),
          room(KEYS * width),
          v_right(units<T>(KEYS) * kv_heads * width),
          k_t(units<T>(width) * KEYS),
          seen(heads) {}
  };

  int64_t parts() const { return kv_heads / together; }
  int64_t row_of(int64_t item) const { return item / parts(); }
  int64_t first_of(int64_t item) const { return item % parts() * together; }

  // The block of an item from position j0 on: pages lie anywhere.
  void find(int64_t item, int64_t j0, Block<T>& b) const {
    const int64_t row = row_of(item), stride = kv_heads * size;
    const int32_t* pages = block_table + row * pages_per_row;
    b.item = item, b.j0 = j0, b.count = std::min<int64_t>(KEYS, cache_seqlens[row] - j0);
    for (int64_t j = 0; j < b.count;) {
      const int64_t page = pages[(j0 + j) / page_size], slot = (j0 + j) % page_size;
      int64_t at = (page * page_size + slot) * stride + first_of(item) * size;
      for (const int64_t stop = std::min(b.count, j + page_size - slot); j < stop; ++j) {
        b.keys[j] = k_cache + at;
        b.values[j] = v_cache + at;
        at += stride;
      }
    }
  }

  // The block behind w.now: of this item, or of the one that a thread takes next.
  Ahead<T> find_next(Workspace& w) const {
    const Block<T>& now = w.now;
    w.next.count = 0;
    if (now.j0 + KEYS < cache_seqlens[row_of(now.item)]) {
      find(now.item, now.j0 + KEYS, w.next);
    } else if (now.item + 1 < rows * parts()) {
      find(now.item + 1, 0, w.next);
    }
    return {w.next.keys.data(), w.next.values.data(), w.next.count, together * size};
  }

  void attend_few(const Queries<T>& all, Workspace& w) const {
    const int64_t group = heads / kv_heads, queries = together * group;
    const int64_t columns = round_up(w.now.count, LANES);
    const FewQueries<T> few{w.now.keys.data(), w.now.values.data(), w.now.count, together, group,
                            size, find_next(w)};
    few.score(all.q, w.scores);
    for (int64_t r = 0; r < queries; r += QUERIES) {
      const Queries<T> part = all.from(r, size);
      softmax_step(w.scores + r * KEYS, all.factor, std::min(QUERIES, queries - r), columns,
                   w.seen.data() + r, part.max, part.sum, part.out, size);
    }
    few.add_values(rounded_left(w.scores, queries, columns, KEYS, w.rounded), all.out);
  }

  void attend_copies(const Queries<T>& all, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), stride = together * width;
    const int64_t count = w.now.count;
    const Ahead<T> ahead = find_next(w);
    for (int64_t j = 0; j < count; ++j) {
      pack(w.now.values[j], 1, 0, together, size, w.v + j * stride);
    }
    const Unit<T>* v = right(w.v, count, stride, stride, w.v_right);
    for (int64_t h = 0; h < together; ++h) {
      ahead.fetch(h, together);
      turn_keys<T>(w.now.keys.data(), count, h * size, size, w.room, w.k_t);
      const KeyBlock<T> block{w.k_t, v + h * width, stride};
      all.from(h * group, width).attend(block, group, w.seen.data(), size);
    }
  }

  void run(int64_t item, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), row = row_of(item);
    const int64_t at = (row * heads + first_of(item) * group) * size, count = together * group;
    const bool fast = has_few_queries(size);
    Queries<T> queries = w.queries.queries();
    pack(q + at, 1, 0, count, size, queries.q);
    queries.start(count, width, scale);
    for (int64_t j0 = 0; j0 < cache_seqlens[row]; j0 += KEYS) {
      std::swap(w.now, w.next);
      if (w.now.item != item || w.now.j0 != j0) find(item, j0, w.now);
      std::fill(w.seen.begin(), w.seen.end(), static_cast<int32_t>(w.now.count));
      fast ? attend_few(queries, w) : attend_copies(queries, w);
    }
    queries.finish(count, width, false);
    unpack(queries.out, 1, 0, count, size, 1.0f, out + at);
  }

  void run_all(int32_t threads) {
    // All heads of a row at once read its cache from end to end; few rows are split by heads.
    if (rows < threads) together = 1;
    const int64_t items = rows * parts();
#pragma omp parallel num_threads(threads) if (items > 1)
    {
      Workspace w(together * heads / kv_heads, together, padded(size));
#pragma omp for schedule(guided)
      for (int64_t item = 0; item < items; ++item) run(item, w);
    }
  }
};

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_paged_decode_attention(const void* q, const void* k_cache, const void* v_cache,
                                          bool is_bf16, const int32_t* block_table,
                                          const int32_t* cache_seqlens, int64_t rows,
                                          int64_t page_size, int64_t pages_per_row, int64_t heads,
                                          int64_t kv_heads, int64_t size, float scale, void* out,
                                          int32_t threads) {
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const auto in = [](const void* x) { return static_cast<const T*>(x); };
    lcpo::Decode<T>{in(q),     in(k_cache),   in(v_cache), block_table, cache_seqlens, rows,
                    page_size, pages_per_row, heads,       kv_heads,    size,          scale,
                    to}
        .run_all(threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(out)) : run(static_cast<float*>(out));
}
