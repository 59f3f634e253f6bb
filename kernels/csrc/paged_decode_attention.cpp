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

struct Heads {
  int64_t first, count;  // of key/value heads
};

template <class T>
struct Decode {
  const T *q, *k_cache, *v_cache;
  const int32_t *block_table, *cache_seqlens;
  int64_t page_size, pages_per_row, heads, kv_heads, size;
  float scale;
  T* out;

  struct Workspace {
    QueryRoom<T> queries;  // of all heads
    Array<float> scores;   // [queries, KEYS]
    Array<Unit<T>> rounded;
    Array<T> v, room;  // a block of values of all heads, and one head's keys
    Array<Unit<T>> v_right, k_t;
    std::vector<const T*> keys, values;  // where those of a block lie
    std::vector<int32_t> seen;

    Workspace(int64_t heads, int64_t kv_heads, int64_t width)
        : queries(heads, width),
          scores(heads * KEYS),
          rounded(heads * units<T>(KEYS)),
          v(KEYS * kv_heads * width),
          room(KEYS * width),
          v_right(units<T>(KEYS) * kv_heads * width),
          k_t(units<T>(width) * KEYS),
          keys(KEYS),
          values(KEYS),
          seen(heads) {}
  };

  // Finds `count` positions from j0 on, for some heads, in the row's pages, which lie anywhere: all
  // keys are fetched at once.
  void find(int64_t row, Heads some, int64_t j0, int64_t count, Workspace& w) const {
    constexpr int64_t line = 64 / sizeof(T);
    const int64_t stride = kv_heads * size, entries = some.count * size;
    const int32_t* pages = block_table + row * pages_per_row;
    for (int64_t j = 0; j < count;) {
      const int64_t page = pages[(j0 + j) / page_size], slot = (j0 + j) % page_size;
      int64_t at = (page * page_size + slot) * stride + some.first * size;
      for (const int64_t stop = std::min(count, j + page_size - slot); j < stop; ++j) {
        w.keys[j] = k_cache + at;
        w.values[j] = v_cache + at;
        for (int64_t i = 0; i < entries; i += line) __builtin_prefetch(k_cache + at + i);
        at += stride;
      }
    }
  }

  void attend_few(const Queries<T>& all, Heads some, int64_t count, Workspace& w) const {
    const int64_t group = heads / kv_heads, rows = some.count * group;
    const int64_t columns = round_up(count, LANES);
    const FewQueries<T> few{w.keys.data(), w.values.data(), count, some.count, group, size};
    few.score(all.q, w.scores);
    for (int64_t r = 0; r < rows; r += QUERIES) {
      const Queries<T> part = all.from(r, size);
      softmax_step(w.scores + r * KEYS, all.factor, std::min(QUERIES, rows - r), columns,
                   w.seen.data() + r, part.max, part.sum, part.out, size);
    }
    few.add_values(rounded_left(w.scores, rows, columns, KEYS, w.rounded), all.out);
  }

  void attend_copies(const Queries<T>& all, Heads some, int64_t count, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), stride = some.count * width;
    for (int64_t j = 0; j < count; ++j) {
      pack(w.values[j], 1, 0, some.count, size, w.v + j * stride);
    }
    const Unit<T>* v = right(w.v, count, stride, stride, w.v_right);
    for (int64_t h = 0; h < some.count; ++h) {
      turn_keys<T>(w.keys.data(), count, h * size, size, w.room, w.k_t);
      const KeyBlock<T> block{w.k_t, v + h * width, stride};
      all.from(h * group, width).attend(block, group, w.seen.data(), size);
    }
  }

  void run(int64_t row, Heads some, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), length = cache_seqlens[row];
    const int64_t at = (row * heads + some.first * group) * size, rows = some.count * group;
    const bool fast = has_few_queries(size);
    Queries<T> queries = w.queries.queries();
    pack(q + at, 1, 0, rows, size, queries.q);
    queries.start(rows, width, scale);
    for (int64_t j0 = 0; j0 < length; j0 += KEYS) {
      const int64_t keys = std::min(KEYS, length - j0);
      find(row, some, j0, keys, w);
      std::fill(w.seen.begin(), w.seen.end(), static_cast<int32_t>(keys));
      fast ? attend_few(queries, some, keys, w) : attend_copies(queries, some, keys, w);
    }
    queries.finish(rows, width, false);
    unpack(queries.out, 1, 0, rows, size, 1.0f, out + at);
  }

  void run_all(int64_t rows, int32_t threads) const {
    // All heads of a row at once read its cache from end to end; few rows are split by heads.
    const int64_t count = rows >= threads ? kv_heads : 1, parts = kv_heads / count;
#pragma omp parallel num_threads(threads) if (rows * parts > 1)
    {
      Workspace w(count * heads / kv_heads, count, padded(size));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < rows * parts; ++i) run(i / parts, {i % parts * count, count}, w);
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
    lcpo::Decode<T>{in(q),         in(k_cache),   in(v_cache), block_table, cache_seqlens,
                    page_size,     pages_per_row, heads,       kv_heads,    size,
                    scale,         to}
        .run_all(rows, threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(out)) : run(static_cast<float*>(out));
}
