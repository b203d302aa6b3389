// CUDA for what is no kernel and launches none: any compiler reads it.
#pragma once

#ifdef UDSKD_EMULATE
#include "emulator.h"
#else
#include <cuda_runtime_api.h>
#endif
