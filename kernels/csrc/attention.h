// What training and decoding share: one query row goes through the same arithmetic in both, so the
// result for a token does not depend on which of them computed it.
//
// Keys are taken in blocks of KEYS from the start of the sequence. Scores carry a factor log2(e),
// folded into the queries: the softmax then needs exp2 only.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "bf16.h"
#include "simd.h"

namespace lcpo {

constexpr int64_t KEYS = 64;
constexpr int64_t ROWS = 24;  // query rows at a time: their scores stay in the first-level cache

constexpr int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

// Head sizes and row lengths of scratch: whole registers, filled up with zeros.
constexpr int64_t padded(int64_t size) { return round_up(size, LANES); }

// Aligned float scratch handed out in pieces; starts as it lies in memory.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(::operator new[](floats * sizeof(float), ALIGNMENT))),
        next_(data_.get()) {}

  // `floats` must be a multiple of LANES for the next piece to be aligned.
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += floats;
    return piece;
  }

 private:
  static constexpr std::align_val_t ALIGNMENT{64};
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, ALIGNMENT); }
  };
  std::unique_ptr<float[], Free> data_;
  float* next_;
};

// out [outer · inner, padded(size)] = factor · x; x holds `outer` groups, `stride` apart, of
// `inner` dense rows of `size`.
void pack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size, float factor,
          float* out);
void pack(const bf16* x, int64_t outer, int64_t stride, int64_t inner, int64_t size, float factor,
          float* out);

// The inverse: out = factor · x.
void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
            float factor, float* out);
void unpack(const float* x, int64_t outer, int64_t stride, int64_t inner, int64_t size,
            float factor, bf16* out);

// One block of one head's keys and values as the products want them.
struct KeyBlock {
  float *k, *v;  // [KEYS, padded(size)], rows `stride` apart
  float* k_t;    // [padded(size), KEYS]
  int64_t stride;

  // Fills k_t after the first `count` rows of k and v were written.
  void turn(int64_t count, int64_t width);
};

// The same from keys that lie anywhere: k_t [padded(size), KEYS] of those at keys[0..count) + offset,
// and zeros up to a multiple of LANES. `room` [KEYS, padded(size)] is for what is copied on the way.
void turn_keys(const float* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
               float* k_t);
void turn_keys(const bf16* const* keys, int64_t count, int64_t offset, int64_t size, float* room,
               float* k_t);

// scores [rows, KEYS], rows <= ROWS, become exp2(score - max), of which `columns` a row are written, a
// whole number of LANES; `out` [rows, width] shrinks as the maximum grows. Row r sees seen[r] keys.
void softmax_step(float* scores, int64_t rows, int64_t columns, const int32_t* seen, float* max,
                  float* sum, float* out, int64_t width);

// Query rows on their way over the blocks of keys.
struct Queries {
  float* q;    // [rows, padded(size)], times scale · log2(e)
  float* out;  // [rows, padded(size)], sum of exp2(score - max) · v
  float* max;  // [rows]
  float* sum;  // [rows], of exp2(score - max)

  static Queries take(Scratch& scratch, int64_t rows, int64_t width) {
    return {scratch.take(rows * width), scratch.take(rows * width), scratch.take(padded(rows)),
            scratch.take(padded(rows))};
  }
  static int64_t floats(int64_t rows, int64_t width) { return 2 * (rows * width + padded(rows)); }
  Queries from(int64_t row, int64_t width) const {
    return {q + row * width, out + row * width, max + row, sum + row};
  }

  void start(int64_t rows, int64_t width);
  // Row r attends to the first seen[r] keys of the block; seen does not fall with r.
  void attend(const KeyBlock& block, int64_t rows, const int32_t* seen, int64_t size);
  // Divides by the sums: `out` is then the result, and max log sum exp(score), if wanted.
  void finish(int64_t rows, int64_t width, bool want_lse);
};

}  // namespace lcpo
