// Winograd convolutions over groups of images, compiled once per instruction set: transform into
// the 16 frequencies, one matrix product for each, transform back.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"

#include "cpu/matrix_product.h"

constexpr int64_t kFrequencies = WinogradShape::kFrequencies;
constexpr int64_t kPanel = WinogradShape::kPanel;

// B' d for a column of four, A' m, and A z for a column of two.
template <class V>
inline void input_transform(const V* d, V* v) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}
template <class V>
inline void output_transform(const V* m, V* y) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}
template <class V>
inline void gradient_transform(const V* dy, V* z) {
  z[0] = dy[0];
  z[1] = dy[0] + dy[1];
  z[2] = dy[0] - dy[1];
  z[3] = V{} - dy[1];
}

// The tiles of a group of images in the 16 frequencies: [16][rows, width], the frequencies a little
// further apart than that, because 16 streams a power of two apart would share cache sets.
template <class T>
class Frequencies {
 public:
  Frequencies(int64_t rows, int64_t width)
      : step_(rows * width + 16), data_(kFrequencies * step_) {}
  T* of(int64_t frequency) { return data_.data() + frequency * step_; }
  int64_t step() const { return step_; }

 private:
  int64_t step_;
  std::vector<T> data_;
};

// Calls body(tile, row, column) for the tiles of an image; row and column are those of the tile's
// first output pixel.
template <class Body>
inline void for_tiles(const WinogradShape& shape, const Body& body) {
  const int64_t side = shape.tiles_per_side();
  for (int64_t row = 0; row < side; ++row) {
    for (int64_t column = 0; column < side; ++column) {
      body(row * side + column, 2 * row, 2 * column);
    }
  }
}

// V of one image [S, S, I] into the rows of v that begin at `first`; v's rows are I wide.
template <class T>
void read_input(const WinogradShape& shape, const T* image, const T* zeros, Frequencies<T>& v,
                int64_t first) {
  const int64_t channels = shape.in_channels, size = shape.in_size;
  for_tiles(shape, [&](int64_t tile, int64_t row, int64_t column) {
    const T* from[4][4];
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) {
        const int64_t y = row + i - shape.padding, x = column + j - shape.padding;
        const bool inside = y >= 0 && y < size && x >= 0 && x < size;
        from[i][j] = inside ? image + (y * size + x) * channels : zeros;
      }
    }
    T* to = v.of(0) + (first + tile) * channels;
    for_packs<T>(channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      V half[4][4];  // half[j] = B' of column j
      for (int j = 0; j < 4; ++j) {
        const V d[4] = {load<V>(from[0][j] + c), load<V>(from[1][j] + c), load<V>(from[2][j] + c),
                        load<V>(from[3][j] + c)};
        input_transform(d, half[j]);
      }
      for (int i = 0; i < 4; ++i) {
        const V d[4] = {half[0][i], half[1][i], half[2][i], half[3][i]};
        V result[4];
        input_transform(d, result);
        for (int j = 0; j < 4; ++j) store<V>(to + (4 * i + j) * v.step() + c, result[j]);
      }
    });
  });
}

// y of one image from the rows of m that begin at `first`; m's rows are C wide.
template <class T>
void write_output(const WinogradShape& shape, Frequencies<T>& m, int64_t first, const T* bias,
                  T* image) {
  const int64_t channels = shape.channels, size = shape.out_size();
  for_tiles(shape, [&](int64_t tile, int64_t row, int64_t column) {
    const T* from = m.of(0) + (first + tile) * channels;
    T* to = image + (row * size + column) * channels;
    const int64_t rows = std::min<int64_t>(2, size - row);
    const int64_t columns = std::min<int64_t>(2, size - column);
    for_packs<T>(channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      V half[4][2];  // half[i] = A' along the columns of row i
      for (int i = 0; i < 4; ++i) {
        V values[4];
        for (int j = 0; j < 4; ++j) values[j] = load<V>(from + (4 * i + j) * m.step() + c);
        output_transform(values, half[i]);
      }
      const V shift = bias == nullptr ? V{} : load<V>(bias + c);
      for (int64_t j = 0; j < columns; ++j) {
        const V values[4] = {half[0][j], half[1][j], half[2][j], half[3][j]};
        V result[2];
        output_transform(values, result);
        for (int64_t i = 0; i < rows; ++i) {
          store<V>(to + (i * size + j) * channels + c, result[i] + shift);
        }
      }
    });
  });
}

// Z of one image's dy into the rows that begin at `first` of panels [panels][rows, kPanel].
template <class T>
void read_gradient(const WinogradShape& shape, const T* image, const T* zeros, Frequencies<T>& z,
                   int64_t first, int64_t rows) {
  const int64_t channels = shape.channels, size = shape.out_size();
  for_tiles(shape, [&](int64_t tile, int64_t row, int64_t column) {
    const T* from[2][2];
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const bool inside = row + i < size && column + j < size;
        from[i][j] = inside ? image + ((row + i) * size + column + j) * channels : zeros;
      }
    }
    for_packs<T>(channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      T* to = z.of(0) + c / kPanel * rows * kPanel + (first + tile) * kPanel + c % kPanel;
      V half[2][4];  // half[j] = A of column j
      for (int j = 0; j < 2; ++j) {
        const V dy[2] = {load<V>(from[0][j] + c), load<V>(from[1][j] + c)};
        gradient_transform(dy, half[j]);
      }
      for (int i = 0; i < 4; ++i) {
        const V dy[2] = {half[0][i], half[1][i]};
        V result[4];
        gradient_transform(dy, result);
        for (int j = 0; j < 4; ++j) store<V>(to + (4 * i + j) * z.step(), result[j]);
      }
    });
  });
}

// Calls body(panel, first column, columns).
template <class Body>
inline void for_panels(const WinogradShape& shape, const Body& body) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    body(panel, panel * kPanel, std::min(kPanel, shape.channels - panel * kPanel));
  }
}

template <class T>
void convolution(const WinogradConvolution<T>& p, int64_t begin, int64_t end) {
  const WinogradShape& shape = p.shape;
  const int64_t in = shape.in_channels, out = shape.channels, tiles = shape.tiles();
  const int64_t in_image = shape.in_size * shape.in_size * in;
  const int64_t out_image = shape.out_size() * shape.out_size() * out;
  const std::vector<T> zeros(in, T(0));
  Frequencies<T> v(shape.group_images() * tiles, in), m(shape.group_images() * tiles, out);
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * shape.group_images();
    const int64_t images = std::min(shape.group_images(), shape.batch - first);
    for (int term = 0; term < p.terms; ++term) {
      for (int64_t i = 0; i < images; ++i) {
        read_input(shape, p.term[term].x + (first + i) * in_image, zeros.data(), v, i * tiles);
      }
      for (int64_t f = 0; f < kFrequencies; ++f) {
        for_panels(shape, [&](int64_t panel, int64_t column, int64_t columns) {
          const T* u = p.term[term].weight + (f * shape.panels() + panel) * in * kPanel;
          product(Product<T>{images * tiles, columns, in, v.of(f), in, 1, u, kPanel,
                             m.of(f) + column, out, term > 0});
        });
      }
    }
    for (int64_t i = 0; i < images; ++i) {
      write_output(shape, m, i * tiles, p.bias, p.y + (first + i) * out_image);
    }
  }
}

template <class T>
void weight(const WinogradWeight<T>& p, int64_t begin, int64_t end) {
  const WinogradShape& shape = p.shape;
  const int64_t in = shape.in_channels, out = shape.channels, tiles = shape.tiles();
  const int64_t in_image = shape.in_size * shape.in_size * in;
  const int64_t out_image = shape.out_size() * shape.out_size() * out;
  const int64_t rows = shape.group_images() * tiles;
  const std::vector<T> zeros(std::max(in, out), T(0));
  Frequencies<T> v(rows, in), z(rows, shape.panels() * kPanel);
  for (int64_t part = begin; part < end; ++part) {
    T* partial = p.partial + part * kFrequencies * in * out;
    bool started = false;
    for (int64_t group = part; group < shape.groups(); group += shape.weight_parts()) {
      const int64_t first = group * shape.group_images();
      const int64_t images = std::min(shape.group_images(), shape.batch - first);
      for (int pair = 0; pair < p.pairs; ++pair) {
        for (int64_t i = 0; i < images; ++i) {
          read_input(shape, p.pair[pair].x + (first + i) * in_image, zeros.data(), v, i * tiles);
          read_gradient(shape, p.pair[pair].grad_y + (first + i) * out_image, zeros.data(), z,
                        i * tiles, rows);
        }
        for (int64_t f = 0; f < kFrequencies; ++f) {
          for_panels(shape, [&](int64_t panel, int64_t column, int64_t columns) {
            product(Product<T>{in, columns, images * tiles, v.of(f), 1, in,
                               z.of(f) + panel * rows * kPanel, kPanel,
                               partial + f * in * out + column, out, started});
          });
        }
        started = true;
      }
    }
  }
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
