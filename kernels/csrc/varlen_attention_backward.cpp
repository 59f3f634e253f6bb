// The backward pass of varlen_attention.cpp: scores are made again, a tile at a time, from the saved
// log-sum-exp, and memory is linear in tokens.
//
// Each output is written by one work item, in a fixed order: threads change no bit.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "gemm.h"
#include "varlen_items.h"

namespace lcpo {
namespace {

// sum over d of x · y for rows of `width`.
template <class T>
LCPO_INLINE void dots_of_rows(const T* x, const T* y, int64_t rows, int64_t width, float* dots) {
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    float part[LANES] = {};
    for (int64_t d = 0; d < width; d += LANES) {
      LCPO_SIMD
      for (int i = 0; i < LANES; ++i) part[i] += load(x + d + i) * load(y + d + i);
    }
    for (int half = LANES / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) part[i] += part[i + half];
    }
    dots[r] = part[0];
  }
}

LCPO_CLONES void row_dots(const float* x, const float* y, int64_t rows, int64_t width,
                          float* dots) {
  dots_of_rows(x, y, rows, width, dots);
}

LCPO_CLONES void row_dots(const bf16* x, const bf16* y, int64_t rows, int64_t width,
                          float* dots) {
  dots_of_rows(x, y, rows, width, dots);
}

// scores become p = exp2(factor · score - lse), slopes (dO · v) become dS = p · (slope - delta).
LCPO_CLONES void softmax_backward(float* scores, float* slopes, float factor, int64_t rows,
                                  int64_t columns, const int32_t* seen, const float* lse,
                                  const float* delta) {
  for (int64_t r = 0; r < rows; ++r, scores += KEYS, slopes += KEYS) {
    LCPO_SIMD
    for (int64_t j = 0; j < columns; ++j) {
      const float p = exp2_clamped(clamp_exponent(fused(factor, scores[j], -lse[r])));
      scores[j] = p;
      slopes[j] = p * (slopes[j] - delta[r]);
    }
    std::fill(scores + seen[r], scores + columns, 0.0f);
    std::fill(slopes + seen[r], slopes + columns, 0.0f);
  }
}

// Tiles of query rows that go over a block of keys together, while it is in cache.
constexpr int64_t TILES = 8;

// A sequence and those that it is the prefix of: dK and dV of its keys are sums over all of them.
struct Family {
  Item first;
  std::vector<Item> others;
};

int64_t cost(const Family& x) {
  int64_t sum = cost(x.first);
  for (const Item& other : x.others) sum += cost(other);
  return sum;
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
    Array<T> k, v;                        // whole sequences, a block of KEYS at a time
    Array<Unit<T>> k_right, k_t, v_t;     // arrays for `right` are not touched in float32
    Array<float> dk, dv;
    Array<T> q, grad, out;                // the query rows of TILES tiles
    Array<Unit<T>> q_right, grad_right;
    Array<float> dq, lse, delta;
    Array<float> scores, slopes;          // [rows, KEYS] of one tile
    Array<Unit<T>> rounded;               // either of them as a factor
    std::vector<int32_t> seen;

    Workspace(int64_t keys, int64_t tile, int64_t width)
        : k(keys * width),
          v(keys * width),
          k_right(units<T>(keys) * width),
          k_t(units<T>(width) * keys),
          v_t(units<T>(width) * keys),
          dk(keys * width),
          dv(keys * width),
          q(TILES * tile * width),
          grad(TILES * tile * width),
          out(TILES * tile * width),
          q_right(units<T>(TILES * tile) * width),
          grad_right(units<T>(TILES * tile) * width),
          dq(TILES * tile * width),
          lse(TILES * tile),
          delta(TILES * tile),
          scores(tile * KEYS),
          slopes(tile * KEYS),
          rounded(tile * units<T>(KEYS)),
          seen(tile) {}
  };

  // Where query rows and keys are as the products want them.
  struct Factors {
    const Unit<T> *k, *q, *grad;
    float scale;  // of the scores, as far as q does not carry it
  };

  void run(const Family& family, Workspace& w) const {
    add(family.first, w);
    for (const Item& other : family.others) {
      add(other, w);
      store(other, w);
    }
    store(family.first, w);
  }

  // A whole sequence, behind its prefix: that one's keys and their gradients so far are in place.
  void add(const Item& item, Workspace& w) const {
    const int64_t width = s.width(), own = item.first * width, at = item.first / KEYS * KEYS;
    const int64_t count = item.stop - item.first, keys = round_up(item.stop, KEYS);
    pack_keys(s, item, k, item.first, count, w.k + own);
    pack_keys(s, item, v, item.first, count, w.v + own);
    for (T* x : {w.k.data(), w.v.data()}) std::fill(x + item.stop * width, x + keys * width, T{0});
    for (int64_t j = at; j < keys; j += KEYS) {
      turn<T>(w.k + j * width, KEYS, s.size, w.k_t + units<T>(j * width));
      turn<T>(w.v + j * width, KEYS, s.size, w.v_t + units<T>(j * width));
    }
    const int64_t before = units<T>(at) * width;
    Factors f{};
    f.k = right(w.k + at * width, keys - at, width, width, w.k_right + before) - before;
    for (float* x : {w.dk.data(), w.dv.data()}) std::fill(x + own, x + item.stop * width, 0.0f);
    Item part = item;
    for (; part.first < item.stop; part.first = part.stop) {
      part.stop = std::min(part.first + TILES * positions(), item.stop);
      add_tiles(part, f, w);
    }
  }

  void store(const Item& item, Workspace& w) const {
    const int64_t stride = s.kv_heads * s.size, count = item.stop - item.first;
    const int64_t own = item.first * s.width();
    const int64_t at = (item.start + item.first) * stride + item.head * s.size;
    // The packed queries carry scale · log2(e) in float32, in bf16 its sign (see `fold`).
    constexpr bool FOLDED = std::is_same_v<T, float>;
    unpack(w.dk + own, count, stride, 1, s.size,
           FOLDED ? static_cast<float>(LN2) : std::fabs(s.scale), dk + at);
    unpack(w.dv + own, count, stride, 1, s.size, 1.0f, dv + at);
  }

  // Query rows of some tiles, over all keys that they may see.
  void add_tiles(const Item& item, Factors& f, Workspace& w) const {
    const int64_t group = s.group(), width = s.width(), stride = s.heads * s.size;
    const int64_t count = item.stop - item.first, rows = count * group;
    const int64_t at = (item.start + item.first) * stride + item.head * group * s.size;
    pack(q + at, count, stride, group, s.size, w.q.data());
    pack(grad_out + at, count, stride, group, s.size, w.grad.data());
    pack(out + at, count, stride, group, s.size, w.out.data());
    f.scale = fold(static_cast<float>(s.scale * LOG2E), w.q, rows * width);
    f.q = right(w.q, rows, width, width, w.q_right);
    f.grad = right(w.grad, rows, width, width, w.grad_right);
    row_dots(w.grad, w.out, rows, width, w.delta);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t token = item.start + item.first + r / group;
      w.lse[r] = lse[(item.head * group + r % group) * s.tokens() + token] *
                 static_cast<float>(LOG2E);
    }
    for (int64_t j0 = 0; j0 < item.stop; j0 += KEYS) {
      for (int64_t first = item.first; first < item.stop; first += positions()) {
        const int64_t stop = std::min(first + positions(), item.stop);
        causal(w.seen.data(), first, stop, group, j0);
        const int64_t row = (first - item.first) * group;
        if (j0 < stop) add_tile(j0, row, (stop - first) * group, f, w);
      }
    }
    unpack(w.dq, count, stride, group, s.size, s.scale, dq + at);
  }

  // One tile of query rows, those from `row` on, over a block of keys.
  void add_tile(int64_t j0, int64_t row, int64_t rows, const Factors& f, Workspace& w) const {
    const int64_t width = s.width(), most = w.seen[rows - 1], columns = round_up(most, LANES);
    const int64_t at = row * width, at_key = j0 * width;
    const auto scores = [&](const T* rows_of, const Unit<T>* keys_t, float* to) {
      gemm({rows, columns, units<T>(s.size), left(rows_of + at), units<T>(width),
            keys_t + units<T>(at_key), KEYS, to, KEYS, false, false});
    };
    const auto to_keys = [&](const float* weights, const Unit<T>* rows_of, float* to) {
      gemm({most, width, units<T>(rows), right(weights, rows, columns, KEYS, w.rounded), KEYS,
            rows_of + units<T>(row) * width, width, to + at_key, width, true, true});
    };
    scores(w.q, w.k_t, w.scores);
    scores(w.grad, w.v_t, w.slopes);
    softmax_backward(w.scores, w.slopes, f.scale, rows, columns, w.seen.data(), w.lse + row,
                     w.delta + row);
    to_keys(w.scores, f.grad, w.dv);
    to_keys(w.slopes, f.q, w.dk);
    gemm({rows, width, units<T>(most), rounded_left(w.slopes, rows, columns, KEYS, w.rounded),
          units<T>(KEYS), f.k + units<T>(j0) * width, width, w.dq + at, width, false, j0 > 0});
  }

  void run_all(int32_t threads) const {
    int64_t longest = 0;
    std::vector<Family> work;
    std::vector<int64_t> place(s.sequences);  // of the family, for each that has no prefix
    for (int64_t b = 0; b < s.sequences; ++b) {
      const Item whole = s.whole(b, 0);
      longest = std::max(longest, whole.stop);
      const bool alone = s.prefix == nullptr || s.prefix[b] < 0;
      if (alone) place[b] = static_cast<int64_t>(work.size());
      for (int64_t h = 0; h < s.kv_heads; ++h) {
        if (alone) {
          work.push_back({s.whole(b, h), {}});
        } else {
          work[place[s.prefix[b]] + h].others.push_back(s.whole(b, h));
        }
      }
    }
    costly_first(work);
    for_each(
        work, threads,
        [&] {
          return Workspace(round_up(longest, KEYS), positions() * s.group(), s.width());
        },
        [&](const Family& family, Workspace& w) { run(family, w); });
  }
};

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_varlen_attention_backward(
    const void* grad_out, const void* q, const void* k, const void* v, const void* out,
    const float* lse, bool is_bf16, const int32_t* cu_seqlens, const int32_t* prefix,
    int64_t sequences, int64_t heads, int64_t kv_heads, int64_t size, float scale, void* dq,
    void* dk, void* dv, int32_t threads) {
  const lcpo::Shape shape{cu_seqlens, prefix, sequences, heads, kv_heads, size, scale};
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const auto in = [](const void* x) { return static_cast<const T*>(x); };
    lcpo::Backward<T>{shape,   in(grad_out), in(q), in(k), in(v), in(out), lse,
                      to,      static_cast<T*>(dk),       static_cast<T*>(dv)}
        .run_all(threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(dq)) : run(static_cast<float*>(dq));
}
