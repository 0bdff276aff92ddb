// The loops that depend on the instruction set, behind function pointers. Which set is used is
// decided at run time, so that one build runs on every machine.
//
// The instructions come from function attributes, never from a compiler flag for a whole file: an
// inline library function compiled for AVX-512 in one file could be the copy that the linker keeps
// for all of them.
#pragma once

#include <cstdint>
#include <limits>

#include "shared/scalar.h"

// Before a loop over running sums: unrolled this early, they stay in registers all along.
#if defined(__clang__)
#  define CLASP_UNROLL _Pragma("unroll")
#else
#  define CLASP_UNROLL _Pragma("GCC unroll 16")
#endif

namespace clasp {

// A tile is at most this many tokens wide: as many as share each load of a row.
inline constexpr int64_t kTileTokens = 4;

// Dot products of contiguous vectors of one element type, with float32 products and sums. The order
// of summation depends on nothing but `dim`: the same two vectors give the same bits whatever tile
// they are in.
struct DotProducts {
  // dots[t * num_rows + r] = the dot product of tokens[t] and rows[r]; num_tokens is at most
  // kTileTokens. On the way, the `num_ahead` vectors that `ahead` points to are asked for from
  // memory for the next call.
  void (*tile)(const void* const* tokens, int64_t num_tokens, const void* const* rows,
               int64_t num_rows, int64_t dim, const void* const* ahead, int64_t num_ahead,
               float* dots);
  // squares[t] = the dot product of tokens[t] with itself, summed in the same order.
  void (*squares)(const void* const* tokens, int64_t num_tokens, int64_t dim, float* squares);
};

// Keys of attention are dealt with in blocks of this many.
inline constexpr int64_t kBlockKeys = 64;
inline constexpr int64_t kKeysAtOnce = 16;
// A block of query rows is at most this many vectors wide.
inline constexpr int64_t kMaxRowVectors = 3;
// What the maximum of no logits is: finite, so that -inf minus it is -inf.
inline constexpr float kLeast = std::numeric_limits<float>::lowest();

struct RankRange {
  uint32_t best;
  uint32_t worst;
};

// Rows to be added up.
template <class Element>
struct FuseRows {
  const Element* const* data;
  int64_t count;
  const float* weights;
  const float* scales;  // nullptr if there are none
};

// Sums are kept for up to this many columns more than there are, so that only elements need care.
inline constexpr int64_t kSumsMultiple = 32;

template <class Element>
struct FuseKernels {
  // The sum over r of weights[r] * (scales[r] * data[r]), on top of `sums` if `from_sums`, rounded
  // to `out` if there is one and else left in `sums`. `sums` is in an order of its own and has
  // room for `dim` columns rounded up to a multiple of kSumsMultiple. No bit of a column depends
  // on how the rows are split between calls that continue each other.
  void (*fuse)(const FuseRows<Element>& rows, int64_t dim, float* sums, bool from_sums,
               Element* out);
  float (*sum_of_squares)(const Element* row, int64_t dim);
  // What `fuse` has left in `sums` over `divisor`.
  void (*divide)(const float* sums, int64_t dim, float divisor, Element* out);
};

struct Kernels {
  DotProducts dots_of_float32;
  DotProducts dots_of_bfloat16;
  DotProducts dots_of_float16;
  void (*widen_bfloat16)(const Bfloat16* source, int64_t count, float* target);
  void (*widen_float16)(const Float16* source, int64_t count, float* target);

  // Attention; see salience.inc. A "row block" has its query rows across the lanes, num_vectors
  // (at most kMaxRowVectors) of them for each key: [num_keys, num_vectors, lanes].
  int64_t lanes;
  // logits[k] = scale * the products of keys[k] and each query of the [dim, num_vectors, lanes].
  void (*row_logits)(const float* queries, int64_t num_vectors, const float* const* keys,
                     int64_t num_keys, int64_t dim, float scale, float* logits);
  // The same for keys of bfloat16, with the queries in pairs of features, [(dim + 1) / 2,
  // num_vectors, lanes]; null where the machine does not multiply bfloat16.
  void (*row_logits_bfloat16)(const uint32_t* queries, int64_t num_vectors, const void* const* keys,
                              int64_t num_keys, int64_t dim, float scale, float* logits);
  // Logits to exp(logit - maximum), with each row's maximum and the sum of what it came to.
  void (*row_softmax)(int64_t num_vectors, int64_t num_keys, float* logits, float* maxima,
                      float* sums);
  // columns[k] = the sum of factors[r] * exponentials[k, r] over rows.
  void (*row_columns)(const float* exponentials, const float* factors, int64_t num_vectors,
                      int64_t num_keys, float* columns);
  // The same with kBlockKeys keys across the lanes, [num_rows, kBlockKeys]: for few rows.
  // Keys, kKeysAtOnce of them, and queries, [num_rows, dim], are of one Scalar, which is the index.
  // After the keys follow as many more, which are asked for from memory on the way.
  void (*key_logits[3])(const void* queries, int64_t num_rows, const void* const* keys, int64_t dim,
                        float scale, float* logits);
  void (*key_softmax)(int64_t num_rows, float* logits, float* maxima, float* sums);
  void (*key_columns)(const float* exponentials, const float* factors, int64_t num_rows,
                      float* columns);
  // values[i] = exp(values[i]), for values of at most 0 and NaN.
  void (*exponentials)(int64_t count, float* values);

  // ranks[i] = descending_rank(values[i]); returns the least and the largest of them.
  RankRange (*rank)(const float* values, int64_t count, uint32_t* ranks);
  // How many ranks are at most `limit`.
  int64_t (*count_up_to)(const uint32_t* ranks, int64_t count, uint32_t limit);
  // Writes where the ranks are that are at most `limit`, in ascending order, and returns how many
  // there are; `positions` has room for one more.
  int64_t (*find_up_to)(const uint32_t* ranks, int64_t count, uint32_t limit, uint32_t* positions);
  // num_better[i] = how many ranks are less than ranks[i].
  void (*count_better)(const uint32_t* ranks, int64_t count, uint32_t* num_better);

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
