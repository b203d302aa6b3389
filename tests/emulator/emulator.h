// Runs CUDA kernels on the CPU: g++ compiles their unchanged source, and each CUDA thread is a fiber.
//
// Each warp runs as far as it can before the next one, in an order that the tests choose, so that a missing barrier
// gives wrong results. Undefined behaviour of CUDA (a barrier that only some threads reach, a mask that names a lane
// which has exited, ...) ends the process with a message that names the kernel and the line. AddressSanitizer reports
// accesses beyond shared or global memory. The emulator does not check memory ordering between blocks, bank conflicts,
// registers or speed.
//
// Kernels use the macros of launch.h and UDSKD_SHARED of memory.h. They are compiled into one library with the .cpp
// files in this folder, whose C functions emulator_*() (stream.cpp and device.cpp) the tests call.
#pragma once

#include "device.h"
#include "launch.h"
#include "memory.h"
#include "numbers.h"
#include "thread.h"
#include "types.h"
#include "warp.h"
