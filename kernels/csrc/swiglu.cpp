// silu(gate) * up and its gradient, elementwise; contract: kernels/ops/swiglu.py.

#include <type_traits>

#include "api.h"
#include "bf16.h"
#include "blocks.h"
#include "simd.h"
#include "swiglu.h"

namespace lcpo {
namespace {

// 1 / (1 + exp(-x)); beyond 88 in size as at 88.
LCPO_INLINE float sigmoid(float x) {
  const float y = clamp_exponent(x * -static_cast<float>(LOG2E));
  return 1.0f / (1.0f + exp2_clamped(y > HIGHEST_EXPONENT ? HIGHEST_EXPONENT : y));
}

template <class T>
LCPO_CLONES void forward(const T* gate, const T* up, int64_t size, T* out) {
  LCPO_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const float g = load(gate + i);
    store(out + i, g * sigmoid(g) * load(up + i));
  }
}

// out = g s u;  dg = dout u s (1 + g (1 - s));  du = dout g s
template <bool OUT, class T>
LCPO_INLINE void gradients(const T* grad, const T* gate, const T* up, int64_t size, T* d_gate,
                           T* d_up, T* out) {
  LCPO_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const float g = load(gate + i), u = load(up + i), d = load(grad + i);
    const float s = sigmoid(g), silu = g * s;
    store(d_gate + i, d * u * (s + silu * (1.0f - s)));
    store(d_up + i, d * silu);
    if (OUT) store(out + i, silu * u);
  }
}

template <class T>
LCPO_CLONES void backward(const T* grad, const T* gate, const T* up, int64_t size, T* d_gate,
                          T* d_up) {
  gradients<false>(grad, gate, up, size, d_gate, d_up, static_cast<T*>(nullptr));
}

}  // namespace

LCPO_CLONES void swiglu_again(const bf16* grad, const bf16* gate, const bf16* up, int64_t size,
                              bf16* d_gate, bf16* d_up, bf16* out) {
  gradients<true>(grad, gate, up, size, d_gate, d_up, out);
}

}  // namespace lcpo

LCPO_API void lcpo_swiglu_forward(const void* gate, const void* up, bool is_bf16, int64_t size,
                                  void* out, int32_t threads) {
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const T *g = static_cast<const T*>(gate), *u = static_cast<const T*>(up);
    lcpo::over_blocks(size, threads, [&](int64_t at, int64_t count) {
      lcpo::forward(g + at, u + at, count, to + at);
    });
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(out)) : run(static_cast<float*>(out));
}

LCPO_API void lcpo_swiglu_backward(const void* grad, const void* gate, const void* up,
                                   bool is_bf16, int64_t size, void* d_gate, void* d_up,
                                   int32_t threads) {
  const auto run = [&](auto* to) {
    using T = std::remove_pointer_t<decltype(to)>;
    const T *d = static_cast<const T*>(grad), *g = static_cast<const T*>(gate);
    const T* u = static_cast<const T*>(up);
    T* by_up = static_cast<T*>(d_up);
    lcpo::over_blocks(size, threads, [&](int64_t at, int64_t count) {
      lcpo::backward(d + at, g + at, u + at, count, to + at, by_up + at);
    });
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(d_gate)) : run(static_cast<float*>(d_gate));
}
