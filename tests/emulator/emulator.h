// Runs CUDA kernels on the CPU: their unchanged source, compiled by g++, with a fiber for each CUDA thread.
//
// A warp runs ahead of the others as far as it can, in an order that the tests choose, so that a barrier that is
// missing is missed. What CUDA leaves undefined (a barrier that only some threads reach, a mask that names a lane which
// has exited, ...) ends the process with a line that says in which kernel and where. AddressSanitizer sees what goes
// beyond the shared memory or any other. Not seen: memory ordering between blocks, bank conflicts, registers, speed.
//
// Kernels use the macros of launch.h and UDSKD_SHARED of memory.h. Of the library that they are compiled into, together
// with the .cpp files here, tests call the C functions emulator_*() of stream.cpp and device.cpp.
#pragma once

#include "device.h"
#include "launch.h"
#include "memory.h"
#include "numbers.h"
#include "thread.h"
#include "types.h"
#include "warp.h"
