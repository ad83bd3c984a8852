// 3x3 convolutions with stride 1 by Winograd's F(2x2, 3x3): 16 products of matrices for every 2x2
// outputs instead of 36 (Lavin and Gray, 2015). CPU only; activations are [B, H, W, C].
//
// Letters: B images, S input side, I input channels, O output side = S + 2 padding - 2, C output
// channels. A tile is 2x2 outputs and the 4x4 inputs under them; f = 0..15 its frequencies.
//   V_f = (B' d B)_f     of the inputs d           U_f = (G g G')_f  of the weights g
//   y   = A' (V_f U_f)_f A                         with V_f [tiles, I] and U_f [I, C]
//   dW  = G' (V_f' Z_f)_f G                        with Z_f = (A dy A')_f  [tiles, C]
// The gradient in the input is the convolution of dy with the weights turned by 180 degrees, input
// and output channels exchanged, and padding 2 - padding (negative: a crop).
#pragma once

#include <cstdint>

namespace trajmatch {

struct WinogradShape {
  static constexpr int64_t kFrequencies = 16;
  // Weights are stored in panels of this many columns, so that what one product reads of them is
  // contiguous: with rows a power of two apart, few cache sets would have to hold them.
  static constexpr int64_t kPanel = 32;
  // Tiles of one product, if the images are that large: enough rows to pay for reading U.
  static constexpr int64_t kGroupTiles = 64;
  // Sums of weight gradients that are made side by side and added at the end: a fixed number, so
  // that the result does not depend on the number of threads.
  static constexpr int64_t kWeightParts = 8;

  int64_t batch, in_size, in_channels, padding, channels;

  int64_t out_size() const { return in_size + 2 * padding - 2; }
  int64_t tiles_per_side() const { return (out_size() + 1) / 2; }
  int64_t tiles() const { return tiles_per_side() * tiles_per_side(); }
  // Images whose tiles share a product, and the number of such groups.
  int64_t group_images() const { return tiles() < kGroupTiles ? kGroupTiles / tiles() : 1; }
  int64_t groups() const { return (batch + group_images() - 1) / group_images(); }
  int64_t weight_parts() const { return groups() < kWeightParts ? groups() : kWeightParts; }
  int64_t panels() const { return (channels + kPanel - 1) / kPanel; }
  int64_t packed_size() const { return kFrequencies * panels() * in_channels * kPanel; }
};

// y = sum of x * weight over one or two terms, plus bias.
template <class T>
struct WinogradConvolution {
  struct Term {
    const T* x;       // [B, S, S, I]
    const T* weight;  // [16, panels, I, kPanel], from pack_winograd
  };
  WinogradShape shape;
  int terms;
  Term term[2];
  const T* bias;  // [C], or null (0)
  T* y;           // [B, O, O, C]
};

// Gradient in the weight, a sum over one or two pairs.
template <class T>
struct WinogradWeight {
  struct Pair {
    const T* x;       // [B, S, S, I]
    const T* grad_y;  // [B, O, O, C]
  };
  WinogradShape shape;
  int pairs;
  Pair pair[2];
  T* partial;      // [weight_parts, 16, I, C] workspace
  T* grad_weight;  // [C, I, 3, 3]
};

namespace cpu {

// U of a weight [C, I, 3, 3] for input channels [begin, end).
template <class T>
void pack_winograd(const WinogradShape& shape, const T* weight, T* packed, int64_t begin,
                   int64_t end);
// The same for the gradient in the input: `shape` is that of the turned convolution, whose input
// channels [begin, end) are the rows of the weight [I, C, 3, 3].
template <class T>
void pack_winograd_turned(const WinogradShape& shape, const T* weight, T* packed, int64_t begin,
                          int64_t end);
// Groups [begin, end).
template <class T>
void winograd_convolution(const WinogradConvolution<T>& params, int64_t begin, int64_t end);
// Parts [begin, end) of the sums, then input channels [begin, end) of grad_weight.
template <class T>
void winograd_weight(const WinogradWeight<T>& params, int64_t begin, int64_t end);
template <class T>
void winograd_weight_finish(const WinogradWeight<T>& params, int64_t begin, int64_t end);

}  // namespace cpu
}  // namespace trajmatch
