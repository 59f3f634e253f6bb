// One query a row over a paged cache, with the arithmetic of varlen_attention's forward pass: keys
// in the same blocks from position 0, wherever their pages lie.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"

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
    Scratch scratch;
    Queries queries;     // of all heads
    float *k, *v, *k_t;  // a block of keys of all heads, and one head's turned
    std::vector<int32_t> seen;

    Workspace(int64_t heads, int64_t kv_heads, int64_t width)
        : scratch(Queries::floats(heads, width) + (2 * kv_heads + 1) * KEYS * width),
          queries(Queries::take(scratch, heads, width)),
          k(scratch.take(KEYS * kv_heads * width)),
          v(scratch.take(KEYS * kv_heads * width)),
          k_t(scratch.take(KEYS * width)),
          seen(heads) {}
  };

  // Pages lie anywhere: fetches the next one's entries while those of one are copied.
  void ahead(int64_t at, int64_t entries) const {
    constexpr int64_t line = 64 / sizeof(T);
    for (const int64_t end = at + entries; at < end; at += line) {
      __builtin_prefetch(k_cache + at);
      __builtin_prefetch(v_cache + at);
    }
  }

  // Copies `count` positions from j0 on, for some heads, out of the row's pages.
  void gather(int64_t row, Heads some, int64_t j0, int64_t count, Workspace& w) const {
    const int64_t stride = kv_heads * size, to = some.count * padded(size);
    const int32_t* pages = block_table + row * pages_per_row;
    for (int64_t j = 0; j < count;) {
      const int64_t slot = (j0 + j) % page_size, run = std::min(page_size - slot, count - j);
      const int64_t page = pages[(j0 + j) / page_size];
      const int64_t at = (page * page_size + slot) * stride + some.first * size;
      if (j + run < count) {
        const int64_t next = pages[(j0 + j + run) / page_size] * page_size;
        ahead(next * stride, std::min(page_size, count - j - run) * stride);
      }
      pack(k_cache + at, run, stride, some.count, size, 1.0f, w.k + j * to);
      pack(v_cache + at, run, stride, some.count, size, 1.0f, w.v + j * to);
      j += run;
    }
  }

  void run(int64_t row, Heads some, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), length = cache_seqlens[row];
    const int64_t at = (row * heads + some.first * group) * size, rows = some.count * group;
    pack(q + at, 1, 0, rows, size, static_cast<float>(scale * LOG2E), w.queries.q);
    w.queries.start(rows, width);
    for (int64_t j0 = 0; j0 < length; j0 += KEYS) {
      const int64_t keys = std::min(KEYS, length - j0);
      gather(row, some, j0, keys, w);
      std::fill(w.seen.begin(), w.seen.end(), static_cast<int32_t>(keys));
      for (int64_t h = 0; h < some.count; ++h) {
        KeyBlock block{w.k + h * width, w.v + h * width, w.k_t, some.count * width};
        block.turn(keys, width);
        w.queries.from(h * group, width).attend(block, group, w.seen.data(), size);
      }
    }
    w.queries.finish(rows, width, false);
    unpack(w.queries.out, 1, 0, rows, size, 1.0f, out + at);
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
