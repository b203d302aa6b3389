// immintrin.h without the warnings of GCC about its own intrinsics, some of which begin with undefined values on
// purpose. PyTorch's headers include immintrin.h with the warnings, so a source file that uses intrinsics includes this
// header first.
#pragma once

#include "../simd.h"

#if UDSKD_X86
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
