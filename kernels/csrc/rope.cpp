// Rotary embedding of query and key heads; contract: kernels/ops/rope.py.

#include <vector>

#include "api.h"
#include "bf16.h"
#include "simd.h"

namespace lcpo {
namespace {

constexpr int64_t SMALL = 1 << 14;  // entries for which waking threads does not pay

template <class T>
struct Heads {
  const T* data;
  int64_t heads, token_stride, head_stride;
  T* out;  // dense
};

// The heads of one token, [heads, 2 * half] each.
template <class T>
LCPO_CLONES void rotate(const Heads<T>& x, int64_t token, const float* cos, const float* sin,
                        int64_t half) {
  for (int64_t h = 0; h < x.heads; ++h) {
    const T* in = x.data + token * x.token_stride + h * x.head_stride;
    T* out = x.out + (token * x.heads + h) * 2 * half;
    LCPO_SIMD
    for (int64_t i = 0; i < half; ++i) {
      const float first = load(in + i), second = load(in + half + i);
      store(out + i, first * cos[i] - second * sin[i]);
      store(out + half + i, second * cos[i] + first * sin[i]);
    }
  }
}

// cos and sin are rounded to the dtype of q first, as in transformers.
LCPO_CLONES void rounded(const float* in, int64_t size, float* out) {
  LCPO_SIMD
  for (int64_t i = 0; i < size; ++i) {
    const bf16 low = to_bf16(in[i]);
    out[i] = load(&low);
  }
}

template <class T>
void rope(const Heads<T>& q, const Heads<T>& k, const float* cos, const float* sin, int64_t tokens,
          int64_t half, int32_t threads) {
  const int64_t entries = tokens * (q.heads + k.heads) * 2 * half;
#pragma omp parallel num_threads(threads) if (entries > SMALL)
  {
    std::vector<float> room(sizeof(T) == sizeof(bf16) ? 2 * half : 0);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const float *c = cos + t * half, *s = sin + t * half;
      if (!room.empty()) {
        rounded(c, half, room.data());
        rounded(s, half, room.data() + half);
        c = room.data();
        s = c + half;
      }
      rotate(q, t, c, s, half);
      rotate(k, t, c, s, half);
    }
  }
}

}  // namespace
}  // namespace lcpo

LCPO_API void lcpo_rope(const void* q, const void* k, bool is_bf16, const float* cos,
                        const float* sin, int64_t tokens, int64_t q_heads, int64_t k_heads,
                        int64_t half, const int64_t* strides, void* q_out, void* k_out,
                        int32_t threads) {
  const auto run = [&](auto* out) {
    using T = std::remove_pointer_t<decltype(out)>;
    lcpo::rope<T>({static_cast<const T*>(q), q_heads, strides[0], strides[1], out},
                  {static_cast<const T*>(k), k_heads, strides[2], strides[3],
                   static_cast<T*>(k_out)},
                  cos, sin, tokens, half, threads);
  };
  is_bf16 ? run(static_cast<lcpo::bf16*>(q_out)) : run(static_cast<float*>(q_out));
}
