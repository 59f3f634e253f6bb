// The library's interface: plain C, raw pointers, no Python and no torch. Callers validate.
//
// Tensors are dense and row-major unless a stride (in elements) is given. Rows are independent:
// results do not depend on the number of threads.
#pragma once

#include <cstdint>

#define LCPO_API extern "C" __attribute__((visibility("default")))

// Raised with every change of a signature, together with the number in cpp_impl/loading.py.
#define LCPO_ABI_VERSION 8
LCPO_API int32_t lcpo_abi_version();

// Token counts of packed responses: ids [T], cu_seqlens [sequences + 1], outputs [sequences].
// Contract: kernels/ops/count_lengths.py.
LCPO_API void lcpo_count_lengths(const int64_t* ids, const int32_t* cu_seqlens, int64_t sequences,
                                 int64_t eos_id, const int64_t* think_end, int64_t think_end_size,
                                 int32_t* n_total, int32_t* n_think, int32_t* n_answer,
                                 bool* truncated);

// One token for each row of logits [rows, >= vocab_size], float32 or bf16. top_k 0 and top_p 1 cut nothing;
// temperature 0 is greedy. Contract: kernels/ops/sample_tokens.py.
LCPO_API void lcpo_sample_tokens(const void* logits, bool is_bf16, int64_t rows, int64_t stride,
                                 int64_t vocab_size, float temperature, int64_t top_k,
                                 double top_p, const int64_t* seeds, const int64_t* positions,
                                 int64_t* tokens, float* logprob, float* cut_logprob,
                                 int32_t threads);

// Row statistics of logits x [rows, columns], float32 or bf16: logprob [rows] of the targets,
// stats [rows, 3] = max x, log sum exp(z), E[z] with z = (x - max x) / temperature.
LCPO_API void lcpo_logprob_forward(const void* logits, bool is_bf16, int64_t rows, int64_t columns,
                                   int64_t stride, float temperature, const int64_t* targets,
                                   float* logprob, float* stats, int32_t threads);

// Both for whole rows from those of their tiles, logprob [tiles, rows] and stats [tiles, rows, 3]: all
// tiles but the last have `width` columns. The log-prob counts of the tile that holds the target.
LCPO_API void lcpo_logprob_merge(const float* logprob, const float* stats, int64_t tiles,
                                 int64_t rows, int64_t width, float temperature,
                                 const int64_t* targets, float* out, float* out_stats);

// d_logits [rows, d_columns >= columns], of the dtype of logits and possibly logits itself; zero
// from `columns` on. A null gradient counts as zero.
LCPO_API void lcpo_logprob_backward(const void* logits, bool is_bf16, int64_t rows,
                                    int64_t columns, int64_t stride, float temperature,
                                    const int64_t* targets, const float* stats,
                                    const float* grad_logprob, const float* grad_entropy,
                                    void* d_logits, int64_t d_columns, int32_t threads);

// product: c [m, n] float32 = a · b, or += with `add`; a [m, k] (stored [k, m] when transposed) and
// b [k, n] bf16, a stride for each. Only where lcpo_has_product(), which asks the processor.
LCPO_API bool lcpo_has_product();
LCPO_API void lcpo_product(const uint16_t* a, bool a_is_transposed, int64_t a_stride,
                           const uint16_t* b, int64_t b_stride, int64_t m, int64_t n, int64_t k,
                           float* c, int64_t c_stride, bool add, int32_t threads);

// varlen_attention: q, out [T, heads, size], k, v [T, kv_heads, size], float32 or bf16,
// cu_seqlens [sequences + 1] with T last, prefix null or [sequences], lse [heads, T] the log sum exp
// of each row's scores. Contract: kernels/ops/varlen_attention.py.
LCPO_API void lcpo_varlen_attention_forward(const void* q, const void* k, const void* v,
                                            bool is_bf16, const int32_t* cu_seqlens,
                                            const int32_t* prefix, int64_t sequences,
                                            int64_t heads, int64_t kv_heads, int64_t size,
                                            float scale, void* out, float* lse, int32_t threads);
LCPO_API void lcpo_varlen_attention_backward(
    const void* grad_out, const void* q, const void* k, const void* v, const void* out,
    const float* lse, bool is_bf16, const int32_t* cu_seqlens, const int32_t* prefix,
    int64_t sequences, int64_t heads, int64_t kv_heads, int64_t size, float scale, void* dq,
    void* dk, void* dv, int32_t threads);

// paged_decode_attention: q, out [rows, heads, size], caches [pages, page_size, kv_heads, size],
// float32 or bf16, block_table [rows, pages_per_row], cache_seqlens [rows], at least 1.
// Contract: kernels/ops/paged_decode_attention.py.
LCPO_API void lcpo_paged_decode_attention(const void* q, const void* k_cache, const void* v_cache,
                                          bool is_bf16, const int32_t* block_table,
                                          const int32_t* cache_seqlens, int64_t rows,
                                          int64_t page_size, int64_t pages_per_row, int64_t heads,
                                          int64_t kv_heads, int64_t size, float scale, void* out,
                                          int32_t threads);

// rms_norm: rows [rows, width]; each tensor float32 or bf16, y and total as torch promotes them.
// Without a residual (null) total is not written. d_x serves x and residual, in total's dtype, as
// grad_total (may be null) is. Contract: kernels/ops/rms_norm.py.
LCPO_API void lcpo_rms_norm_forward(const void* x, bool x_bf16, const void* residual,
                                    bool residual_bf16, const void* weight, bool weight_bf16,
                                    int64_t rows, int64_t width, double eps, void* y, void* total,
                                    float* rstd, int32_t threads);
LCPO_API void lcpo_rms_norm_backward(const void* grad_y, const void* grad_total,
                                     const void* total, bool total_bf16, const void* weight,
                                     bool weight_bf16, const float* rstd, int64_t rows,
                                     int64_t width, void* d_x, void* d_weight, int32_t threads);

// rope: q [tokens, q_heads, 2 * half] and k with strides {q token, q head, k token, k head}; dense
// outputs; cos, sin [tokens, half]. Contract: kernels/ops/rope.py.
LCPO_API void lcpo_rope(const void* q, const void* k, bool is_bf16, const float* cos,
                        const float* sin, int64_t tokens, int64_t q_heads, int64_t k_heads,
                        int64_t half, const int64_t* strides, void* q_out, void* k_out,
                        int32_t threads);

// swiglu: `size` entries, all of one dtype. Contract: kernels/ops/swiglu.py.
LCPO_API void lcpo_swiglu_forward(const void* gate, const void* up, bool is_bf16, int64_t size,
                                  void* out, int32_t threads);
LCPO_API void lcpo_swiglu_backward(const void* grad, const void* gate, const void* up,
                                   bool is_bf16, int64_t size, void* d_gate, void* d_up,
                                   int32_t threads);

// adamw_split: `size` numbers in two halves of 16 bits each, updated in place unless *skip; factors
// {1 - lr · decay, -lr / bias correction, root of the second's} are the step's.
// Contract: kernels/ops/adamw_split.py.
LCPO_API void lcpo_adamw_split(uint16_t* weight, int16_t* low, const float* grad, float* exp_avg,
                               float* exp_avg_sq, int64_t size, const float* factors,
                               const bool* skip, double beta1, double beta2, double eps,
                               int32_t threads);

// policy_loss: R = rows tokens; ref and entropy may be null. loss [1], d_logprob and d_entropy
// [rows], stats [6] as in PolicyStats. Contract: kernels/ops/policy_loss.py.
LCPO_API void lcpo_policy_loss(const float* logprob, const float* old, const float* ref,
                               const float* entropy, const float* advantage,
                               const float* seq_weight, const int32_t* seq_ids, int64_t rows,
                               double clip_low, double clip_high, double kl_coef, bool corrected,
                               double entropy_coef, float* loss, float* d_logprob,
                               float* d_entropy, float* stats, int32_t threads);

// lcpo_advantage: outputs [rows]; estimator 0 grpo, 1 dr_grpo, 2 rloo.
// Contract: kernels/ops/lcpo_advantage.py.
LCPO_API void lcpo_lcpo_advantage(const float* correct, const int32_t* n_y, const int32_t* n_gold,
                                  const int32_t* mode, const int32_t* group, int64_t rows,
                                  int64_t groups, bool sigmoid, float alpha_exact, float alpha_max,
                                  float delta, int32_t estimator, double eps, float* length,
                                  float* reward, float* advantage);

// A linear layer; bias [outputs] or null. A float32 weight [outputs, inputs] was packed. A bf16 one is
// read as it lies: only where lcpo_has_product(), with an even number of inputs.
struct LcpoLinear {
  const void *weight, *bias;
  int64_t outputs, inputs;
};
LCPO_API int64_t lcpo_packed_bytes(int64_t outputs, int64_t inputs);
LCPO_API void lcpo_pack(const float* weight, int64_t outputs, int64_t inputs, float* packed,
                        int32_t threads);

// linear: out [rows, outputs] = x [rows, inputs] · weightᵀ + bias, the product of a packed weight with
// one that lies as it is. Contract: kernels/ops/linear.py.
LCPO_API void lcpo_linear(const float* x, int64_t rows, const float* weight, const float* bias,
                          int64_t outputs, int64_t inputs, float* out, int32_t threads);

// before_attention, after_attention: a decoder layer but for its attention, token by token. All bf16
// but gradients of weights, sizes even; they exist where lcpo_has_half_layers(). Contract:
// kernels/ops/half_layers.py.
LCPO_API bool lcpo_has_half_layers();
struct LcpoHalfLayer {
  int64_t tokens, hidden;
  const void* norm;  // [hidden]
  double eps;
};
struct LcpoGradient {
  float* weight;  // [outputs, inputs], is written or added to
  void* bias;     // [outputs], or null
  bool add;
};
struct LcpoBefore {
  LcpoHalfLayer half;
  LcpoLinear q, k, v;
  const float *cos, *sin;  // [tokens, size / 2]; the gradients take those of the opposite angles
  int64_t size;            // of a head
  LcpoGradient d_q, d_k, d_v;  // of the backward pass
};
// residual may be null: then total is update, and not written.
LCPO_API void lcpo_before_attention(const LcpoBefore* layer, const void* update,
                                    const void* residual, void* total, void* q, void* k, void* v,
                                    int32_t threads);
// d_total may be null, here and below.
LCPO_API void lcpo_before_attention_backward(const LcpoBefore* layer, const void* total,
                                             const void* d_q, const void* d_k, const void* d_v,
                                             const void* d_total, void* d_x, void* d_norm,
                                             int32_t threads);
struct LcpoAfter {
  LcpoHalfLayer half;
  LcpoLinear o, gate, up, down;
  LcpoGradient d_o, d_gate, d_up, d_down;
};
// gate and up may both be null: then they are not kept.
LCPO_API void lcpo_after_attention(const LcpoAfter* layer, const void* attended,
                                   const void* residual, void* total, void* gate, void* up,
                                   void* update, int32_t threads);
LCPO_API void lcpo_after_attention_backward(const LcpoAfter* layer, const void* attended,
                                            const void* total, const void* gate, const void* up,
                                            const void* d_update, const void* d_total, void* d_x,
                                            void* d_attended, void* d_norm, int32_t threads);

// decode_steps: some tokens more for each row. All weights, caches [layers, pages, page_size, kv_heads,
// size] and biases are float32, or all bf16. Contract: kernels/ops/packed_decoder.py.
struct LcpoDecodeLayer {
  const void *input_norm, *post_norm;  // [hidden]
  const void *q_norm, *k_norm;         // [size], or null
  LcpoLinear q, k, v, o, gate, up, down;
};
struct LcpoDecodeModel {
  const LcpoDecodeLayer* layers;
  int64_t count, vocabulary, hidden, heads, kv_heads, size, inner;  // count of layers
  const void *embedding, *norm;  // [vocabulary, hidden], [hidden]
  LcpoLinear head;
  double eps;
  float scale;
  bool is_bf16;
};
struct LcpoTokens {
  const int64_t* tokens;
  const float *cos, *sin;  // [count, size / 2], of their positions; of decode steps see below
  void *k_cache, *v_cache;
  int64_t count, slots;  // slots of a layer, pages · page_size
  void* workspace;       // lcpo_decode_workspace or lcpo_prefill_workspace bytes
};
struct LcpoDecodeRows {
  LcpoTokens tokens;           // the last token of each row; cos, sin [angles, size / 2] by position
  const int64_t* lengths;      // [rows], how many are in the cache: the token's position
  const int32_t* block_table;  // [rows, pages_per_row]
  int64_t page_size, pages_per_row, angles, steps;
  int64_t stop;  // behind this token, and behind -1 (NaN logits), a row takes no further step
};
struct LcpoDraw {  // see lcpo_sample_tokens
  const int64_t *seeds, *positions;  // [rows], of the first step: positions then rise by one a step
  int64_t* tokens;                   // [steps, rows], as it was for steps that a row does not take
  float* logprob;                    // [steps, rows], likewise
  int64_t vocab_size, top_k;
  double top_p;
  float temperature;
  int64_t head_columns;  // of a tile of logits, whose log-probs are lcpo_logprob_merge's
};
LCPO_API int64_t lcpo_decode_workspace(const LcpoDecodeModel* model, int64_t rows);
// Whether caches hold the model's weights: each thread then takes rows of its own through all
// steps of a call.
LCPO_API bool lcpo_is_cached(const LcpoDecodeModel* model);
// -1, or the first row whose token, length or pages are out of range: then nothing was done.
// Each token drawn is the input of the next step.
LCPO_API int64_t lcpo_decode_steps(const LcpoDecodeModel* model, const LcpoDecodeRows* rows,
                                   const LcpoDraw* draw, int32_t threads);
// The token after each of `rows` final states hidden [rows, hidden], in a workspace as above.
LCPO_API void lcpo_draw(const LcpoDecodeModel* model, const void* hidden, int64_t rows,
                        void* workspace, const LcpoDraw* draw, int32_t threads);

// prefill: packed prompts through the same model, see lcpo_varlen_attention_forward. Keys and values
// of token sources[w] go to slot targets[w]; hidden [wanted, hidden] are the final states of tokens
// `last`, each of them once.
struct LcpoPrompts {
  LcpoTokens tokens;
  const int32_t *cu_seqlens, *prefix;
  const int64_t *sources, *targets, *last;
  int64_t sequences, writes, wanted;
  void* hidden;
};
LCPO_API int64_t lcpo_prefill_workspace(const LcpoDecodeModel* model, int64_t tokens);
LCPO_API void lcpo_prefill(const LcpoDecodeModel* model, const LcpoPrompts* prompts,
                           int32_t threads);
