// DSA (differentiable siamese augmentation): transforms each image of a batch by its own linear map
// A plus, for color, a constant. A row of parameters selects the map and holds its numbers.
//
// Letters: B images, C channels, H x W pixels; y is a row and x a column.
//
//   kind     a, b, c, d                         out[y, x]
//   color    brightness, saturation, contrast   c b in + c (1 - b) grey + (1 - c) mean + a, where
//                                               grey is the pixel's mean over its channels and
//                                               mean is the mean of the whole image
//   crop     rows, columns                      in[y + a, x + b], 0 outside
//   cutout   top, left, height, width           0 inside the rectangle, in[y, x] outside it
//   flip     flipped                            in[y, W - 1 - x] if a is not 0, else in[y, x]
//   sample   m00, m01, m10, m11                 in at (m00 u + m01 v, m10 u + m11 v), bilinear, 0
//                                               outside; u points right and v down, both are -1 at
//                                               the centre of the first pixel and 1 at the last
//
// Passes: forward computes A in + a; tangent computes A in, without the brightness a; backward
// computes A^T in. The maps of color, cutout and flip are their own transposes. The transpose of
// crop is the opposite crop. For sample, each input pixel collects the contributions of the output
// pixels that read it.
#pragma once

#include <cstdint>

#include "core/batch_rows.h"
#include "core/macros.h"

namespace trajmatch {

enum class DsaKind : int { kColor = 0, kCrop = 1, kCutout = 2, kFlip = 3, kSample = 4 };
enum class DsaPass : int { kForward, kTangent, kBackward };

constexpr int64_t kDsaKinds = 5;
constexpr int64_t kDsaColumns = 5;  // columns of a row of parameters: kind, a, b, c, d

template <class T>
struct Dsa {
  DsaPass pass;
  int64_t batch, channels, height, width;
  bool channels_last;        // images are [B, H, W, C] instead of [B, C, H, W]
  const double* parameters;  // [B, 5]
  // [B, C, H, W] images, or their gradient in the backward pass; [n, C, H, W] with `sources`
  const T* in;
  T* out;  // [B, C, H, W] in the same layout; must not alias `in`
  // Selects the image of `in` for each output: out[i] is made from the image that entry i selects;
  // without an index, from in[i]. On CUDA, an index outside [0, n) gives NaN.
  BatchIndex sources{};

  // The image that a sample is made from, or -1 if it does not exist.
  TM_HD int64_t source(int64_t sample) const {
    return sources.index == nullptr ? sample : sources.row(sample);
  }
  TM_HD int64_t pixels() const { return height * width; }
  TM_HD int64_t image_size() const { return channels * height * width; }
  // Strides, in elements.
  TM_HD int64_t pixel_step() const { return channels_last ? channels : 1; }
  TM_HD int64_t channel_step() const { return channels_last ? 1 : pixels(); }
};

// Clamps `value` to [low, high]. NaN becomes low.
TM_HD inline double dsa_limited(double value, double low, double high) {
  const double above = value > low ? value : low;
  return above < high ? above : high;
}

// out = own * in + grey * (sum over the channels) + mean * (sum over the image) + constant
struct DsaColor {
  template <class T>
  TM_HD DsaColor(const Dsa<T>& p, const double* row)
      : own(row[3] * row[2]),
        grey(row[3] * (1.0 - row[2]) / static_cast<double>(p.channels)),
        mean((1.0 - row[3]) / static_cast<double>(p.image_size())),
        constant(p.pass == DsaPass::kForward ? row[1] : 0.0) {}

  double own, grey, mean, constant;
};

// out[y, x] = in[y + rows, x + columns]
struct DsaCrop {
  template <class T>
  TM_HD DsaCrop(const Dsa<T>& p, const double* row)
      : rows(shift(p, row[1], p.height)), columns(shift(p, row[2], p.width)) {}

  int rows, columns;

 private:
  // Clamped: a shift by the whole image size already leaves nothing inside.
  template <class T>
  TM_HD static int shift(const Dsa<T>& p, double pixels, int64_t size) {
    const double limit = static_cast<double>(size);
    const int whole = static_cast<int>(dsa_limited(pixels, -limit, limit));
    return p.pass == DsaPass::kBackward ? -whole : whole;
  }
};

// The part of the rectangle inside the image: rows [top, bottom), columns [left, right).
struct DsaCutout {
  template <class T>
  TM_HD DsaCutout(const Dsa<T>& p, const double* row)
      : top(inside(row[1], p.height)),
        bottom(inside(row[1] + row[3], p.height)),
        left(inside(row[2], p.width)),
        right(inside(row[2] + row[4], p.width)) {}

  int top, bottom, left, right;

 private:
  TM_HD static int inside(double edge, int64_t size) {
    return static_cast<int>(dsa_limited(edge, 0.0, static_cast<double>(size)));
  }
};

// Output pixel (y, x) samples the input at column x + x0 + xx x + xy y and row y + y0 + yx x + yy
// y. The position is stored as an offset from (x, y): offsets are small, so float32 keeps them
// precise.
struct DsaSampling {
  template <class T>
  TM_HD DsaSampling(const Dsa<T>& p, const double* row)
      : height(static_cast<int>(p.height)), width(static_cast<int>(p.width)) {
    const double half_width = 0.5 * (width - 1), half_height = 0.5 * (height - 1);
    x0 = half_width * (1.0 - row[1] - row[2]);
    y0 = half_height * (1.0 - row[3] - row[4]);
    // On an axis of one pixel the coordinate is always -1.
    xx = width > 1 ? row[1] - 1.0 : 0.0;
    yy = height > 1 ? row[4] - 1.0 : 0.0;
    xy = height > 1 ? row[2] * half_width / half_height : 0.0;
    yx = width > 1 ? row[3] * half_height / half_width : 0.0;
  }

  int height, width;
  double x0, xx, xy, y0, yx, yy;
};

// The offsets x0 + xx x + xy y and y0 + yx x + yy y along one output row, as functions of x.
template <class T>
struct DsaLine {
  TM_HD DsaLine(const DsaSampling& map, int y)
      : x_shift(static_cast<T>(map.x0 + map.xy * y)),
        x_slope(static_cast<T>(map.xx)),
        y_shift(static_cast<T>(map.y0 + map.yy * y)),
        y_slope(static_cast<T>(map.yx)) {}

  T x_shift, x_slope, y_shift, y_slope;
};

// The two neighbouring pixels that a sample interpolates, along one axis of `size` pixels: `first`,
// from -1 to size - 1, with weight 1 - second, and first + 1, with weight second. A sample more
// than one pixel outside is clamped to a position where it is still 0.
template <class T>
struct DsaTap {
  TM_HD DsaTap(T shift, int place, int size) {
    const T low = static_cast<T>(-1 - place), high = static_cast<T>(size - place);
    const T above = shift > low ? shift : low;
    const T limited = above < high ? above : high;
    const int truncated = static_cast<int>(limited);
    const int whole = place + truncated - (limited < static_cast<T>(truncated) ? 1 : 0);
    first = whole < size ? whole : size - 1;
    second = limited - static_cast<T>(first - place);
  }

  int first;
  T second;
};

namespace cpu {
template <class T>
void dsa(const Dsa<T>& params, int64_t begin, int64_t end);  // samples
}  // namespace cpu

namespace cuda {
template <class T>
void launch_dsa(const Dsa<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
