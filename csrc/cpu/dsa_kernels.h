// The maps of core/dsa.h, sample by sample.
//
// Bilinear sampling handles up to four channels of a pixel at a time (a Quad). It reads from a
// frame: a copy of the image with a border of one zero pixel on every side, so that no tap needs a
// bounds check.
//
// No include guard: see for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

constexpr int kQuad = 4;

// One specialisation per type, as in pack.h. A Quad has only the alignment of its elements.
template <class T>
struct QuadType;
template <>
struct QuadType<float> {
  typedef float type
      __attribute__((vector_size(kQuad * sizeof(float)), aligned(alignof(float)), may_alias));
};
template <>
struct QuadType<double> {
  typedef double type
      __attribute__((vector_size(kQuad * sizeof(double)), aligned(alignof(double)), may_alias));
};
template <class T>
using Quad = typename QuadType<T>::type;

template <class T>
inline Quad<T>& quad_at(T* values) {
  return *reinterpret_cast<Quad<T>*>(values);
}
template <class T>
inline const Quad<T>& quad_at(const T* values) {
  return *reinterpret_cast<const Quad<T>*>(values);
}

template <int value>
using Constant = std::integral_constant<int, value>;

// Calls body(channels, pixel_step). `channels` is the number of channels to process, 1 to kQuad,
// out of the `count` that remain. `pixel_step` is the distance between pixels. Both are
// compile-time constants, except the step where images are channels last and body handles only some
// of their channels.
template <class T, class Body>
inline void with_channels(const Dsa<T>& p, int64_t count, const Body& body) {
  const auto with_step = [&](auto channels) {
    if (!p.channels_last) {
      body(channels, Constant<1>());
    } else if (p.channels == channels) {
      body(channels, channels);
    } else {
      body(channels, p.channels);
    }
  };
  switch (count) {
    case 1:
      return with_step(Constant<1>());
    case 2:
      return with_step(Constant<2>());
    case 3:
      return with_step(Constant<3>());
    default:
      return with_step(Constant<kQuad>());
  }
}

// sums += the sum of `values` over the channels
template <class T, class Channels, class Step>
inline void add_channels(const Dsa<T>& p, Channels channels, Step pixel_step,
                         const T* TM_RESTRICT values, T* TM_RESTRICT sums) {
  const int64_t pixels = p.pixels(), channel_step = p.channel_step();
  for (int64_t i = 0; i < pixels; ++i) {
    T sum = sums[i];
    for (int c = 0; c < channels; ++c) sum += values[c * channel_step + i * pixel_step];
    sums[i] = sum;
  }
}

// out = scale in + base, with the same base for all channels
template <class T, class Channels, class Step>
inline void scale_and_add(const Dsa<T>& p, Channels channels, Step pixel_step, T scale,
                          const T* TM_RESTRICT base, const T* TM_RESTRICT in, T* TM_RESTRICT out) {
  const int64_t pixels = p.pixels(), channel_step = p.channel_step();
  for (int64_t i = 0; i < pixels; ++i) {
    for (int c = 0; c < channels; ++c) {
      const int64_t at = c * channel_step + i * pixel_step;
      out[at] = scale * in[at] + base[i];
    }
  }
}

template <class T>
inline void color(const Dsa<T>& p, const DsaColor& map, const T* in, T* out, std::vector<T>& grey) {
  grey.assign(static_cast<size_t>(p.pixels()), T(0));
  for (int64_t first = 0; first < p.channels; first += kQuad) {
    with_channels(p, p.channels - first, [&](auto channels, auto pixel_step) {
      add_channels(p, channels, pixel_step, in + first * p.channel_step(), grey.data());
    });
  }
  // Fold everything except the channel's own value into one base per pixel.
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (size_t i = 0; i < grey.size(); ++i) total += grey[i];
  const T constant = static_cast<T>(map.mean * total + map.constant);
  for (T& value : grey) value = static_cast<T>(map.grey) * value + constant;
  for (int64_t first = 0; first < p.channels; first += kQuad) {
    const int64_t at = first * p.channel_step();
    with_channels(p, p.channels - first, [&](auto channels, auto pixel_step) {
      scale_and_add(p, channels, pixel_step, static_cast<T>(map.own), grey.data(), in + at,
                    out + at);
    });
  }
}

// Calls body(from, to) for each plane of an image. A plane is [H][W][pixel_step]: one per channel,
// or the whole image if it is channels last.
template <class T, class Body>
inline void for_planes(const Dsa<T>& p, const T* in, T* out, const Body& body) {
  const int64_t size = p.pixels() * p.pixel_step();
  for (int64_t at = 0; at < p.image_size(); at += size) body(in + at, out + at);
}

template <class T>
inline void crop(const Dsa<T>& p, const DsaCrop& map, const T* in, T* out) {
  const int64_t row = p.width * p.pixel_step(), shift = map.columns * p.pixel_step();
  const int64_t first = std::max<int64_t>(0, -shift), last = std::min(row, row - shift);
  for_planes(p, in, out, [&](const T* from, T* to) {
    for (int64_t y = 0; y < p.height; ++y, to += row) {
      const int64_t source = y + map.rows;
      if (source < 0 || source >= p.height || first >= last) {
        std::fill_n(to, row, T(0));
        continue;
      }
      std::fill_n(to, first, T(0));
      std::copy_n(from + source * row + first + shift, last - first, to + first);
      std::fill(to + last, to + row, T(0));
    }
  });
}

template <class T>
inline void cutout(const Dsa<T>& p, const DsaCutout& map, const T* in, T* out) {
  std::copy_n(in, p.image_size(), out);
  const int64_t step = p.pixel_step(), row = p.width * step;
  if (map.left >= map.right) return;
  for_planes(p, in, out, [&](const T*, T* to) {
    for (int64_t y = map.top; y < map.bottom; ++y) {
      std::fill(to + y * row + map.left * step, to + y * row + map.right * step, T(0));
    }
  });
}

template <class T>
inline void flip(const Dsa<T>& p, const T* in, T* out) {
  const int64_t step = p.pixel_step(), row = p.width * step;
  for_planes(p, in, out, [&](const T* from, T* to) {
    for (int64_t y = 0; y < p.height; ++y, from += row, to += row) {
      if (step == 1) {
        std::reverse_copy(from, from + row, to);
      } else if (step > kQuad) {
        for (int64_t at = 0; at < row; at += step)
          std::copy_n(from + row - step - at, step, to + at);
      } else {
        // The first and the last pixel are copied without Quads: a Quad would read or write outside
        // the row.
        std::copy_n(from + row - step, step, to);
        for (int64_t at = step; at + step < row; at += step) {
          quad_at(to + at) = quad_at(from + row - step - at);
        }
        std::copy_n(from, step, to + row - step);
      }
    }
  });
}

// The four frame pixels that each output pixel of a row reads: at `offset`, its right neighbour,
// its lower neighbour, and the diagonal one. `right` and `below` are the weights of the right and
// of the lower pixels.
template <class T>
struct Taps {
  void fit(int64_t width) {
    offset.resize(width);
    right.resize(width);
    below.resize(width);
  }

  void locate(const DsaSampling& map, int64_t row) {
    const int width = map.width, height = map.height, y = static_cast<int>(row);
    int* TM_RESTRICT const at = offset.data();
    T* TM_RESTRICT const horizontal = right.data();
    T* TM_RESTRICT const vertical = below.data();
    const DsaLine<T> line(map, y);
    for (int x = 0; x < width; ++x) {
      const DsaTap<T> column(line.x_shift + line.x_slope * x, x, width);
      const DsaTap<T> row(line.y_shift + line.y_slope * x, y, height);
      at[x] = ((row.first + 1) * (width + 2) + column.first + 1) * kQuad;
      horizontal[x] = column.second;
      vertical[x] = row.second;
    }
  }

  std::vector<int> offset;
  std::vector<T> right, below;
};

// Scratch memory of sampling: the frame, zero outside the image, and one row of pixels.
template <class T>
struct Workspace {
  void fit(const Dsa<T>& p) {
    taps.fit(p.width);
    frame.assign((p.height + 2) * (p.width + 2) * kQuad, T(0));
    row.resize(p.width * kQuad);
  }

  Taps<T> taps;
  std::vector<T> frame, row;
};

// Copies some channels of a row of pixels from the image to Quads, and back.
template <class T, class Channels, class Step>
inline void load_row(const Dsa<T>& p, Channels channels, Step pixel_step, const T* image, T* row) {
  const int64_t width = p.width, channel_step = p.channel_step();
  for (int64_t x = 0; x < width; ++x) {
    Quad<T> pixel{};
    for (int c = 0; c < channels; ++c) pixel[c] = image[x * pixel_step + c * channel_step];
    quad_at(row + x * kQuad) = pixel;
  }
}
template <class T, class Channels, class Step>
inline void store_row(const Dsa<T>& p, Channels channels, Step pixel_step, const T* TM_RESTRICT row,
                      T* TM_RESTRICT image) {
  const int64_t width = p.width, channel_step = p.channel_step();
  for (int c = 0; c < channels; ++c) {
    T* TM_RESTRICT const channel = image + c * channel_step;
    for (int64_t x = 0; x < width; ++x) channel[x * pixel_step] = row[x * kQuad + c];
  }
}

// Samples some channels of an image; `in` and `out` point at the first of them.
//
// Quads may alias everything (may_alias), so the loops keep all other data they read in local
// variables.
template <class T, class Channels, class Step>
inline void sample(const Dsa<T>& p, const DsaSampling& map, Channels channels, Step pixel_step,
                   const T* in, T* out, Workspace<T>& work) {
  const int64_t width = p.width, image_row = width * pixel_step, frame_row = (width + 2) * kQuad;
  T* const frame = work.frame.data();
  T* const row = work.row.data();
  const int* const offset = work.taps.offset.data();
  const T* const rightward = work.taps.right.data();
  const T* const downward = work.taps.below.data();
  for (int64_t y = 0; y < p.height; ++y) {
    T* const inside = frame + (y + 1) * frame_row + kQuad;
    load_row(p, channels, pixel_step, in + y * image_row, inside);
  }
  for (int64_t y = 0; y < p.height; ++y) {
    work.taps.locate(map, y);
    for (int64_t x = 0; x < width; ++x) {
      const T* const top = frame + offset[x];
      const T* const bottom = top + frame_row;
      const T right = rightward[x], below = downward[x];
      const Quad<T> left_top = quad_at(top), left_bottom = quad_at(bottom);
      const Quad<T> upper = left_top + right * (quad_at(top + kQuad) - left_top);
      const Quad<T> lower = left_bottom + right * (quad_at(bottom + kQuad) - left_bottom);
      quad_at(row + x * kQuad) = upper + below * (lower - upper);
    }
    store_row(p, channels, pixel_step, row, out + y * image_row);
  }
}

// The transpose of sample(): adds each output gradient to the four frame pixels that it read.
template <class T, class Channels, class Step>
inline void sample_backward(const Dsa<T>& p, const DsaSampling& map, Channels channels,
                            Step pixel_step, const T* in, T* out, Workspace<T>& work) {
  const int64_t width = p.width, image_row = width * pixel_step, frame_row = (width + 2) * kQuad;
  T* const frame = work.frame.data();
  T* const row = work.row.data();
  const int* const offset = work.taps.offset.data();
  const T* const rightward = work.taps.right.data();
  const T* const downward = work.taps.below.data();
  std::fill(work.frame.begin(), work.frame.end(), T(0));
  for (int64_t y = 0; y < p.height; ++y) {
    work.taps.locate(map, y);
    load_row(p, channels, pixel_step, in + y * image_row, row);
    for (int64_t x = 0; x < width; ++x) {
      T* const top = frame + offset[x];
      T* const bottom = top + frame_row;
      const T right = rightward[x], below = downward[x];
      const Quad<T> value = quad_at(row + x * kQuad);
      const Quad<T> lower = below * value, upper = value - lower;
      const Quad<T> right_top = right * upper, right_bottom = right * lower;
      quad_at(top) += upper - right_top;
      quad_at(top + kQuad) += right_top;
      quad_at(bottom) += lower - right_bottom;
      quad_at(bottom + kQuad) += right_bottom;
    }
  }
  for (int64_t y = 0; y < p.height; ++y) {
    const T* const inside = frame + (y + 1) * frame_row + kQuad;
    store_row(p, channels, pixel_step, inside, out + y * image_row);
  }
}

template <class T>
void dsa(const Dsa<T>& p, int64_t begin, int64_t end) {
  // Each thread owns its scratch memory and keeps it from call to call.
  static thread_local std::vector<T> grey;
  static thread_local Workspace<T> work;
  bool fits = false;
  for (int64_t b = begin; b < end; ++b) {
    const double* const row = p.parameters + b * kDsaColumns;
    const T* const in = p.in + p.source(b) * p.image_size();
    T* const out = p.out + b * p.image_size();
    switch (static_cast<DsaKind>(static_cast<int>(row[0]))) {
      case DsaKind::kColor:
        color(p, DsaColor(p, row), in, out, grey);
        break;
      case DsaKind::kCrop:
        crop(p, DsaCrop(p, row), in, out);
        break;
      case DsaKind::kCutout:
        cutout(p, DsaCutout(p, row), in, out);
        break;
      case DsaKind::kFlip:
        if (row[1] == 0) {
          std::copy_n(in, p.image_size(), out);
        } else {
          flip(p, in, out);
        }
        break;
      case DsaKind::kSample: {
        if (!fits) work.fit(p);
        fits = true;
        const DsaSampling map(p, row);
        for (int64_t first = 0; first < p.channels; first += kQuad) {
          const T* const from = in + first * p.channel_step();
          T* const to = out + first * p.channel_step();
          with_channels(p, p.channels - first, [&](auto channels, auto pixel_step) {
            if (p.pass == DsaPass::kBackward) {
              sample_backward(p, map, channels, pixel_step, from, to, work);
            } else {
              sample(p, map, channels, pixel_step, from, to, work);
            }
          });
        }
        break;
      }
    }
  }
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
