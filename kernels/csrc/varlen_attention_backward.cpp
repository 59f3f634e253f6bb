// The backward pass of varlen_attention.cpp: scores are made again, a tile at a time, from the saved
// log-sum-exp, and memory is linear in tokens.
//
// Each output is written by one work item, in a fixed order: threads change no bit.

#include <algorithm>
#include <type_traits>
#include <vector>

#include "api.h"
#include "attention.h"
#include "gemm.h"
#include "varlen_items.h"

namespace lcpo {
namespace {

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
    const int64_t width = s.width(), own = item.first * width;
    const int64_t count = item.stop - item.first, keys = round_up(item.stop, KEYS);
    pack_keys(s, item, k, item.first, count, w.k + own);
    pack_keys(s, item, v, item.first, count, w.v + own);
    for (float* x : {w.k, w.v}) std::fill(x + item.stop * width, x + keys * width, 0.0f);
    for (int64_t j = item.first / KEYS * KEYS; j < keys; j += KEYS) {
      transpose(w.k + j * width, KEYS, width, width, w.k_t + j * width, KEYS);
      transpose(w.v + j * width, KEYS, width, width, w.v_t + j * width, KEYS);
    }
    for (float* x : {w.dk, w.dv}) std::fill(x + own, x + item.stop * width, 0.0f);
    Item part = item;
    for (; part.first < item.stop; part.first = part.stop) {
      part.stop = std::min(part.first + positions(), item.stop);
      tile(part, w);
    }
  }

  void store(const Item& item, Workspace& w) const {
    const int64_t stride = s.kv_heads * s.size, count = item.stop - item.first;
    const int64_t own = item.first * s.width();
    const int64_t at = (item.start + item.first) * stride + item.head * s.size;
    // The packed queries carry scale · log2(e).
    unpack(w.dk + own, count, stride, 1, s.size, static_cast<float>(LN2), dk + at);
    unpack(w.dv + own, count, stride, 1, s.size, 1.0f, dv + at);
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
