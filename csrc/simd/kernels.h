// Table of the loops that depend on the instruction set. The table is chosen at run time, so that
// one build runs on every machine.
//
// Instruction sets are enabled by function attributes, never by a compiler flag for a whole file:
// the linker may keep one copy of an inline library function for all files, and that copy must not
// use AVX-512.
#pragma once

#include <cstdint>
#include <limits>

#include "shared/scalar.h"

// Put before a loop over running sums. Unrolling it this early keeps the sums in registers.
#if defined(__clang__)
#  define CLASP_UNROLL _Pragma("unroll")
#else
#  define CLASP_UNROLL _Pragma("GCC unroll 16")
#endif

namespace clasp {

// The largest number of tokens in a tile, which share each load of a row.
inline constexpr int64_t kTileTokens = 4;

// Dot products of contiguous vectors of one element type, with float32 products and sums. The order
// of summation depends on `dim` only, so two vectors give the same bits in any tile.
struct DotProducts {
  // dots[t * num_rows + r] = the dot product of tokens[t] and rows[r]; num_tokens is at most
  // kTileTokens. Prefetches the `num_ahead` vectors of `ahead` for the next call.
  void (*tile)(const void* const* tokens, int64_t num_tokens, const void* const* rows,
               int64_t num_rows, int64_t dim, const void* const* ahead, int64_t num_ahead,
               float* dots);
  // squares[t] = the dot product of tokens[t] with itself, summed in the same order.
  void (*squares)(const void* const* tokens, int64_t num_tokens, int64_t dim, float* squares);
};

// Number of keys in a block.
inline constexpr int64_t kBlockKeys = 64;
inline constexpr int64_t kKeysAtOnce = 16;
// The largest number of vectors in a block of query rows.
inline constexpr int64_t kMaxRowVectors = 3;
// Initial value of a maximum. Finite, so that -inf minus it is -inf, not NaN.
inline constexpr float kLeast = std::numeric_limits<float>::lowest();

struct RankRange {
  uint32_t best;
  uint32_t worst;
};

// Rows to be summed with weights.
template <class Element>
struct FuseRows {
  const Element* const* data;
  int64_t count;
  const float* weights;
  const float* scales;  // nullptr if there are none
};

// Buffers of sums are padded to a multiple of this many columns, so that no load or store of sums
// needs a mask.
inline constexpr int64_t kSumsMultiple = 32;

template <class Element>
struct FuseKernels {
  // Computes the sum over r of weights[r] * (scales[r] * data[r]), plus `sums` if `from_sums`.
  // Rounds it to `out` if that is not null, else stores it in `sums`. `sums` has an element order
  // of its own and room for `dim` columns, rounded up to a multiple of kSumsMultiple. Splitting the
  // rows between calls that continue each other does not change any bit.
  void (*fuse)(const FuseRows<Element>& rows, int64_t dim, float* sums, bool from_sums,
               Element* out);
  float (*sum_of_squares)(const Element* row, int64_t dim);
  // out = `sums`, as `fuse` has left it, divided by `divisor`.
  void (*divide)(const float* sums, int64_t dim, float divisor, Element* out);
};

struct Kernels {
  DotProducts dots_of_float32;
  DotProducts dots_of_bfloat16;
  DotProducts dots_of_float16;
  void (*widen_bfloat16)(const Bfloat16* source, int64_t count, float* target);
  void (*widen_float16)(const Float16* source, int64_t count, float* target);

  // Attention; see salience.inc. A row block has its query rows across the lanes, as num_vectors
  // (at most kMaxRowVectors) vectors for each key: [num_keys, num_vectors, lanes].
  int64_t lanes;
  // logits[k, v, lane] = scale * the dot product of keys[k] and that query. `queries` is [dim,
  // num_vectors, lanes].
  void (*row_logits)(const float* queries, int64_t num_vectors, const float* const* keys,
                     int64_t num_keys, int64_t dim, float scale, float* logits);
  // As row_logits for bfloat16 keys, with the queries in pairs of features, [(dim + 1) / 2,
  // num_vectors, lanes]. Null if the CPU has no bfloat16 dot products.
  void (*row_logits_bfloat16)(const uint32_t* queries, int64_t num_vectors, const void* const* keys,
                              int64_t num_keys, int64_t dim, float scale, float* logits);
  // Replaces logits by exp(logit - maximum), and writes the maximum and sum of each row.
  void (*row_softmax)(int64_t num_vectors, int64_t num_keys, float* logits, float* maxima,
                      float* sums);
  // columns[k] = the sum over rows r of factors[r] * exponentials[k, r].
  void (*row_columns)(const float* exponentials, const float* factors, int64_t num_vectors,
                      int64_t num_keys, float* columns);
  // The same operations with kBlockKeys keys across the lanes, [num_rows, kBlockKeys], for few
  // rows. key_logits is indexed by the Scalar of both keys and queries. `keys` are kKeysAtOnce
  // keys, followed by kKeysAtOnce keys to prefetch; `queries` is [num_rows, dim].
  void (*key_logits[3])(const void* queries, int64_t num_rows, const void* const* keys, int64_t dim,
                        float scale, float* logits);
  void (*key_softmax)(int64_t num_rows, float* logits, float* maxima, float* sums);
  void (*key_columns)(const float* exponentials, const float* factors, int64_t num_rows,
                      float* columns);
  // values[i] = exp(values[i]), for values that are at most 0 or NaN.
  void (*exponentials)(int64_t count, float* values);

  // ranks[i] = descending_rank(values[i]); returns the smallest and the largest rank.
  RankRange (*rank)(const float* values, int64_t count, uint32_t* ranks);
  // Returns how many ranks are at most `limit`.
  int64_t (*count_up_to)(const uint32_t* ranks, int64_t count, uint32_t limit);
  // Writes the positions of the ranks that are at most `limit`, in ascending order, and returns
  // their number. `positions` needs room for one more.
  int64_t (*find_up_to)(const uint32_t* ranks, int64_t count, uint32_t limit, uint32_t* positions);
  // num_better[i] = the number of ranks that are less than ranks[i].
  void (*count_better)(const uint32_t* ranks, int64_t count, uint32_t* num_better);

  // Turns dot products into cosine similarities in place: 0 if not positive or not finite.
  void (*to_similarities)(int64_t count, float norm, const float* norms, float* dots);
  // Returns the sum of weights[i] * max(0, similarities[i] - best[i]). `weights` may be null, for
  // ones. The order of summation depends on `count` only, so the sum never grows when `best` does.
  float (*gain)(const float* similarities, const float* best, const float* weights, int64_t count);
  // best[i] = max(best[i], similarities[i]).
  void (*raise_to)(const float* similarities, int64_t count, float* best);

  FuseKernels<float> fuse_float32;
  FuseKernels<Bfloat16> fuse_bfloat16;
  FuseKernels<Float16> fuse_float16;

  const DotProducts& dots(Scalar scalar) const {
    switch (scalar) {
      case Scalar::bfloat16:
        return dots_of_bfloat16;
      case Scalar::float16:
        return dots_of_float16;
      default:
        return dots_of_float32;
    }
  }
};

}  // namespace clasp
