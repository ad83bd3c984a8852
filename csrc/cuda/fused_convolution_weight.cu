// The gradient in the weights of a convolution of 16 x 16 or 8 x 8 planes, of one or two pairs
// (formulas: core/fused_convolution.h).
//
// A block makes the three taps of a row ky, for up to 64 input and all output channels, from the
// images of its split; a warp 32 x 32 of them. Pixels come a strip of whole rows at a time, of x
// with its columns' border and ky - 1 rows further down, as [channels / 4, pixels, 4] in shared
// memory, copied one strip ahead. Splits and parts leave shares, which a second launch adds in
// their order. Deterministic; nothing may alias.
//
// Operations and bytes at S = 16, C = 128, one pair: 75.5 MFLOP an image; every block reads half of
// x and all of dy, 0.2 MB, from L2; shares of 0.59 MB a split, written and read once.

#include "core/fused_convolution.h"
#include "cuda/async_copy.cuh"
#include "cuda/sum_shares.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kThreads = 256;

// The fewest pixels, at least so many, for which lanes that read four pixels of eight channels meet
// no bank twice.
TM_HD constexpr int padded(int pixels) { return (pixels + 3) / 8 * 8 + 4; }

template <int side, int channels>
struct Strips {
  static constexpr int kInputs = channels < 64 ? channels : 64;  // of a block
  static constexpr int kOutputs = channels;
  static constexpr int kParts = 8 / (kInputs / 32 * (kOutputs / 32));
  static constexpr int kPixels = kParts == 8 ? 64 : 32;  // eight for every part
  static constexpr int kRows = kPixels / side;
  static constexpr int kPitch = side + 2;
  static constexpr int kInputPixels = padded(kRows * kPitch);
  static constexpr int kOutputPixels = padded(kPixels);
  static constexpr int kInputSize = kInputs * kInputPixels;
  static constexpr int kSize = kInputSize + kOutputs * kOutputPixels;
  static constexpr size_t kBytes = 2 * kSize * sizeof(float);
  static constexpr int kOfImage = side / kRows;
};

// sums[kx][m][n][2 r + e]: input m * 16 + r * 8 + g, output n * 8 + 2 t + e of the warp's, with
// g = lane / 4 and t = lane % 4.
using Sums = float[3][2][4][4];

// Which strips the block walks: all of the first pair, then all of the second.
template <int side, int channels>
class StripPipeline {
  using S = Strips<side, channels>;

 public:
  __device__ __forceinline__ StripPipeline(const FusedConvolutionWeight& params, float* memory)
      : params_(params),
        memory_(memory),
        ky_(static_cast<int>(blockIdx.y) % 3),
        first_input_(static_cast<int>(blockIdx.y) / 3 * S::kInputs) {
    const int64_t batch = params.shape.batch, per = (batch + params.splits - 1) / params.splits;
    const int64_t begin = blockIdx.x * per < batch ? blockIdx.x * per : batch;
    const int64_t end = begin + per < batch ? begin + per : batch;
    first_image_ = blockIdx.z * batch + begin;
    strips_ = static_cast<int>(end - begin) * S::kOfImage;
    // Zeros: the border's columns.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * S::kSize; i += kThreads) memory_[i] = 0.0f;
    __syncthreads();
    if (steps() > 0) start(0);
  }

  __device__ __forceinline__ int first_input() const { return first_input_; }
  __device__ __forceinline__ int ky() const { return ky_; }
  __device__ __forceinline__ int steps() const { return params_.pairs * strips_; }
  // Waits for the copies of the step and starts those of the next one.
  __device__ __forceinline__ void begin(int step) {
    if (step + 1 < steps()) {
      start(step + 1);
      copies_.template wait<1>();
    } else {
      copies_.template wait<0>();
    }
    __syncthreads();
  }
  __device__ __forceinline__ void end() const { __syncthreads(); }
  __device__ __forceinline__ const float* input(int step) const {
    return memory_ + step % 2 * S::kSize;
  }
  __device__ __forceinline__ const float* output(int step) const {
    return input(step) + S::kInputSize;
  }

 private:
  __device__ __forceinline__ void start(int step) {
    const bool second = step >= strips_;  // not by index: see cuda/convolution_tile.cuh
    const float* const x = second ? params_.pair[1].x : params_.pair[0].x;
    const float* const grad_y = second ? params_.pair[1].grad_y : params_.pair[0].grad_y;
    const int strip = second ? step - strips_ : step;
    const int64_t image = first_image_ + strip / S::kOfImage;
    const int first_row = strip % S::kOfImage * S::kRows;
    float* const to = memory_ + step % 2 * S::kSize;
    copy<S::kInputs, true>(x + image * params_.shape.image_size() + first_input_,
                           first_row + ky_ - 1, to);
    copy<S::kOutputs, false>(grad_y + image * params_.shape.image_size(), first_row,
                             to + S::kInputSize);
    copies_.commit();
  }

  // Rows of a plane from `first_row` on, zeros where there are none.
  template <int count, bool bordered>
  __device__ __forceinline__ void copy(const float* from, int first_row, float* to) {
    constexpr int kTo = bordered ? S::kInputPixels : S::kOutputPixels;
    for (int i = static_cast<int>(threadIdx.x); i < count / 4 * S::kPixels; i += kThreads) {
      // A warp copies 64 bytes of each of 8 neighbours: whole sectors from, no conflict into.
      const int rest = i / 32, pixel = rest % (S::kPixels / 8) * 8 + i % 8;
      const int group = rest / (S::kPixels / 8) * 4 + i / 8 % 4;
      const int row = first_row + pixel / side;
      const int place = bordered ? pixel / side * S::kPitch + pixel % side + 1 : pixel;
      float* const at = to + (group * kTo + place) * 4;
      if (row >= 0 && row < side) {
        copies_.start(at, from + (row * side + pixel % side) * channels + group * 4);
      } else {
        *reinterpret_cast<float4*>(at) = float4{0.0f, 0.0f, 0.0f, 0.0f};
      }
    }
  }

  const FusedConvolutionWeight& params_;
  float* const memory_;
  const int ky_, first_input_;
  int64_t first_image_;
  int strips_;
  AsyncCopies copies_;
};

// Adds the products of eight pixels in a row. `x` and `dy` begin at the warp's first channel and at
// the first pixel, which is the one of kx = 0 in x.
template <int x_pixels, int dy_pixels>
__device__ __forceinline__ void multiply_plain(const float* x, const float* dy, Sums& sums) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  TM_NO_UNROLL
  for (int pixel = 0; pixel < 8; ++pixel) {
    float b[4][2];
    TM_UNROLL
    for (int n = 0; n < 4; ++n) {
      const int c = n * 8 + 2 * t;
      const float* const from = dy + (c / 4 * dy_pixels + pixel) * 4 + c % 4;
      b[n][0] = from[0];
      b[n][1] = from[1];
    }
    TM_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int c = i * 8 + g;
        const float a = x[(c / 4 * x_pixels + pixel + kx) * 4 + c % 4];
        TM_UNROLL
        for (int n = 0; n < 4; ++n) {
          sums[kx][i / 2][n][i % 2 * 2] += a * b[n][0];
          sums[kx][i / 2][n][i % 2 * 2 + 1] += a * b[n][1];
        }
      }
    }
  }
}

template <int x_pixels, int dy_pixels>
__device__ __forceinline__ void multiply_on_tensor_cores(const float* x, const float* dy,
                                                         Sums& sums) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  float b[4][2];
  TM_UNROLL
  for (int n = 0; n < 4; ++n) {
    const int c = n * 8 + g;
    const float* const from = dy + (c / 4 * dy_pixels + t) * 4 + c % 4;
    b[n][0] = round_to_tf32(from[0]);
    b[n][1] = round_to_tf32(from[16]);
  }
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      float a[4];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int c = m * 16 + i % 2 * 8 + g;
        a[i] = round_to_tf32(x[(c / 4 * x_pixels + t + i / 2 * 4 + kx) * 4 + c % 4]);
      }
      TM_UNROLL
      for (int n = 0; n < 4; ++n) multiply_tf32(sums[kx][m][n], a, b[n]);
    }
  }
}

template <ProductKind kind, int x_pixels, int dy_pixels>
__device__ __forceinline__ void multiply(const float* x, const float* dy, Sums& sums) {
  if constexpr (kind == ProductKind::kTf32 && kHasTensorCores) {
    multiply_on_tensor_cores<x_pixels, dy_pixels>(x, dy, sums);
  } else {
    multiply_plain<x_pixels, dy_pixels>(x, dy, sums);
  }
}

template <int side, int channels, ProductKind kind>
__global__ void __launch_bounds__(kThreads, 1)
    fused_convolution_weight_kernel(FusedConvolutionWeight p) {
  using S = Strips<side, channels>;
  constexpr int kInputWarps = S::kInputs / 32, kOutputWarps = S::kOutputs / 32;
  TM_DYNAMIC_SHARED(float, memory);
  StripPipeline<side, channels> pipeline(p, memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int input = warp % kInputWarps * 32;  // first channels of the warp, in the block
  const int output = warp / kInputWarps % kOutputWarps * 32;
  const int part = warp / (kInputWarps * kOutputWarps);
  Sums sums;
  TM_UNROLL
  for (int i = 0; i < 3 * 2 * 4 * 4; ++i) sums[i / 32][i / 16 % 2][i / 4 % 4][i % 4] = 0.0f;
  TM_NO_UNROLL
  for (int step = 0; step < pipeline.steps(); ++step) {
    pipeline.begin(step);
    const float* const x = pipeline.input(step) + input * S::kInputPixels;
    const float* const dy = pipeline.output(step) + output * S::kOutputPixels;
    TM_NO_UNROLL
    for (int pixel = part * 8; pixel < S::kPixels; pixel += S::kParts * 8) {
      const int bordered = pixel / side * S::kPitch + pixel % side;
      multiply<kind, S::kInputPixels, S::kOutputPixels>(x + bordered * 4, dy + pixel * 4, sums);
    }
    pipeline.end();
  }

  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  const int64_t share = (blockIdx.z * p.splits + blockIdx.x) * S::kParts + part;
  float* const to = p.partial + share * p.shape.weight_size();
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      TM_UNROLL
      for (int n = 0; n < 4; ++n) {
        TM_UNROLL
        for (int r = 0; r < 2; ++r) {
          const int in = pipeline.first_input() + input + m * 16 + r * 8 + g;
          const int out = output + n * 8 + 2 * t;
          *reinterpret_cast<float2*>(to + ((pipeline.ky() * 3 + kx) * channels + in) * channels +
                                     out) =
              float2{sums[kx][m][n][2 * r], sums[kx][m][n][2 * r + 1]};
        }
      }
    }
  }
}

template <int side, int channels, ProductKind kind>
void launch(const FusedConvolutionWeight& params, Stream stream) {
  using S = Strips<side, channels>;
  const FusedConvolutionShape& shape = params.shape;
  const dim3 grid(grid_size(params.splits), 3 * channels / S::kInputs,
                  grid_size(shape.trajectories));
  allow_dynamic_shared(fused_convolution_weight_kernel<side, channels, kind>, S::kBytes);
  TM_LAUNCH((fused_convolution_weight_kernel<side, channels, kind>), grid, kThreads, S::kBytes,
            stream, params);
  const int64_t size = shape.weight_size(), shares = params.splits * S::kParts;
  launch_sum_shares({{{params.partial, params.grad_weight, shares, size, size, shares * size,
                       params.parameter_stride, channels}},
                     1,
                     shape.trajectories},
                    stream);
}

template <int side, int channels>
void launch(const FusedConvolutionWeight& params, Stream stream) {
  if (params.kind == ProductKind::kPlain) {
    launch<side, channels, ProductKind::kPlain>(params, stream);
  } else {
    launch<side, channels, ProductKind::kTf32>(params, stream);
  }
}

template <int side>
void launch(const FusedConvolutionWeight& params, Stream stream) {
  switch (params.shape.channels) {
    case 128:
      return launch<side, 128>(params, stream);
    case 64:
      return launch<side, 64>(params, stream);
    default:
      return launch<side, 32>(params, stream);
  }
}

}  // namespace

void launch_fused_convolution_weight(const FusedConvolutionWeight& params, Stream stream) {
  if (params.shape.size == 16) {
    launch<16>(params, stream);
  } else {
    launch<8>(params, stream);
  }
}

}  // namespace trajmatch::cuda
