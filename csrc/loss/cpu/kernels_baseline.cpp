// The kernels of the loss at the SIMD level baseline.
#define UDSKD_VECTOR_BYTES 16
#include "kernels.h"
