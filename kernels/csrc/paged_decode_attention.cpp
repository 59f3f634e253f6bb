// One query a row over a paged cache, with the arithmetic of varlen_attention's forward pass: keys
// in the same blocks from position 0, wherever their pages lie.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"

namespace lcpo {
namespace {

template <class T>
struct Decode {
  const T *q, *k_cache, *v_cache;
  const int32_t *block_table, *cache_seqlens;
  int64_t page_size, pages_per_row, heads, kv_heads, size;
  float scale;
  T* out;

  struct Workspace {
    Scratch scratch;
    Queries queries;
    KeyBlock block;
    std::vector<int32_t> seen;

    Workspace(int64_t rows, int64_t width)
        : scratch(Queries::floats(rows, width) + KeyBlock::floats(width)),
          queries(scratch, rows, width),
          block(scratch, width),
          seen(rows) {}
  };

  // Copies `count` keys and values from position j0 on out of their pages.
  void gather(const int32_t* pages, int64_t head, int64_t j0, int64_t count,
              KeyBlock& block) const {
    const int64_t stride = kv_heads * size, width = padded(size);
    for (int64_t j = 0; j < count;) {
      const int64_t slot = (j0 + j) % page_size, run = std::min(page_size - slot, count - j);
      const int64_t at = (pages[(j0 + j) / page_size] * page_size + slot) * stride + head * size;
      pack(k_cache + at, run, stride, 1, size, 1.0f, block.k + j * width);
      pack(v_cache + at, run, stride, 1, size, 1.0f, block.v + j * width);
      j += run;
    }
    block.finish(count, width);
  }

  void run(int64_t row, int64_t head, Workspace& w) const {
    const int64_t group = heads / kv_heads, width = padded(size), length = cache_seqlens[row];
    const int64_t at = (row * heads + head * group) * size;
    pack(q + at, 1, 0, group, size, static_cast<float>(scale * LOG2E), w.queries.q);
    w.queries.start(group, width);
    for (int64_t j0 = 0; j0 < length; j0 += KEYS) {
      const int64_t keys = std::min(KEYS, length - j0);
      gather(block_table + row * pages_per_row, head, j0, keys, w.block);
      std::fill(w.seen.begin(), w.seen.end(), static_cast<int32_t>(keys));
      w.queries.attend(w.block, group, w.seen.data(), size);
    }
    w.queries.finish(group, width, false);
    unpack(w.queries.out, 1, 0, group, size, 1.0f, out + at);
  }

  void run_all(int64_t rows, int32_t threads) const {
#pragma omp parallel num_threads(threads) if (rows * kv_heads > 1)
    {
      Workspace w(heads / kv_heads, padded(size));
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < rows * kv_heads; ++i) run(i / kv_heads, i % kv_heads, w);
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
