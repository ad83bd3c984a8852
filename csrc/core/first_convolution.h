// The first convolution of a student: 3x3, stride 1, so few input channels that its 9 taps times
// channels fit in one row of kColumns values. Convolution libraries are at their worst there, and
// it is the largest plane of the network. CPU only; activations are [B, H, W, C] (channels last).
//
// Letters: B images, S input side, I input channels, O output side = S + 2 padding - 2, C output
// channels. A row of columns holds, for one output pixel, the 9 I input values under its taps in
// the order (ky, kx, channel): y = columns W, dW = columns^T dy, dcolumns = dy W^T.
#pragma once

#include <cstdint>

namespace trajmatch {

struct FirstConvolutionShape {
  static constexpr int64_t kColumns = 32;

  int64_t batch, in_size, in_channels, padding, channels;

  int64_t taps() const { return 9 * in_channels; }
  int64_t out_size() const { return in_size + 2 * padding - 2; }
  bool fits() const { return taps() <= kColumns; }
};

template <class T>
struct FirstConvolutionForward {
  FirstConvolutionShape shape;
  const T* images;  // [B, S, S, I]
  const T* weight;  // [9 I, C], from pack_first_weight
  const T* bias;    // [C], or null (0)
  T* y;             // [B, O, O, C]
};

// Gradient in the images from one or two pairs: dy W^T + dy_2 W_2^T.
template <class T>
struct FirstConvolutionImages {
  FirstConvolutionShape shape;
  const T* grad_y;         // [B, O, O, C]
  const T* columns;        // [C, kColumns], from pack_first_columns
  const T* grad_y_second;  // the second pair, or null with columns_second
  const T* columns_second;
  T* grad_images;  // [B, S, S, I]
};

// Gradient in the weight from one or two pairs: columns(images)^T dy + columns(images_2)^T dy_2.
template <class T>
struct FirstConvolutionWeight {
  FirstConvolutionShape shape;
  const T* images;         // [B, S, S, I]
  const T* grad_y;         // [B, O, O, C]
  const T* images_second;  // the second pair, or null with grad_y_second
  const T* grad_y_second;
  T* partial;      // [B, 9 I, C] workspace: each image's share
  T* grad_weight;  // [C, I, 3, 3]
};

namespace cpu {

// The weight [C, I, 3, 3] in the orders that the passes read.
template <class T>
void pack_first_weight(const FirstConvolutionShape& shape, const T* weight, T* packed);
template <class T>
void pack_first_columns(const FirstConvolutionShape& shape, const T* weight, T* packed);

// Images [begin, end).
template <class T>
void first_convolution(const FirstConvolutionForward<T>& params, int64_t begin, int64_t end);
template <class T>
void first_convolution_images(const FirstConvolutionImages<T>& params, int64_t begin, int64_t end);
template <class T>
void first_convolution_weight(const FirstConvolutionWeight<T>& params, int64_t begin, int64_t end);
// Adds up the images' shares, in image order, into grad_weight.
template <class T>
void first_convolution_weight_finish(const FirstConvolutionWeight<T>& params);

}  // namespace cpu
}  // namespace trajmatch
