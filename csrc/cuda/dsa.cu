// DSA: forward, tangent and backward passes (formulas: core/dsa.h).
//
// Up to kMaxTiles blocks share the pixels of a sample. A thread computes one output pixel at a
// time, with all its channels, and neighbouring threads take neighbouring pixels. All threads of a
// block have the same kind of transform, so the choice of kind causes no warp divergence. For the
// mean that the colour transform needs, every block of the sample sums the whole image, in the same
// order, because a second launch would cost more. In the backward pass of the sampling, a thread
// takes one input pixel and searches, row by row, the few output pixels that may have sampled it.
// Deterministic. `in` and `out` must not alias. An unknown kind, or an image that does not exist,
// gives NaN.
//
// Bytes per value in float32: 4 read + 4 written. At the 4.3 TB/s of an H200, a batch of 256 images
// of 3 x 32 x 32 takes 1.5 microseconds. Smaller batches cost about a launch.

#include "core/dsa.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kThreads = 256;
// Allows 128 registers per thread. Without this bound the compiler spills a few registers to fit
// more blocks.
constexpr int kMinBlocks = 2;
// Blocks per sample, at most. For the colour transform each of them sums the whole image.
constexpr int64_t kMaxTiles = 16;
// Channels that a thread sums at a time in the backward pass of the sampling.
constexpr int kChannels = 4;

// The input and output image of one sample, its row of parameters, and their sizes.
template <class T>
struct Sample {
  __device__ __forceinline__ Sample(const Dsa<T>& p, int64_t sample, int64_t source)
      : in(p.in + source * p.image_size()),
        out(p.out + sample * p.image_size()),
        row(p.parameters + sample * kDsaColumns),
        channels(static_cast<int>(p.channels)),
        height(static_cast<int>(p.height)),
        width(static_cast<int>(p.width)),
        pixel_step(static_cast<int>(p.pixel_step())),
        channel_step(static_cast<int>(p.channel_step())) {}

  __device__ __forceinline__ int at(int pixel, int channel) const {
    return pixel * pixel_step + channel * channel_step;
  }
  __device__ __forceinline__ void fill(int pixel, T value) const {
    for (int c = 0; c < channels; ++c) out[at(pixel, c)] = value;
  }

  const T* in;
  T* out;
  const double* row;
  int channels, height, width, pixel_step, channel_step;
};

// Calls body(pixel, y, x) for the pixels of this thread.
template <class T, class Body>
__device__ __forceinline__ void for_pixels(const Sample<T>& s, unsigned tiles, const Body& body) {
  const int step = static_cast<int>(tiles) * kThreads;
  for (int pixel = static_cast<int>(blockIdx.x % tiles * kThreads + threadIdx.x);
       pixel < s.height * s.width; pixel += step) {
    body(pixel, pixel / s.width, pixel % s.width);
  }
}

template <class T>
__device__ __forceinline__ void color(const Sample<T>& s, const DsaColor& map, unsigned tiles) {
  TM_SHARED(double, mean, 1);
  LongSum<T> own_sum{};
  for (int i = static_cast<int>(threadIdx.x); i < s.channels * s.height * s.width; i += kThreads) {
    own_sum += s.in[i];
  }
  double sum[1] = {own_sum};
  block_sum<kThreads>(sum);
  if (threadIdx.x == 0) mean[0] = sum[0];
  __syncthreads();
  const T constant = static_cast<T>(map.mean * mean[0] + map.constant);
  const T own = static_cast<T>(map.own), share = static_cast<T>(map.grey);
  for_pixels(s, tiles, [&](int pixel, int, int) {
    T grey = 0;
    for (int c = 0; c < s.channels; ++c) grey += s.in[s.at(pixel, c)];
    const T base = share * grey + constant;
    for (int c = 0; c < s.channels; ++c) {
      s.out[s.at(pixel, c)] = own * s.in[s.at(pixel, c)] + base;
    }
  });
}

// Crop, cutout and flip. source(y, x) is the index of the input pixel that becomes output pixel (y,
// x), or -1 where the output is 0.
template <class T, class Source>
__device__ __forceinline__ void move(const Sample<T>& s, unsigned tiles, const Source& source) {
  for_pixels(s, tiles, [&](int pixel, int y, int x) {
    const int from = source(y, x);
    if (from < 0) return s.fill(pixel, T(0));
    for (int c = 0; c < s.channels; ++c) s.out[s.at(pixel, c)] = s.in[s.at(from, c)];
  });
}

template <class T>
__device__ __forceinline__ void sample(const Sample<T>& s, const DsaSampling& map, unsigned tiles) {
  for_pixels(s, tiles, [&](int pixel, int y, int x) {
    const DsaLine<T> line(map, y);
    const DsaTap<T> column(line.x_shift + line.x_slope * x, x, s.width);
    const DsaTap<T> row(line.y_shift + line.y_slope * x, y, s.height);
    const bool left = column.first >= 0, right = column.first + 1 < s.width;
    const bool top = row.first >= 0, bottom = row.first + 1 < s.height;
    const int from = row.first * s.width + column.first;
    for (int c = 0; c < s.channels; ++c) {
      const T left_top = left && top ? s.in[s.at(from, c)] : T(0);
      const T right_top = right && top ? s.in[s.at(from + 1, c)] : T(0);
      const T left_bottom = left && bottom ? s.in[s.at(from + s.width, c)] : T(0);
      const T right_bottom = right && bottom ? s.in[s.at(from + s.width + 1, c)] : T(0);
      const T upper = left_top + column.second * (right_top - left_top);
      const T lower = left_bottom + column.second * (right_bottom - left_bottom);
      s.out[s.at(pixel, c)] = upper + row.second * (lower - upper);
    }
  });
}

// The integers within `reach` of `center`, limited to [0, size): from `begin` up to but not
// including `end`.
struct Range {
  __device__ __forceinline__ Range(double center, double reach, int size)
      : begin(static_cast<int>(dsa_limited(ceil(center - reach), 0.0, size))),
        end(static_cast<int>(dsa_limited(floor(center + reach) + 1.0, 0.0, size))) {}

  int begin, end;
};

// The output pixels that may sample input pixel (y, x). A sample uses this pixel if it lies less
// than one pixel away in both directions. The inverse map turns that square into a parallelogram,
// and these rows and columns are its bounding box.
struct Candidates {
  __device__ __forceinline__ static Candidates of(const DsaSampling& map, int y, int x) {
    constexpr double kSmallest = 1e-6;  // of the determinant; below it, all pixels are candidates
    constexpr double kMargin = 1e-3;    // pixels; allows for rounding of the sample positions
    const double a = 1.0 + map.xx, b = map.xy, c = map.yx, d = 1.0 + map.yy;
    const double determinant = a * d - b * c;
    if (!(fabs(determinant) > kSmallest)) {
      return {Range(0.0, map.height, map.height), Range(0.0, map.width, map.width)};
    }
    const double u = (x - map.x0) / determinant, v = (y - map.y0) / determinant;
    const double scale = 1.0 / fabs(determinant);
    return {Range(a * v - c * u, (fabs(a) + fabs(c)) * scale + kMargin, map.height),
            Range(d * u - b * v, (fabs(d) + fabs(b)) * scale + kMargin, map.width)};
  }

  Range rows, columns;
};

// The weight of the row or column `place` in a sample.
template <class T>
__device__ __forceinline__ T weight(const DsaTap<T>& tap, int place) {
  if (place == tap.first) return 1 - tap.second;
  return place == tap.first + 1 ? tap.second : T(0);
}

template <class T>
__device__ __forceinline__ void sample_backward(const Sample<T>& s, const DsaSampling& map,
                                                unsigned tiles) {
  for_pixels(s, tiles, [&](int pixel, int y, int x) {
    const Candidates candidates = Candidates::of(map, y, x);
    for (int first = 0; first < s.channels; first += kChannels) {
      T sum[kChannels] = {};
      for (int row = candidates.rows.begin; row < candidates.rows.end; ++row) {
        const DsaLine<T> line(map, row);
        for (int column = candidates.columns.begin; column < candidates.columns.end; ++column) {
          const DsaTap<T> across(line.x_shift + line.x_slope * column, column, s.width);
          const DsaTap<T> down(line.y_shift + line.y_slope * column, row, s.height);
          const T share = weight(across, x) * weight(down, y);
          if (share == T(0)) continue;
          TM_UNROLL
          for (int i = 0; i < kChannels; ++i) {
            if (first + i >= s.channels) break;
            sum[i] += share * s.in[s.at(row * s.width + column, first + i)];
          }
        }
      }
      TM_UNROLL
      for (int i = 0; i < kChannels; ++i) {
        if (first + i < s.channels) s.out[s.at(pixel, first + i)] = sum[i];
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks) dsa_kernel(Dsa<T> p, unsigned tiles) {
  const int64_t sample_number = blockIdx.x / tiles, source = p.source(sample_number);
  const Sample<T> s(p, sample_number, source);
  const int kind = source < 0 ? -1 : static_cast<int>(s.row[0]);
  switch (static_cast<DsaKind>(kind)) {
    case DsaKind::kColor:
      color(s, DsaColor(p, s.row), tiles);
      break;
    case DsaKind::kCrop: {
      const DsaCrop map(p, s.row);
      move(s, tiles, [&](int y, int x) {
        const int row = y + map.rows, column = x + map.columns;
        const bool inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
        return inside ? row * s.width + column : -1;
      });
      break;
    }
    case DsaKind::kCutout: {
      const DsaCutout map(p, s.row);
      move(s, tiles, [&](int y, int x) {
        const bool cut = y >= map.top && y < map.bottom && x >= map.left && x < map.right;
        return cut ? -1 : y * s.width + x;
      });
      break;
    }
    case DsaKind::kFlip: {
      const bool flipped = s.row[1] != 0.0;
      move(s, tiles, [&](int y, int x) { return y * s.width + (flipped ? s.width - 1 - x : x); });
      break;
    }
    case DsaKind::kSample:
      if (p.pass == DsaPass::kBackward) {
        sample_backward(s, DsaSampling(p, s.row), tiles);
      } else {
        sample(s, DsaSampling(p, s.row), tiles);
      }
      break;
    default:
      for_pixels(s, tiles, [&](int pixel, int, int) { s.fill(pixel, static_cast<T>(nan(""))); });
  }
}

}  // namespace

template <class T>
void launch_dsa(const Dsa<T>& params, Stream stream) {
  if (params.batch == 0 || params.image_size() == 0) return;
  if (params.image_size() > INT32_MAX) {
    throw std::length_error("trajmatch: one image has " + std::to_string(params.image_size()) +
                            " values, but the CUDA kernels number them in 32 bits");
  }
  const int64_t blocks = (params.pixels() + kThreads - 1) / kThreads;
  const int64_t tiles = blocks < kMaxTiles ? blocks : kMaxTiles;
  TM_LAUNCH(dsa_kernel<T>, grid_size(params.batch * tiles), kThreads, 0, stream, params,
            static_cast<unsigned>(tiles));
}

template void launch_dsa(const Dsa<float>&, Stream);
template void launch_dsa(const Dsa<double>&, Stream);

}  // namespace trajmatch::cuda
