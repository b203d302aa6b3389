// CUDA's functions for source files that neither contain nor launch kernels. Any C++ compiler can read it.
#pragma once

#ifdef UDSKD_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif
