// The kernels of images at the SIMD level avx2.
#include "../../common/simd.h"

#if UDSKD_X86
#define UDSKD_VECTOR_BYTES 32
#include "kernels.h"
#endif
