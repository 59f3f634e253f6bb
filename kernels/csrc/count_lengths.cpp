#include <algorithm>

#include "api.h"

LCPO_API void lcpo_count_lengths(const int64_t* ids, const int32_t* cu_seqlens, int64_t sequences,
                                 int64_t eos_id, const int64_t* think_end, int64_t think_end_size,
                                 int32_t* n_total, int32_t* n_think, int32_t* n_answer,
                                 bool* truncated) {
  for (int64_t b = 0; b < sequences; ++b) {
    const int64_t* begin = ids + cu_seqlens[b];
    const int64_t* end = ids + cu_seqlens[b + 1];
    const int64_t* eos = std::find(begin, end, eos_id);
    const int64_t* stop = eos == end ? end : eos + 1;
    // search returns `stop` when the whole pattern does not occur before it
    const int64_t* found = std::search(begin, stop, think_end, think_end + think_end_size);
    const int64_t* think = found == stop ? stop : found + think_end_size;
    n_total[b] = static_cast<int32_t>(stop - begin);
    n_think[b] = static_cast<int32_t>(think - begin);
    n_answer[b] = static_cast<int32_t>(stop - think);
    truncated[b] = eos == end;
  }
}
