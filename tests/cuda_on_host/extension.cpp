// The CUDA extension for the host, with additional functions for tests.
#include "cuda/select_tokens.cu"

namespace {

using namespace clasp;
using namespace clasp::cuda;

template <class T>
void write_similarities(const Features<T>& features, float* matrix, bool is_aligned) {
  const int32_t N = features.num_tokens;
  const int64_t stride = matrix_stride(N);
  const auto pairs = static_cast<unsigned>(num_tile_pairs((N + kTile - 1) / kTile));
  const auto kernel = is_aligned ? &similarities_kernel<T, true> : &similarities_kernel<T, false>;
  Stream(0).launch(kernel, pairs, kTileThreads, features,
                   SimilarityBatch{matrix, N * stride, stride}, Ranking{}, int64_t{0}, pairs,
                   pairs);
}

// features [1, N, D] -> matrix [N, N + padding], as the matrix design stores it.
void similarities(const Tensor& features, Tensor matrix, bool is_aligned) {
  const Call call(features);
  float* data = matrix.mutable_data_ptr<float>();
  switch (scalar_of(features, "features")) {
    case Scalar::float32:
      return write_similarities(call.features<float>(features), data, is_aligned);
    case Scalar::bfloat16:
      return write_similarities(call.features<Bfloat16>(features), data, is_aligned);
    case Scalar::float16:
      return write_similarities(call.features<Float16>(features), data, is_aligned);
  }
}

}  // namespace

CLASP_CUDA_LIBRARY_IMPL(m) {
  m.impl("similarities", CLASP_BOX(&similarities));
}

#ifdef SIMT_RACES

// Two warps: one writes a value that the other reads, with or without a barrier in between.
static void exchange(bool waits) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 1;
  if (waits) __syncthreads();
  if (threadIdx.x == 32 && value == 2) simt::fail("a value that nobody wrote");
}

extern "C" [[gnu::visibility("default")]] void simt_exchange(bool waits) {
  Stream(0).launch(&exchange, 1, 64, waits);
}

// Every thread of a warp reads a value, which one of them then writes, with or without a barrier in
// between. A shuffle orders no memory accesses. The thread that writes is the first to read, as it
// is the last to reach the barrier.
static void overwrite(bool waits) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 1;
  __syncthreads();
  if (value != 1) simt::fail("a value that nobody wrote");
  __shfl_xor_sync(~0U, 0.0F, 1);
  if (waits) __syncthreads();
  if (threadIdx.x == 31) value = 2;
}

extern "C" [[gnu::visibility("default")]] void simt_overwrite(bool waits) {
  Stream(0).launch(&overwrite, 1, 32, waits);
}

// Returns the races found since the last call.
extern "C" [[gnu::visibility("default")]] const char* simt_take_races() {
  static std::string found;
  found.clear();
  for (const std::string& report : simt::races::take_reports()) found += report + "\n";
  return found.c_str();
}

#endif
