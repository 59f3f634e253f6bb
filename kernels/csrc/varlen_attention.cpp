// Causal attention over packed sequences in tiles, forward (FlashAttention-2, arXiv 2307.08691): the
// scores of a tile live in cache. varlen_attention_backward.cpp is the other half.
//
// Each output is written by one work item, in a fixed order: threads change no bit.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "varlen_items.h"

namespace lcpo {
namespace {

template <class T>
struct Forward {
  Shape s;
  const T *q, *k, *v;
  T* out;
  float* lse;

  // Enough query rows that packing a block of keys costs little beside its products.
  int64_t positions() const { return std::max<int64_t>(16, 384 / s.group() / 16 * 16); }

  struct Workspace {
    QueryRoom<T> queries;
    Array<T> k, v;            // a block of rows
    Array<Unit<T>> k_t, v_right;
    std::vector<int32_t> seen;

    Workspace(int64_t rows, int64_t width)
        : queries(rows, width),
          k(KEYS * width),
          v(KEYS * width),
          k_t(units<T>(width) * KEYS),
          v_right(units<T>(KEYS) * width),
          seen(rows) {}
  };

  void run(const Item& item, Workspace& w) const {
    const int64_t group = s.group(), width = s.width();
    const int64_t count = item.stop - item.first, rows = count * group;
    const int64_t at = ((item.start + item.first) * s.heads + item.head * group) * s.size;
    Queries<T> queries = w.queries.queries();
    pack(q + at, count, s.heads * s.size, group, s.size, queries.q);
    queries.start(rows, width, s.scale);
    for (int64_t j0 = 0; j0 < item.stop; j0 += KEYS) {
      const int64_t keys = std::min(KEYS, item.stop - j0);
      pack_keys(s, item, k, j0, keys, w.k.data());
      pack_keys(s, item, v, j0, keys, w.v.data());
      turn<T>(w.k, keys, s.size, w.k_t);
      const KeyBlock<T> block{w.k_t, right(w.v, keys, width, width, w.v_right), width};
      causal(w.seen.data(), item.first, item.stop, group, j0);
      queries.attend(block, rows, w.seen.data(), s.size);
    }
    queries.finish(rows, width, true);
    unpack(queries.out, count, s.heads * s.size, group, s.size, 1.0f, out + at);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = item.start + item.first + r / group;
      lse[(item.head * group + r % group) * s.tokens() + token] = queries.max[r];
    }
  }

  void run_all(int32_t threads) const {
    std::vector<Item> work;
    for (int64_t b = 0; b < s.sequences; ++b) {
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        Item item = s.whole(b, h);
        for (const int64_t stop = item.stop; item.first < stop; item.first = item.stop) {
          item.stop = std::min(item.first + positions(), stop);
          work.push_back(item);
        }
      }
    }
    costly_first(work);
    for_each(
        work, threads,
        [&] { return Workspace(positions() * s.group(), s.width()); },
        [&](const Item& item, Workspace& w) { run(item, w); });
  }
};

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_varlen_attention_forward(const void* q, const void* k, const void* v,
                                            bool is_bf16, const int32_t* cu_seqlens,
                                            const int32_t* prefix, int64_t sequences,
                                            int64_t heads, int64_t kv_heads, int64_t size,
                                            float scale, void* out, float* lse, int32_t threads) {
  const lcpo::Shape shape{cu_seqlens, prefix, sequences, heads, kv_heads, size, scale};
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const auto in = [](const void* x) { return static_cast<const T*>(x); };
    lcpo::Forward<T>{shape, in(q), in(k), in(v), to, lse}.run_all(threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(out)) : run(static_cast<float*>(out));
}
