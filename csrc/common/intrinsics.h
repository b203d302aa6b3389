// immintrin.h, whose intrinsics begin with values that are undefined on purpose, and are warned of where they are used.
#pragma once

#include "simd.h"

#if UDSKD_X86
#ifdef __GNUC__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#endif
