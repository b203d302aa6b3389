// The kernels of the loss at the SIMD level of this source file.
#pragma once

#include "../../common/cpu/intrinsics.h"  // the first to include immintrin.h
#include "job.h"
#include "row_pass.h"

namespace udskd::UDSKD_LEVEL {

const Level kLevel{scratch_bytes, rows, wide_row, exponential_of};

}  // namespace udskd::UDSKD_LEVEL
