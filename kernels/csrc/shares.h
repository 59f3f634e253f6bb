// Sums over tokens that do not depend on who takes which: each block of tokens has a share of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "bf16.h"

namespace lcpo {

constexpr int64_t BLOCK = 32;  // tokens

class Shares {
 public:
  Shares(int64_t tokens, int64_t width)
      : width_(width), shares_((tokens + BLOCK - 1) / BLOCK * width, 0.0f) {}

  // [width], of the block of a token; to be added to.
  float* of(int64_t token) { return shares_.data() + token / BLOCK * width_; }

  template <class T>
  void sum(T* out) const {
    std::vector<double> sum(width_, 0.0);
    for (size_t at = 0; at < shares_.size(); at += width_) {
      for (int64_t j = 0; j < width_; ++j) sum[j] += shares_[at + j];
    }
    for (int64_t j = 0; j < width_; ++j) store(out + j, static_cast<float>(sum[j]));
  }

 private:
  int64_t width_;
  std::vector<float> shares_;
};

}  // namespace lcpo
