// SIMD vectors of the compiler (vector_size), called packs, and the formulas of core/ for them. A
// pack is TM_VECTOR_BYTES wide, the vector width of the instruction set that is being compiled. It
// usually holds neighbouring channels.
//
// No include guard: the kernel headers include this file inside the namespace of each instruction
// set, after <algorithm>, <cstdint>, <cstring> and <type_traits>.

#define TM_INLINE inline __attribute__((always_inline))

#include "core/activation_formulas.h"
#include "core/norm_formulas.h"

// One specialisation per type: compilers drop a vector_size that depends on a template's T.
template <class T>
struct PackType;
template <>
struct PackType<float> {
  typedef float type __attribute__((vector_size(TM_VECTOR_BYTES)));
};
template <>
struct PackType<double> {
  typedef double type __attribute__((vector_size(TM_VECTOR_BYTES)));
};
template <class T>
using Pack = typename PackType<T>::type;

// Four values: the channels of one image pixel, with room for at most four.
template <class T>
struct PixelType;
template <>
struct PixelType<float> {
  typedef float type __attribute__((vector_size(16)));
};
template <>
struct PixelType<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <class T>
using Pixel = typename PixelType<T>::type;

// Pixels that fill a pack, or 1 if a pack is smaller than a pixel. A PixelRow holds kPixels
// neighbouring pixels.
template <class T>
constexpr int kPixels = std::max<int>(1, TM_VECTOR_BYTES / sizeof(Pixel<T>));
template <class T>
using PixelRow = std::conditional_t<(kPixels<T> > 1), Pack<T>, Pixel<T>>;

// Loads the pixels at from, from + step, ... into one PixelRow.
template <class T>
TM_INLINE PixelRow<T> load_pixels(const T* from, int64_t step) {
  PixelRow<T> row;
#if defined(__GNUC__) && !defined(__clang__)
  if constexpr (kPixels<T> == 4) {
    Pixel<T> p[4];
    for (int i = 0; i < 4; ++i) std::memcpy(&p[i], from + i * step, sizeof p[i]);
    const auto low = __builtin_shufflevector(p[0], p[1], 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(p[2], p[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  } else if constexpr (kPixels<T> == 2) {
    Pixel<T> p[2];
    for (int i = 0; i < 2; ++i) std::memcpy(&p[i], from + i * step, sizeof p[i]);
    return __builtin_shufflevector(p[0], p[1], 0, 1, 2, 3, 4, 5, 6, 7);
  }
#endif
  for (int i = 0; i < kPixels<T>; ++i) {
    std::memcpy(reinterpret_cast<char*>(&row) + i * sizeof(Pixel<T>), from + i * step,
                sizeof(Pixel<T>));
  }
  return row;
}

// The operations that the formulas of core/ need, for a SIMD vector V with elements T.
template <class V, class T>
struct VectorLanes {
  static V constant(double value) { return V{} + static_cast<T>(value); }
  template <class Mask>
  static V select(const Mask& condition, const V& yes, const V& no) {
    return condition ? yes : no;
  }
  static V exp(const V& value) {
    V result;
    for (size_t lane = 0; lane < sizeof(value) / sizeof(T); ++lane) {
      result[lane] = std::exp(value[lane]);
    }
    return result;
  }
};

template <>
struct Lanes<Pack<float>> : VectorLanes<Pack<float>, float> {};
template <>
struct Lanes<Pack<double>> : VectorLanes<Pack<double>, double> {};
// Pixels need their own specialisation only where they are not the same type as a pack.
#if TM_VECTOR_BYTES != 16
template <>
struct Lanes<Pixel<float>> : VectorLanes<Pixel<float>, float> {};
#endif
#if TM_VECTOR_BYTES != 32
template <>
struct Lanes<Pixel<double>> : VectorLanes<Pixel<double>, double> {};
#endif

template <class V, class T>
inline V load(const T* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V, class T>
inline void store(T* to, const V& value) {
  std::memcpy(to, &value, sizeof value);
}

template <class V, class T>
inline void add_to(T* to, const V& value) {
  store<V>(to, load<V>(to) + value);
}

// Keeps a value in a register. Compilers would otherwise reload it for each use, and load
// throughput is the first limit that these loops reach.
template <class V>
TM_INLINE void keep(V& value) {
#ifdef TM_HAVE_X86_ISAS
  asm("" : "+v"(value));
#else
  (void)value;
#endif
}
