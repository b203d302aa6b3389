// The kernels of images at the SIMD level of this source file.
#pragma once

#include "normalize_kernel.h"
#include "resize_kernel.h"

namespace udskd::UDSKD_LEVEL {

const ResizeLevel kResizeLevel{scratch_bytes, resize};
const NormalizeLevel kNormalizeLevel{mirror, normalize, split};

}  // namespace udskd::UDSKD_LEVEL
