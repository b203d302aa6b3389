// The kernels of images at the SIMD level baseline.
#include "../../common/simd.h"

#if UDSKD_X86
#define UDSKD_VECTOR_BYTES 16
#include "kernels.h"
#endif
