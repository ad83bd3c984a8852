// Adds up the image gradient of planes of several squares from the shares of tiles and squares
// (core/first_layer.h). Neighbouring squares overlap by two rows or columns of pixels.
//
// A block takes a row of an image, a thread an element of it. Sums are float64, square by
// square. Deterministic.
//
// Bytes per element in float32: 4 read for every tile, up to four times as many where squares
// overlap, and 4 written.

#include "core/first_layer.h"
#include "cuda/launch.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSide = FirstLayerShape::kSquareSize;
constexpr int kBorderedSide = FirstLayerShape::kBorderedSize;

// The squares that reach a row or column of the bordered plane, from the first to the last one: at
// most two.
struct Reach {
  __device__ __forceinline__ Reach(int place, int across)
      : first(place / kSide - (place % kSide < kBorderedSide - kSide ? 1 : 0)),
        last(place / kSide) {
    if (first < 0) first = 0;
    if (last >= across) last = across - 1;
  }
  int first, last;
};

__global__ void __launch_bounds__(kThreads) first_layer_squares_kernel(FirstLayerSquares p) {
  const FirstLayerShape& shape = p.shape;
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  const int channels = static_cast<int>(shape.in_channels);
  const int across = static_cast<int>(shape.out_size()) / kSide;
  const int64_t image = blockIdx.x / static_cast<unsigned>(size);
  const int row = static_cast<int>(blockIdx.x % static_cast<unsigned>(size)) + padding;
  const int64_t tile_stride = shape.trajectories * shape.batch * shape.image_share();
  const float* const shares = p.shares + image * shape.image_share();
  const Reach rows(row, across);
  for (int i = static_cast<int>(threadIdx.x); i < size * channels; i += kThreads) {
    const int column = i / channels + padding;
    const Reach columns(column, across);
    double sum = 0.0;
    for (int y = rows.first; y <= rows.last; ++y) {
      for (int x = columns.first; x <= columns.last; ++x) {
        const int at = (row - y * kSide) * kBorderedSide + column - x * kSide;
        const int square = (y * across + x) * kBorderedSide * kBorderedSide;
        const float* share = shares + (square + at) * channels + i % channels;
        for (int64_t tile = 0; tile < p.tiles; ++tile, share += tile_stride) sum += *share;
      }
    }
    p.grad_images[image * shape.image_size() + (row - padding) * size * channels + i] =
        static_cast<float>(sum);
  }
}

}  // namespace

void launch_first_layer_squares(const FirstLayerSquares& params, Stream stream) {
  const FirstLayerShape& shape = params.shape;
  const int64_t rows = shape.trajectories * shape.batch * shape.in_size;
  if (rows == 0) return;
  TM_LAUNCH(first_layer_squares_kernel, grid_size(rows), kThreads, 0, stream, params);
}

}  // namespace trajmatch::cuda
