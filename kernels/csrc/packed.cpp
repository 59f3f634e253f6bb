#include "packed.h"

#include <algorithm>

#include "attention.h"
#include "gemm.h"
#include "panel_bf16.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int64_t WIDTH = 4 * LANES;  // what gemm.cpp keeps in AVX-512 registers
// Inputs that are summed in one chain; longer sums are cut evenly and their parts added, which halves
// the error and is what MKL does, so that the bits are often those of torch.
constexpr int64_t CHAIN = 256;
constexpr int64_t ROWS = 48;                // of a tile that does not fit where it belongs
constexpr int64_t SHARE = 480;              // rows that one thread takes of an unpacked weight

// out [inputs, WIDTH]: columns of w [size, inputs], size <= WIDTH, and zeros.
void pack_panel(const float* w, int64_t size, int64_t inputs, float* out) {
  if (size == WIDTH && inputs % 4 == 0) return transpose(w, WIDTH, inputs, inputs, out, WIDTH);
  for (int64_t p = 0; p < inputs; ++p) {
    for (int64_t j = 0; j < WIDTH; ++j) out[p * WIDTH + j] = j < size ? w[j * inputs + p] : 0.0f;
  }
}

LCPO_CLONES void finish(const float* from, int64_t rows, int64_t stride, const float* bias,
                        int64_t columns, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r, from += stride, out += out_stride) {
    if (bias) {
      LCPO_SIMD
      for (int64_t j = 0; j < columns; ++j) out[j] = from[j] + bias[j];
    } else {
      LCPO_SIMD
      for (int64_t j = 0; j < columns; ++j) out[j] = from[j];
    }
  }
}

}  // namespace

int64_t panels(bool is_bf16, int64_t outputs) {
  const int64_t width = is_bf16 ? PANEL : WIDTH;
  return (outputs + width - 1) / width;
}

// The outputs from `at` on, as many as a panel has; b [inputs, WIDTH] is that panel.
void multiply_panel(const LcpoLinear& l, const float* b, int64_t at, const float* x, int64_t rows,
                    float* out) {
  alignas(64) float tile[ROWS * WIDTH];
  const float* bias = static_cast<const float*>(l.bias);
  const float* add = bias ? bias + at : nullptr;
  const int64_t parts = (l.inputs + CHAIN - 1) / CHAIN, chain = (l.inputs + parts - 1) / parts;
  const int64_t columns = std::min(WIDTH, l.outputs - at);
  const bool fits = columns == WIDTH;
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t count = std::min(ROWS, rows - r);
    float* to = out + r * l.outputs + at;
    for (int64_t k = 0; k < l.inputs; k += chain) {
      gemm({count, WIDTH, std::min(chain, l.inputs - k), x + r * l.inputs + k, l.inputs,
            b + k * WIDTH, WIDTH, fits ? to : tile, fits ? l.outputs : WIDTH, false, k > 0});
    }
    if (!fits) {
      finish(tile, count, WIDTH, add, columns, to, l.outputs);
    } else if (add) {
      finish(to, count, l.outputs, add, columns, to, l.outputs);
    }
  }
}

void multiply(const LcpoLinear& l, const float* x, int64_t rows, int64_t first, int64_t last,
              float* out) {
  const float* weight = static_cast<const float*>(l.weight);
  for (int64_t panel = first; panel < last; ++panel) {
    const int64_t at = panel * WIDTH;
    multiply_panel(l, weight + at * l.inputs, at, x, rows, out);
  }
}

// Threads share rows as well as panels: a narrow layer has one or two of these. A panel is packed by
// each thread that meets it, which costs what a row or two of the product do.
void multiply_unpacked(const LcpoLinear& l, const float* x, int64_t rows, float* out,
                       int32_t threads) {
  const float* weight = static_cast<const float*>(l.weight);
  const int64_t blocks = (rows + SHARE - 1) / SHARE, count = panels(false, l.outputs) * blocks;
#pragma omp parallel num_threads(threads) if (count > 1)
  {
    const Array<float> b(WIDTH * l.inputs);
    int64_t packed = -1;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = i / blocks * WIDTH, r = i % blocks * SHARE;
      if (at != packed) {
        pack_panel(weight + at * l.inputs, std::min(WIDTH, l.outputs - at), l.inputs, b);
        packed = at;
      }
      multiply_panel(l, b, at, x + r * l.inputs, std::min(SHARE, rows - r), out + r * l.outputs);
    }
  }
}

}  // namespace lcpo

LCPO_API int64_t lcpo_packed_bytes(int64_t outputs, int64_t inputs) {
  return lcpo::panels(false, outputs) * lcpo::WIDTH * inputs * static_cast<int64_t>(sizeof(float));
}

LCPO_API void lcpo_pack(const float* weight, int64_t outputs, int64_t inputs, float* packed,
                        int32_t threads) {
  const int64_t count = lcpo::panels(false, outputs);
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1)
  for (int64_t j = 0; j < count; ++j) {
    const int64_t at = j * lcpo::WIDTH;
    lcpo::pack_panel(weight + at * inputs, std::min(lcpo::WIDTH, outputs - at), inputs,
                     packed + at * inputs);
  }
}

LCPO_API void lcpo_linear(const float* x, int64_t rows, const float* weight, const float* bias,
                          int64_t outputs, int64_t inputs, float* out, int32_t threads) {
  lcpo::multiply_unpacked({weight, bias, outputs, inputs}, x, rows, out, threads);
}
