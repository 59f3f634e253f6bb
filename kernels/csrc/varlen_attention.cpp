// Causal attention over packed sequences in tiles, forward and backward (FlashAttention-2, arXiv
// 2307.08691): the scores of a tile live in cache, and memory is linear in tokens.
//
// Each output is written by one work item, in a fixed order: threads change no bit.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "gemm.h"

namespace lcpo {
namespace {

// Consecutive positions of one sequence under one key/value head.
struct Item {
  int64_t head, start, first, stop;  // start: the sequence's first token; first, stop: positions
};

struct Shape {
  const int32_t* cu_seqlens;
  int64_t sequences, heads, kv_heads, size;
  float scale;

  int64_t group() const { return heads / kv_heads; }  // query heads that share a key head
  int64_t width() const { return padded(size); }
  int64_t tokens() const { return cu_seqlens[sequences]; }
  float factor() const { return static_cast<float>(scale * LOG2E); }  // of the packed queries
};

// Those with most work first, as the last ones to end leave threads idle.
template <class Cost>
std::vector<Item> items(const Shape& s, int64_t positions, Cost cost) {
  std::vector<Item> found;
  for (int64_t b = 0; b < s.sequences; ++b) {
    const int64_t start = s.cu_seqlens[b], length = s.cu_seqlens[b + 1] - start;
    const int64_t step = positions > 0 ? positions : length;
    for (int64_t first = 0; first < length; first += step) {
      const int64_t stop = std::min(first + step, length);
      for (int64_t h = 0; h < s.kv_heads; ++h) found.push_back({h, start, first, stop});
    }
  }
  std::stable_sort(found.begin(), found.end(),
                   [&](const Item& a, const Item& b) { return cost(a) > cost(b); });
  return found;
}

// How many keys of the block from j0 on each query row of positions from `first` on may see.
void causal(int32_t* seen, int64_t first, int64_t stop, int64_t group, int64_t j0) {
  for (int64_t p = first; p < stop; ++p) {
    const int64_t count = std::clamp<int64_t>(p + 1 - j0, 0, KEYS);
    seen = std::fill_n(seen, group, static_cast<int32_t>(count));
  }
}

// Runs body(item, workspace) for all items; each thread makes its own workspace once.
template <class Workspace, class Body>
void for_each(const std::vector<Item>& work, int32_t threads, const Workspace& make,
              const Body& body) {
#pragma omp parallel num_threads(threads) if (work.size() > 1)
  {
    auto workspace = make();
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); ++i) body(work[i], workspace);
  }
}

template <class T>
struct Forward {
  Shape s;
  const T *q, *k, *v;
  T* out;
  float* lse;

  // Enough query rows that packing a block of keys costs little beside its products.
  int64_t positions() const { return std::max<int64_t>(16, 192 / s.group() / 16 * 16); }

  struct Workspace {
    Scratch scratch;
    Queries queries;
    KeyBlock block;
    std::vector<int32_t> seen;

    Workspace(int64_t rows, int64_t width)
        : scratch(Queries::floats(rows, width) + 3 * KEYS * width),
          queries(Queries::take(scratch, rows, width)),
          block{scratch.take(KEYS * width), scratch.take(KEYS * width),
                scratch.take(KEYS * width), width},
          seen(rows) {}
  };

  void run(const Item& item, Workspace& w) const {
    const int64_t group = s.group(), width = s.width(), kv_stride = s.kv_heads * s.size;
    const int64_t count = item.stop - item.first, rows = count * group;
    const int64_t at = ((item.start + item.first) * s.heads + item.head * group) * s.size;
    pack(q + at, count, s.heads * s.size, group, s.size, s.factor(), w.queries.q);
    w.queries.start(rows, width);
    for (int64_t j0 = 0; j0 < item.stop; j0 += KEYS) {
      const int64_t keys = std::min(KEYS, item.stop - j0);
      const int64_t from = (item.start + j0) * kv_stride + item.head * s.size;
      pack(k + from, keys, kv_stride, 1, s.size, 1.0f, w.block.k);
      pack(v + from, keys, kv_stride, 1, s.size, 1.0f, w.block.v);
      w.block.turn(keys, width);
      causal(w.seen.data(), item.first, item.stop, group, j0);
      w.queries.attend(w.block, rows, w.seen.data(), s.size);
    }
    w.queries.finish(rows, width, true);
    unpack(w.queries.out, count, s.heads * s.size, group, s.size, 1.0f, out + at);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = item.start + item.first + r / group;
      lse[(item.head * group + r % group) * s.tokens() + token] = w.queries.max[r];
    }
  }

  void run_all(int32_t threads) const {
    const auto cost = [](const Item& x) { return (x.stop - x.first) * (x.first + x.stop); };
    for_each(
        items(s, positions(), cost), threads,
        [&] { return Workspace(positions() * s.group(), s.width()); },
        [&](const Item& item, Workspace& w) { run(item, w); });
  }
};

// sum over d of x · y for rows of `width`.
LCPO_CLONES void row_dots(const float* x, const float* y, int64_t rows, int64_t width,
                          float* dots) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    float part[LANES] = {};
    for (int64_t d = 0; d < width; d += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) part[i] += x[d + i] * y[d + i];
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    dots[r] = part[0];
  }
}

// scores become p = exp2(score - lse), slopes (dO · v) become dS = p · (slope - delta).
LCPO_CLONES void softmax_backward(float* scores, float* slopes, int64_t rows, int64_t columns,
                                  const int32_t* seen, const float* lse, const float* delta) {
  for (int64_t r = 0; r < rows; ++r, scores += KEYS, slopes += KEYS) {
    for (int64_t j = 0; j < seen[r]; ++j) {
      const float p = exp2_clamped(clamp_exponent(scores[j] - lse[r]));
      scores[j] = p;
      slopes[j] = p * (slopes[j] - delta[r]);
    }
    std::fill(scores + seen[r], scores + columns, 0.0f);
    std::fill(slopes + seen[r], slopes + columns, 0.0f);
  }
}

template <class T>
struct Backward {
  Shape s;
  const T *grad_out, *q, *k, *v, *out;
  const float* lse;
  T *dq, *dk, *dv;

  // Few positions: what a tile computes beyond the diagonal is wasted.
  int64_t positions() const { return std::max<int64_t>(16, 48 / s.group() / 16 * 16); }

  struct Workspace {
    Scratch scratch;
    float *k, *k_t, *v, *v_t, *dk, *dv;        // whole sequences, a block of KEYS at a time
    float *q, *grad, *out, *dq, *lse, *delta;  // a tile of query rows
    float *scores, *slopes;                    // [rows, KEYS]
    std::vector<int32_t> seen;

    Workspace(int64_t keys, int64_t rows, int64_t width)
        : scratch(6 * keys * width + 4 * rows * width + 2 * padded(rows) + 2 * rows * KEYS),
          seen(rows) {
      for (float** x : {&k, &k_t, &v, &v_t, &dk, &dv}) *x = scratch.take(keys * width);
      for (float** x : {&q, &grad, &out, &dq}) *x = scratch.take(rows * width);
      for (float** x : {&lse, &delta}) *x = scratch.take(padded(rows));
      for (float** x : {&scores, &slopes}) *x = scratch.take(rows * KEYS);
    }
  };

  // dK and dV of a whole sequence under one head are sums over its query rows: one item.
  void run(const Item& item, Workspace& w) const {
    const int64_t width = s.width(), kv_stride = s.kv_heads * s.size, length = item.stop;
    const int64_t keys = round_up(length, KEYS), at = item.start * kv_stride + item.head * s.size;
    pack(k + at, length, kv_stride, 1, s.size, 1.0f, w.k);
    pack(v + at, length, kv_stride, 1, s.size, 1.0f, w.v);
    for (float* x : {w.k, w.v}) std::fill(x + length * width, x + keys * width, 0.0f);
    for (int64_t j = 0; j < keys; j += KEYS) {
      transpose(w.k + j * width, KEYS, width, width, w.k_t + j * width, KEYS);
      transpose(w.v + j * width, KEYS, width, width, w.v_t + j * width, KEYS);
    }
    for (float* x : {w.dk, w.dv}) std::fill(x, x + length * width, 0.0f);
    for (int64_t first = 0; first < length; first += positions()) {
      tile({item.head, item.start, first, std::min(first + positions(), length)}, w);
    }
    // The packed queries carry scale · log2(e).
    unpack(w.dk, length, kv_stride, 1, s.size, static_cast<float>(LN2), dk + at);
    unpack(w.dv, length, kv_stride, 1, s.size, 1.0f, dv + at);
  }

  // One tile of query rows over all keys that it may see.
  void tile(const Item& item, Workspace& w) const {
    const int64_t group = s.group(), width = s.width(), stride = s.heads * s.size;
    const int64_t count = item.stop - item.first, rows = count * group;
    const int64_t at = (item.start + item.first) * stride + item.head * group * s.size;
    pack(q + at, count, stride, group, s.size, s.factor(), w.q);
    pack(grad_out + at, count, stride, group, s.size, 1.0f, w.grad);
    pack(out + at, count, stride, group, s.size, 1.0f, w.out);
    row_dots(w.grad, w.out, rows, width, w.delta);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = item.start + item.first + r / group;
      w.lse[r] = lse[(item.head * group + r % group) * s.tokens() + token] *
                 static_cast<float>(LOG2E);
    }
    for (int64_t j0 = 0; j0 < item.stop; j0 += KEYS) {
      const int64_t from = j0 * width;
      causal(w.seen.data(), item.first, item.stop, group, j0);
      const int64_t most = w.seen[rows - 1], columns = round_up(most, LANES);
      const auto scores = [&](const float* rows_of, const float* keys_t, float* to) {
        gemm({rows, columns, s.size, rows_of, width, keys_t + from, KEYS, to, KEYS, false, false});
      };
      const auto to_keys = [&](const float* weights, const float* rows_of, float* to) {
        gemm({most, width, rows, weights, KEYS, rows_of, width, to + from, width, true, true});
      };
      scores(w.q, w.k_t, w.scores);
      scores(w.grad, w.v_t, w.slopes);
      softmax_backward(w.scores, w.slopes, rows, columns, w.seen.data(), w.lse, w.delta);
      gemm({rows, width, most, w.slopes, KEYS, w.k + from, width, w.dq, width, false, j0 > 0});
      to_keys(w.scores, w.grad, w.dv);
      to_keys(w.slopes, w.q, w.dk);
    }
    unpack(w.dq, count, stride, group, s.size, s.scale, dq + at);
  }

  void run_all(int32_t threads) const {
    int64_t longest = 0;
    for (int64_t b = 0; b < s.sequences; ++b) {
      longest = std::max<int64_t>(longest, s.cu_seqlens[b + 1] - s.cu_seqlens[b]);
    }
    for_each(
        items(s, 0, [](const Item& x) { return x.stop; }), threads,
        [&] {
          return Workspace(round_up(longest, KEYS), positions() * s.group(), s.width());
        },
        [&](const Item& item, Workspace& w) { run(item, w); });
  }
};

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_varlen_attention_forward(const void* q, const void* k, const void* v,
                                            bool is_bf16, const int32_t* cu_seqlens,
                                            int64_t sequences, int64_t heads, int64_t kv_heads,
                                            int64_t size, float scale, void* out, float* lse,
                                            int32_t threads) {
  const lcpo::Shape shape{cu_seqlens, sequences, heads, kv_heads, size, scale};
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const auto in = [](const void* x) { return static_cast<const T*>(x); };
    lcpo::Forward<T>{shape, in(q), in(k), in(v), to, lse}.run_all(threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(out)) : run(static_cast<float*>(out));
}

LCPO_API void lcpo_varlen_attention_backward(
    const void* grad_out, const void* q, const void* k, const void* v, const void* out,
    const float* lse, bool is_bf16, const int32_t* cu_seqlens, int64_t sequences, int64_t heads,
    int64_t kv_heads, int64_t size, float scale, void* dq, void* dk, void* dv, int32_t threads) {
  const lcpo::Shape shape{cu_seqlens, sequences, heads, kv_heads, size, scale};
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const auto in = [](const void* x) { return static_cast<const T*>(x); };
    lcpo::Backward<T>{shape,   in(grad_out), in(q), in(k), in(v), in(out), lse,
                      to,      static_cast<T*>(dk),       static_cast<T*>(dv)}
        .run_all(threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(dq)) : run(static_cast<float*>(dq));
}
