#include "packed.h"

#include <algorithm>

#include "dot_tile.h"
#include "gemm.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int64_t FLOAT_WIDTH = 4 * LANES;  // what gemm.cpp keeps in AVX-512 registers
// Inputs that are summed in one chain; longer sums are cut evenly and their parts added, which halves
// the error and is what MKL does, so that the bits are often those of torch.
constexpr int64_t CHAIN = 256;
constexpr int64_t ROWS = 48;                // of a tile that does not fit where it belongs

constexpr int64_t panel_width(bool is_bf16) { return is_bf16 ? DOT_WIDTH : FLOAT_WIDTH; }

// Entries of a row as they are packed: float32, or pairs of bf16.
constexpr int64_t units(bool is_bf16, int64_t inputs) { return is_bf16 ? inputs / 2 : inputs; }

// out [units, width]: columns of w [size, units], size <= width, and zeros.
void pack_panel(const float* w, int64_t size, int64_t units, int64_t width, float* out) {
  if (size == width && units % 4 == 0) return transpose(w, width, units, units, out, width);
  for (int64_t p = 0; p < units; ++p) {
    for (int64_t j = 0; j < width; ++j) out[p * width + j] = j < size ? w[j * units + p] : 0.0f;
  }
}

template <class T>
LCPO_CLONES void finish(const float* from, int64_t rows, int64_t stride, const T* bias,
                        int64_t columns, T* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r, from += stride, out += out_stride) {
    if (bias) {
      LCPO_SIMD
      for (int64_t j = 0; j < columns; ++j) store(out + j, from[j] + load(bias + j));
    } else {
      LCPO_SIMD
      for (int64_t j = 0; j < columns; ++j) store(out + j, from[j]);
    }
  }
}

}  // namespace

int64_t panels(bool is_bf16, int64_t outputs) {
  const int64_t width = panel_width(is_bf16);
  return (outputs + width - 1) / width;
}

void multiply(const LcpoLinear& l, const float* x, int64_t rows, int64_t first, int64_t last,
              float* out) {
  alignas(64) float tile[ROWS * FLOAT_WIDTH];
  const float* weight = static_cast<const float*>(l.weight);
  const float* bias = static_cast<const float*>(l.bias);
  const int64_t parts = (l.inputs + CHAIN - 1) / CHAIN, chain = (l.inputs + parts - 1) / parts;
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t at = panel * FLOAT_WIDTH, columns = std::min(FLOAT_WIDTH, l.outputs - at);
    const float* b = weight + at * l.inputs;
    const float* add = bias ? bias + at : nullptr;
    const bool fits = columns == FLOAT_WIDTH;
    for (int64_t r = 0; r < rows; r += ROWS) {
      const int64_t count = std::min(ROWS, rows - r);
      float* to = out + r * l.outputs + at;
      for (int64_t k = 0; k < l.inputs; k += chain) {
        gemm({count, FLOAT_WIDTH, std::min(chain, l.inputs - k), x + r * l.inputs + k, l.inputs,
              b + k * FLOAT_WIDTH, FLOAT_WIDTH, fits ? to : tile,
              fits ? l.outputs : FLOAT_WIDTH, false, k > 0});
      }
      if (!fits) {
        finish(tile, count, FLOAT_WIDTH, add, columns, to, l.outputs);
      } else if (add) {
        finish(to, count, l.outputs, add, columns, to, l.outputs);
      }
    }
  }
}

void multiply(const LcpoLinear& l, const bf16* x, int64_t rows, int64_t first, int64_t last,
              bf16* out) {
#ifdef LCPO_BF16_DOT
  alignas(64) float tile[DOT_HEIGHT * DOT_WIDTH];
  const int64_t pairs = l.inputs / 2;
  const bf16* bias = static_cast<const bf16*>(l.bias);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t at = panel * DOT_WIDTH, columns = std::min(DOT_WIDTH, l.outputs - at);
    const uint32_t* b = static_cast<const uint32_t*>(l.weight) + at * pairs;
    for (int64_t r = 0; r < rows; r += DOT_HEIGHT) {
      const int64_t count = std::min(DOT_HEIGHT, rows - r);
      // Pairs of a row lie side by side: bf16 rows of even length, read as they are.
      const uint32_t* a = reinterpret_cast<const uint32_t*>(x + r * l.inputs);
      dot_tile({a, pairs, 1, b, pairs, tile, DOT_WIDTH, DOT_WIDTH, false}, count);
      finish(tile, count, DOT_WIDTH, bias ? bias + at : nullptr, columns,
             out + r * l.outputs + at, l.outputs);
    }
  }
#else
  (void)l, (void)x, (void)rows, (void)first, (void)last, (void)out;
#endif
}

}  // namespace lcpo

LCPO_API int64_t lcpo_packed_bytes(bool is_bf16, int64_t outputs, int64_t inputs) {
  const int64_t columns = lcpo::panels(is_bf16, outputs) * lcpo::panel_width(is_bf16);
  return columns * lcpo::units(is_bf16, inputs) * static_cast<int64_t>(sizeof(float));
}

LCPO_API void lcpo_pack(const void* weight, bool is_bf16, int64_t outputs, int64_t inputs,
                        void* packed, int32_t threads) {
  const int64_t width = lcpo::panel_width(is_bf16), units = lcpo::units(is_bf16, inputs);
  const int64_t count = lcpo::panels(is_bf16, outputs);
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1)
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = j * width;
    lcpo::pack_panel(static_cast<const float*>(weight) + at * units, std::min(width, outputs - at),
                     units, width, static_cast<float*>(packed) + at * units);
  }
}
