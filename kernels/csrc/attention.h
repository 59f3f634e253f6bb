// What training and decoding share: one query row goes through the same arithmetic in both, so the
// result for a token does not depend on which of them computed it.
//
// Keys are taken in blocks of KEYS from the start of the sequence. Scores carry a factor log2(e): the
// softmax then needs exp2 only. In bf16 all factors of products are bf16, probabilities too, and all
// sums and the softmax float32, as in FlashAttention.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "factors.h"

namespace lcpo {

constexpr int64_t KEYS = 64;
constexpr int64_t QUERIES = 24;  // query rows at a time: their scores stay in the first-level cache

// Head sizes and row lengths of scratch: whole registers, filled up with zeros.
constexpr int64_t padded(int64_t size) { return round_up(size, LANES); }

// `size` aligned entries, as they lie in memory.
template <class X>
class Array {
 public:
  explicit Array(int64_t size)
      : data_(static_cast<X*>(::operator new[](size * sizeof(X), ALIGNMENT))) {}
  X* data() const { return data_.get(); }
  operator X*() const { return data(); }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  struct Free {
    void operator()(X* data) const { ::operator delete[](data, ALIGNMENT); }
  };
  std::unique_ptr<X[], Free> data_;
};

// out [outer · inner, padded(size)] = x; x holds `outer` groups, `stride` apart, of `inner` dense rows
// of `size`.
template <class T>
void pack(const T* x, int64_t outer, int64_t stride, int64_t inner, int64_t size, T* out);

// The inverse: out = factor · x, rounded.
void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
            float factor, float* out);
void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
            float factor, bf16* out);

// k_t [units of padded(size), KEYS] of `count` rows of k [KEYS, padded(size)], the rest of which up to
// a multiple of LANES is set to zeros.
template <class T>
void turn(T* k, int64_t count, int64_t size, Unit<T>* k_t);

// The same from keys that lie anywhere: of those at keys[0..count) + offset. `room` [KEYS,
// padded(size)] is for what is copied on the way.
template <class T>
void turn_keys(const T* const* keys, int64_t count, int64_t offset, int64_t size, T* room,
               Unit<T>* k_t);

// One block of one head's keys and values as right factors.
template <class T>
struct KeyBlock {
  const Unit<T>* k_t;  // [units of padded(size), KEYS]
  const Unit<T>* v;    // [units of KEYS, padded(size)], rows `stride` apart
  int64_t stride;
};

// scores [rows, KEYS], rows <= QUERIES, become exp2(factor · score - max), factor > 0, of which `columns` a
// row are written, a whole number of LANES; `out` [rows, width] shrinks as the maximum grows. Row r
// sees seen[r] keys.
void softmax_step(float* scores, float factor, int64_t rows, int64_t columns, const int32_t* seen,
                  float* max, float* sum, float* out, int64_t width);

// Query rows on their way over the blocks of keys.
template <class T>
struct Queries {
  T* q;          // [rows, padded(size)]
  float* out;    // [rows, padded(size)], sum of exp2(score - max) · v
  float* max;    // [rows]
  float* sum;    // [rows], of exp2(score - max)
  float factor;  // of the scores, as far as q does not carry it

  Queries from(int64_t row, int64_t width) const {
    return {q + row * width, out + row * width, max + row, sum + row, factor};
  }

  // With q packed; its scores are times scale.
  void start(int64_t rows, int64_t width, float scale);
  // Row r attends to the first seen[r] keys of the block; seen does not fall with r.
  void attend(const KeyBlock<T>& block, int64_t rows, const int32_t* seen, int64_t size);
  // Divides by the sums: `out` is then the result, and max log sum exp(score), if wanted.
  void finish(int64_t rows, int64_t width, bool want_lse);
};

// What `Queries` lie in.
template <class T>
struct QueryRoom {
  Array<T> q;
  Array<float> out, max, sum;

  QueryRoom(int64_t rows, int64_t width)
      : q(rows * width), out(rows * width), max(rows), sum(rows) {}
  Queries<T> queries() const { return {q, out, max, sum, 1.0f}; }
};

// Folds a factor of the scores into packed queries: in bf16 only its sign, or 0, which rounds nothing.
// What is left of it, more than 0.
float fold(float factor, float* q, int64_t size);
float fold(float factor, bf16* q, int64_t size);

}  // namespace lcpo
