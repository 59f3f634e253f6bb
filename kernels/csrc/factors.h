// Factors of gemm.h's products, in the dtype of the tensors. A product in bf16 sums over pairs: a left
// factor's lie side by side in its rows, a right factor's, and a left one's that is transposed, are
// made of two rows. In float32 all of them are the matrices as they are, and nothing is copied.
#pragma once

#include <cstdint>
#include <type_traits>

#include "bf16.h"

namespace lcpo {

constexpr int64_t round_up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

template <class T>
using Unit = std::conditional_t<std::is_same_v<T, bf16>, uint32_t, float>;

// How many hold so many entries.
template <class T>
constexpr int64_t units(int64_t entries) {
  return round_up(entries, sizeof(Unit<T>) / sizeof(T)) / (sizeof(Unit<T>) / sizeof(T));
}

// Rows of a left factor as they lie, of even length.
template <class T>
const Unit<T>* left(const T* rows) {
  return reinterpret_cast<const Unit<T>*>(rows);
}

// The same of float32 results, x [rows, columns], both with rows `stride` apart.
inline const float* rounded_left(const float* x, int64_t, int64_t, int64_t, float*) { return x; }
const uint32_t* rounded_left(const float* x, int64_t rows, int64_t columns, int64_t stride,
                             uint32_t* room);

// A right factor, or a transposed left one, out of x [rows, columns]: in bf16 of [units of rows,
// columns], with zeros for the row that an odd number lacks. All rows are `stride` apart.
inline const float* right(const float* x, int64_t, int64_t, int64_t, float*) { return x; }
const uint32_t* right(const bf16* x, int64_t rows, int64_t columns, int64_t stride,
                      uint32_t* room);
const uint32_t* right(const float* x, int64_t rows, int64_t columns, int64_t stride,
                      uint32_t* room);

}  // namespace lcpo
