// The three passes of the first convolution over one image, compiled once per instruction set: an
// image's rows of columns are made in cache and meet the weight in a matrix product.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"

#include "cpu/matrix_product.h"

// Output rows whose columns are made at a time: enough pixels for the products, few enough for the
// first cache level.
constexpr int64_t kRowsAtATime = 4;

// One image with its zero border, and the columns of some of its output rows.
template <class T>
class Columns {
 public:
  explicit Columns(const FirstConvolutionShape& shape)
      : shape_(shape),
        border_size_(shape.in_size + 2 * shape.padding),
        bordered_(border_size_ * border_size_ * shape.in_channels, T(0)),
        columns_(kRowsAtATime * shape.out_size() * shape.taps()) {}

  void read(const T* image) {
    const int64_t row_size = shape_.in_size * shape_.in_channels;
    for (int64_t row = 0; row < shape_.in_size; ++row) {
      std::copy_n(image + row * row_size, row_size, inside(row));
    }
  }

  // The columns [rows * O, 9 I] of the output rows [first, first + rows).
  const T* of(int64_t first, int64_t rows) {
    const int64_t run = 3 * shape_.in_channels;
    T* to = columns_.data();
    for (int64_t row = first; row < first + rows; ++row) {
      for (int64_t column = 0; column < shape_.out_size(); ++column) {
        for (int64_t ky = 0; ky < 3; ++ky, to += run) {
          std::copy_n(at(row + ky, column), run, to);
        }
      }
    }
    return columns_.data();
  }

  void clear() { std::fill(bordered_.begin(), bordered_.end(), T(0)); }

  // The adjoint of `of`: adds gradients of columns [rows * O, kColumns] to the image's.
  void add(int64_t first, int64_t rows, const T* gradients) {
    const int64_t run = 3 * shape_.in_channels;
    for (int64_t row = first; row < first + rows; ++row) {
      for (int64_t column = 0; column < shape_.out_size(); ++column) {
        for (int64_t ky = 0; ky < 3; ++ky) {
          T* to = at(row + ky, column);
          for (int64_t i = 0; i < run; ++i) to[i] += gradients[ky * run + i];
        }
        gradients += FirstConvolutionShape::kColumns;
      }
    }
  }

  void write(T* image) {
    const int64_t row_size = shape_.in_size * shape_.in_channels;
    for (int64_t row = 0; row < shape_.in_size; ++row) {
      std::copy_n(inside(row), row_size, image + row * row_size);
    }
  }

 private:
  T* at(int64_t row, int64_t column) {
    return bordered_.data() + (row * border_size_ + column) * shape_.in_channels;
  }
  T* inside(int64_t row) { return at(row + shape_.padding, shape_.padding); }

  FirstConvolutionShape shape_;
  int64_t border_size_;
  std::vector<T> bordered_, columns_;
};

// Calls body(first, rows) for blocks of output rows.
template <class Body>
void for_row_blocks(const FirstConvolutionShape& shape, const Body& body) {
  for (int64_t first = 0; first < shape.out_size(); first += kRowsAtATime) {
    body(first, std::min(kRowsAtATime, shape.out_size() - first));
  }
}

template <class T>
void forward(const FirstConvolutionForward<T>& p, int64_t begin, int64_t end) {
  const FirstConvolutionShape& shape = p.shape;
  const int64_t out = shape.out_size(), channels = shape.channels;
  Columns<T> columns(shape);
  for (int64_t image = begin; image < end; ++image) {
    columns.read(p.images + image * shape.in_size * shape.in_size * shape.in_channels);
    for_row_blocks(shape, [&](int64_t first, int64_t rows) {
      T* y = p.y + (image * out + first) * out * channels;
      const int64_t pixels = rows * out;
      if (p.bias != nullptr) {
        for (int64_t i = 0; i < pixels; ++i) std::copy_n(p.bias, channels, y + i * channels);
      }
      product(Product<T>{pixels, channels, shape.taps(), columns.of(first, rows), shape.taps(), 1,
                         p.weight, channels, y, channels, p.bias != nullptr});
    });
  }
}

template <class T>
void images(const FirstConvolutionImages<T>& p, int64_t begin, int64_t end) {
  constexpr int64_t width = FirstConvolutionShape::kColumns;
  const FirstConvolutionShape& shape = p.shape;
  const int64_t out = shape.out_size(), channels = shape.channels;
  Columns<T> columns(shape);
  std::vector<T> gradients(kRowsAtATime * out * width);
  for (int64_t image = begin; image < end; ++image) {
    columns.clear();
    for_row_blocks(shape, [&](int64_t first, int64_t rows) {
      const int64_t from = (image * out + first) * out * channels, pixels = rows * out;
      product(Product<T>{pixels, width, channels, p.grad_y + from, channels, 1, p.columns, width,
                         gradients.data(), width, false});
      if (p.grad_y_second != nullptr) {
        product(Product<T>{pixels, width, channels, p.grad_y_second + from, channels, 1,
                           p.columns_second, width, gradients.data(), width, true});
      }
      columns.add(first, rows, gradients.data());
    });
    columns.write(p.grad_images + image * shape.in_size * shape.in_size * shape.in_channels);
  }
}

template <class T>
void weight(const FirstConvolutionWeight<T>& p, int64_t begin, int64_t end) {
  const FirstConvolutionShape& shape = p.shape;
  const int64_t out = shape.out_size(), channels = shape.channels, taps = shape.taps();
  Columns<T> columns(shape);
  for (int64_t image = begin; image < end; ++image) {
    T* partial = p.partial + image * taps * channels;
    std::fill_n(partial, taps * channels, T(0));
    const auto add_pair = [&](const T* from, const T* grad_y) {
      columns.read(from + image * shape.in_size * shape.in_size * shape.in_channels);
      for_row_blocks(shape, [&](int64_t first, int64_t rows) {
        product(Product<T>{taps, channels, rows * out, columns.of(first, rows), 1, taps,
                           grad_y + (image * out + first) * out * channels, channels, partial,
                           channels, true});
      });
    };
    add_pair(p.images, p.grad_y);
    if (p.images_second != nullptr) add_pair(p.images_second, p.grad_y_second);
  }
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
