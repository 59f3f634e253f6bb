// The products of product.cpp by AMX tiles. Both factors are cut into tiles along k that lie one
// behind the other; 2 x 2 tiles of c are summed at a time, each element in one chain over k.

#include <algorithm>

#include "amx.h"
#include "product.h"
#include "room.h"
#include "turn16.h"

#ifdef LCPO_BF16_DOT

namespace lcpo {
namespace {

constexpr int64_t DEPTH = 2 * SIDE;  // inputs of a tile: pairs
constexpr int64_t BLOCK = 2 * SIDE;  // rows and columns of c at a time

LCPO_INLINE int64_t tiles_of(int64_t size, int64_t step) { return (size + step - 1) / step; }

// Entry i is (x[0][i], x[1][i]) for i < size; rows that are not there are zeros.
__attribute__((target("avx512f,avx512bw,avx512vl"), always_inline)) inline __m512i pairs_of(
    const bf16* x, int64_t rows, int64_t stride, int64_t size) {
  const __mmask16 some = first_lanes(size);
  const auto row = [&](int64_t r) __attribute__((target("avx512f,avx512bw,avx512vl"))) {
    return r < rows ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, x + r * stride))
                    : _mm512_setzero_si512();
  };
  return _mm512_or_si512(row(0), _mm512_slli_epi32(row(1), 16));
}

// Tiles of the right factor: 16 pairs of rows of x [rows, size], 16 columns.
__attribute__((target("avx512f,avx512bw,avx512vl"))) void pack_right(const bf16* x, int64_t rows,
                                                                    int64_t stride, int64_t size,
                                                                    uint32_t* out) {
  const int64_t all = tiles_of(rows, DEPTH) * DEPTH;
  for (int64_t r = 0; r < all; r += 2, out += SIDE) {
    _mm512_storeu_si512(out, pairs_of(x + r * stride, rows - r, stride, size));
  }
}

// Tiles of the left factor out of its columns: x [rows, size] holds 16 of them.
__attribute__((target("avx512f,avx512bw,avx512vl"))) void turn_left(const bf16* x, int64_t rows,
                                                                   int64_t stride, int64_t size,
                                                                   uint32_t* out) {
  for (int64_t r = 0; r < rows; r += DEPTH, out += TILE) {
    __m512i tile[SIDE];
    for (int64_t p = 0; p < SIDE; ++p) {
      tile[p] = pairs_of(x + (r + 2 * p) * stride, rows - r - 2 * p, stride, size);
    }
    turn16(tile);
    for (int64_t i = 0; i < SIDE; ++i) _mm512_storeu_si512(out + i * SIDE, tile[i]);
  }
}

// Tiles of the left factor out of its rows: x [size, columns].
__attribute__((target("avx512f,avx512bw"))) void pack_left(const bf16* x, int64_t columns,
                                                          int64_t stride, int64_t size,
                                                          uint32_t* out) {
  for (int64_t k = 0; k < columns; k += DEPTH, out += TILE) {
    const int64_t left = std::min(DEPTH, columns - k);
    const __mmask32 some = static_cast<__mmask32>((uint64_t{1} << left) - 1u);
    for (int64_t i = 0; i < SIDE; ++i) {
      const __m512i row = i < size ? _mm512_maskz_loadu_epi16(some, x + i * stride + k)
                                   : _mm512_setzero_si512();
      _mm512_storeu_si512(out + i * SIDE, row);
    }
  }
}

// sum [BLOCK, BLOCK] of two rows and two columns of `depth` tiles each.
LCPO_AMX void multiply(const uint32_t* a, const uint32_t* b, int64_t depth, float* sum) {
  const uint32_t *a_low = a + depth * TILE, *b_right = b + depth * TILE;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < depth * TILE; k += TILE) {
    _tile_loadd(4, a + k, TILE_LINE);
    _tile_loadd(6, b + k, TILE_LINE);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, a_low + k, TILE_LINE);
    _tile_dpbf16ps(2, 5, 6);
    _tile_loadd(7, b_right + k, TILE_LINE);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t line = BLOCK * sizeof(float);
  _tile_stored(0, sum, line);
  _tile_stored(1, sum + SIDE, line);
  _tile_stored(2, sum + SIDE * BLOCK, line);
  _tile_stored(3, sum + SIDE * BLOCK + SIDE, line);
}

__attribute__((target("avx512f"))) void put(const float* sum, int64_t rows, int64_t columns,
                                            bool add, float* c, int64_t stride) {
  for (int64_t j = 0; j < columns; j += LANES) {
    const __mmask16 some = first_lanes(columns - j);
    for (int64_t i = 0; i < rows; ++i) {
      float* at = c + i * stride + j;
      const __m512 before = add ? _mm512_maskz_loadu_ps(some, at) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(at, some, _mm512_add_ps(_mm512_load_ps(sum + i * BLOCK + j), before));
    }
  }
}

}  // namespace

void product_amx(const Product& p, int32_t threads) {
  const int64_t depth = tiles_of(p.k, DEPTH), size = depth * TILE;
  const int64_t rows = tiles_of(p.m, BLOCK), columns = tiles_of(p.n, BLOCK);
  uint32_t *const left = thread_room(2 * (rows + columns) * size), *const right = left + 2 * rows * size;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t j = 0; j < 2 * columns; ++j) {
      pack_right(p.b + j * SIDE, p.k, p.b_stride, p.n - j * SIDE, &right[j * size]);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < 2 * rows; ++i) {
      const int64_t at = i * SIDE, there = p.m - at;
      if (p.a_is_transposed) {
        turn_left(p.a + at, p.k, p.a_stride, there, &left[i * size]);
      } else {
        pack_left(p.a + at * p.a_stride, p.k, p.a_stride, there, &left[i * size]);
      }
    }
    const Amx tiles;
    alignas(64) float sum[BLOCK * BLOCK];
    // Two columns of tiles of b stay in cache while a thread's part of a goes by.
    for (int64_t j = 0; j < columns; ++j) {
#pragma omp for schedule(static) nowait
      for (int64_t i = 0; i < rows; ++i) {
        multiply(&left[2 * i * size], &right[2 * j * size], depth, sum);
        put(sum, std::min(BLOCK, p.m - i * BLOCK), std::min(BLOCK, p.n - j * BLOCK), p.add,
            p.c + i * BLOCK * p.c_stride + j * BLOCK, p.c_stride);
      }
    }
  }
}

}  // namespace lcpo
#endif
