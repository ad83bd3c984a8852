// Compiles the header named by TM_KERNELS once per instruction set. Each copy lies in a namespace
// TM_ISA and has SIMD vectors of TM_VECTOR_BYTES bytes. One source serves every processor this way,
// and no build flag has to name one. The kernels' own includes must come before this header: only
// the kernels may be compiled for another instruction set.
//
// No include guard: every kernel file includes this header once.

#define TM_ISA portable
#define TM_VECTOR_BYTES 16
#include TM_KERNELS
#undef TM_VECTOR_BYTES
#undef TM_ISA

#ifdef TM_HAVE_X86_ISAS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TM_ISA avx2
#define TM_VECTOR_BYTES 32
#include TM_KERNELS
#undef TM_VECTOR_BYTES
#undef TM_ISA
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define TM_ISA avx512
#define TM_VECTOR_BYTES 64
#include TM_KERNELS
#undef TM_VECTOR_BYTES
#undef TM_ISA
#pragma GCC pop_options
#endif
