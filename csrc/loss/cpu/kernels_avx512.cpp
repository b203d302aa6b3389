// The kernels of the loss at the SIMD level avx512.
#include "../../common/simd.h"

#if UDSKD_X86
#define UDSKD_VECTOR_BYTES 64
#include "kernels.h"
#endif
