// Copies between images and planes.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

// Copies images [height, width, C] to planes [blocks][rows][row][lanes], where an image starts at
// pixel `origin`, and back. Lanes beyond C and pixels outside of the image stay unchanged. Null
// planes are skipped.
template <class T>
struct PlaneCopy {
  int64_t channels, height, width;
  int64_t lanes;
  int64_t row;     // pixels from one row of a plane to the next
  int64_t block;   // values from one block to the next
  int64_t planes;  // values from one image's planes to the next
  int64_t origin = 0;

  void read(const T* images, int64_t first, int64_t count, T* to) const {
    if (to == nullptr) return;
    each_pixel(first, count, [&](int64_t image_at, int64_t plane_at, int64_t n) {
      copy_channels(images + image_at, to + plane_at, n);
    });
  }
  void write(const T* from, int64_t first, int64_t count, T* images) const {
    if (from == nullptr) return;
    each_pixel(first, count, [&](int64_t image_at, int64_t plane_at, int64_t n) {
      copy_channels(from + plane_at, images + image_at, n);
    });
  }

 private:
  // Calls copy(image_at, plane_at, n) for the n channels of each pixel in each block.
  template <class Copy>
  TM_INLINE void each_pixel(int64_t first, int64_t count, const Copy& copy) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < channels; c += lanes) {
        const int64_t n = std::min(lanes, channels - c);
        for (int64_t y = 0; y < height; ++y) {
          int64_t image_at = (((first + i) * height + y) * width) * channels + c;
          int64_t plane_at = i * planes + c / lanes * block + (y * row + origin) * lanes;
          for (int64_t x = 0; x < width; ++x) {
            copy(image_at, plane_at, n);
            image_at += channels;
            plane_at += lanes;
          }
        }
      }
    }
  }
  static void copy_channels(const T* from, T* to, int64_t n) {
    if (n == int64_t{sizeof(Pack<T>) / sizeof(T)}) {
      store<Pack<T>>(to, load<Pack<T>>(from));
    } else {
      std::copy_n(from, n, to);
    }
  }
};
