// How kernels are registered for the operators of csrc/ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

// The tests' emulator runs the CUDA kernels on the CPU's tensors, as operators beside the CPU's own.
#ifdef UDSKD_EMULATE
#define UDSKD_OPERATORS udskd_emulated
#define UDSKD_KEY(key) CPU
#else
#define UDSKD_OPERATORS udskd
#define UDSKD_KEY(key) key
#endif
#define UDSKD_IMPLEMENTATIONS(...) STABLE_TORCH_LIBRARY_IMPL(__VA_ARGS__)
