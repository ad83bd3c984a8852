// The classifier of a student and its derivatives (formulas: core/classifier.h).
//
// These are products with ten or a hundred rows and columns, for which a matrix library has no good
// tiles. At B = 100, K = 10 and 2048 features on an H200 the library takes 27 us for each product,
// and 130 us of a student step with the copies between feature order and parameter order. These
// kernels read features and weights in place:
//
//   forward          a block takes one image and kClasses classes and sums over the features
//   input gradient   a thread takes one feature of kImages images and sums over the classes
//   weight gradient  a thread takes one feature, kClassPair classes and every kGroups-th image; the
//                    groups are added in shared memory; one more block per pair sums the bias
//
// The two gradients share a launch. The first two products read weights in memory order. The 32
// weights of a warp are then neighbours, while its features lie one row of channels apart, in cache
// lines that the other warps of the block use too. The weight gradient reads the features in memory
// order. Sums over features are float64 across threads. Every order of addition is fixed, and
// nothing is atomic.
//
// At that size a product takes 4 MFLOP and 0.9 MB, mostly features: 0.2 us of an H200's memory
// time.

#include "cuda/classifier_logits.cuh"

namespace trajmatch::cuda {
namespace {

using namespace classifier;

constexpr int kImages = 4;
constexpr int kClassPair = 2;
constexpr int kColumns = 64;
constexpr int kGroups = kThreads / kColumns;

inline int64_t tiles(int64_t count, int64_t size) { return (count + size - 1) / size; }

// The inverse: the position of the weight for the feature at position `at`.
__device__ __forceinline__ unsigned place_of_weight(const ClassifierShape& shape, unsigned at) {
  const unsigned channels = static_cast<unsigned>(shape.channels);
  return at % channels * static_cast<unsigned>(shape.pixels) + at / channels;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    classifier_forward_kernel(ClassifierForward<T> p, unsigned class_tiles) {
  write_logits(p, blockIdx.x / class_tiles,
               static_cast<int64_t>(blockIdx.x % class_tiles) * kClasses);
}

template <class T>
__device__ __forceinline__ void input_gradient(const ClassifierInputGradient<T>& p, unsigned block,
                                               unsigned feature_tiles) {
  const int64_t first_image = static_cast<int64_t>(block / feature_tiles) * kImages;
  const unsigned at = block % feature_tiles * kThreads + threadIdx.x;
  const int64_t classes = p.shape.classes, features = p.shape.features();
  if (at >= features) return;
  const int64_t trajectory = blockIdx.y, images_before = trajectory * p.shape.batch;
  // Image numbers beyond the batch repeat the last image. Their results are not written.
  int64_t image[kImages];
  TM_UNROLL
  for (int i = 0; i < kImages; ++i) {
    image[i] = first_image + i < p.shape.batch ? first_image + i : p.shape.batch - 1;
  }
  T sums[kImages] = {};
  TM_UNROLL
  for (int t = 0; t < 2; ++t) {
    if (t == p.terms) break;
    const T* const g = p.term[t].batch_side + images_before * classes;
    const T* const w = p.term[t].weight_side + trajectory * p.shape.parameter_stride + at;
    for (int64_t k = 0; k < classes; ++k) {
      const T weight = w[k * features];
      TM_UNROLL
      for (int i = 0; i < kImages; ++i) sums[i] += g[image[i] * classes + k] * weight;
    }
  }
  T* const to = p.grad_features + images_before * features + place_of_feature(p.shape, at);
  TM_UNROLL
  for (int i = 0; i < kImages; ++i) {
    if (first_image + i < p.shape.batch) to[image[i] * features] = sums[i];
  }
}

// The bias gradient of a pair of classes, computed by a whole block. `grad_logits` and `grad_bias`
// point to the first of them.
template <class T>
__device__ __forceinline__ void sum_bias(const ClassifierShape& shape, const T* grad_logits,
                                         int64_t to_last, T* grad_bias) {
  double total[kClassPair] = {};
  for (int64_t b = threadIdx.x; b < shape.batch; b += kThreads) {
    const T* const g = grad_logits + b * shape.classes;
    total[0] += static_cast<double>(g[0]);
    total[1] += static_cast<double>(g[to_last]);
  }
  block_sum<kThreads>(total);
  if (threadIdx.x > 0) return;
  grad_bias[0] = static_cast<T>(total[0]);
  grad_bias[to_last] = static_cast<T>(total[1]);
}

template <class T>
__device__ __forceinline__ void weight_gradient(const ClassifierWeightGradient<T>& p,
                                                unsigned block, unsigned column_tiles) {
  static_assert(kClassPair == 2, "first and last");
  const int64_t classes = p.shape.classes, features = p.shape.features();
  const int64_t first_class = static_cast<int64_t>(block / (column_tiles + 1)) * kClassPair;
  const int64_t to_last = first_class + 1 < classes ? 1 : 0;
  const unsigned tile = block % (column_tiles + 1);
  const int64_t images_before = static_cast<int64_t>(blockIdx.y) * p.shape.batch;
  const int64_t parameters = static_cast<int64_t>(blockIdx.y) * p.shape.parameter_stride;
  if (tile == column_tiles) {
    return sum_bias(p.shape, p.term[0].batch_side + images_before * classes + first_class, to_last,
                    p.grad_bias + parameters + first_class);
  }

  const int column = static_cast<int>(threadIdx.x) % kColumns;
  const int group = static_cast<int>(threadIdx.x) / kColumns;
  const unsigned at = tile * kColumns + static_cast<unsigned>(column);
  T first = T(0), last = T(0);
  if (at < features) {
    TM_UNROLL
    for (int t = 0; t < 2; ++t) {
      if (t == p.terms) break;
      const T* f = p.term[t].weight_side + (images_before + group) * features + at;
      const T* g = p.term[t].batch_side + (images_before + group) * classes + first_class;
      for (int64_t b = group; b < p.shape.batch; b += kGroups) {
        first += g[0] * *f;
        last += g[to_last] * *f;
        f += kGroups * features;
        g += kGroups * classes;
      }
    }
  }
  TM_SHARED(T, partial, 2 * kThreads);
  partial[threadIdx.x] = first;
  partial[kThreads + threadIdx.x] = last;
  __syncthreads();
  if (group > 0 || at >= features) return;
  TM_UNROLL
  for (int other = 1; other < kGroups; ++other) {
    first += partial[other * kColumns + column];
    last += partial[kThreads + other * kColumns + column];
  }
  T* const to = p.grad_weight + parameters + place_of_weight(p.shape, at);
  to[first_class * features] = first;
  to[(first_class + to_last) * features] = last;
}

// The blocks of dW come first, then those of each df.
template <class T>
__global__ void __launch_bounds__(kThreads)
    classifier_backward_kernel(ClassifierBackward<T> p, unsigned weight_blocks,
                               unsigned input_blocks, unsigned column_tiles,
                               unsigned feature_tiles) {
  if (blockIdx.x < weight_blocks) return weight_gradient(p.weight, blockIdx.x, column_tiles);
  const unsigned block = blockIdx.x - weight_blocks;
  input_gradient(p.input[block / input_blocks], block % input_blocks, feature_tiles);
}

}  // namespace

template <class T>
void launch_classifier_forward(const ClassifierForward<T>& params, Stream stream) {
  const int64_t class_tiles = tiles(params.shape.classes, kClasses);
  const int64_t images = params.shape.trajectories * params.shape.batch;
  TM_LAUNCH(classifier_forward_kernel<T>, grid_size(images * class_tiles), kThreads, 0, stream,
            params, grid_size(class_tiles));
}

template <class T>
void launch_classifier_backward(const ClassifierBackward<T>& params, Stream stream) {
  const ClassifierShape& shape = params.weight.shape;
  const int64_t column_tiles = tiles(shape.features(), kColumns);
  const int64_t feature_tiles = tiles(shape.features(), kThreads);
  const int64_t weight_blocks = tiles(shape.classes, kClassPair) * (column_tiles + 1);
  const int64_t input_blocks = tiles(shape.batch, kImages) * feature_tiles;
  const dim3 grid(grid_size(weight_blocks + params.inputs * input_blocks),
                  grid_size(shape.trajectories));
  TM_LAUNCH(classifier_backward_kernel<T>, grid, kThreads, 0, stream, params,
            grid_size(weight_blocks), grid_size(input_blocks), grid_size(column_tiles),
            grid_size(feature_tiles));
}

template void launch_classifier_forward(const ClassifierForward<float>&, Stream);
template void launch_classifier_forward(const ClassifierForward<double>&, Stream);
template void launch_classifier_backward(const ClassifierBackward<float>&, Stream);
template void launch_classifier_backward(const ClassifierBackward<double>&, Stream);

}  // namespace trajmatch::cuda
