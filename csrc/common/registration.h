// Macros that register kernels for the operators of csrc/ops.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

// With UDSKD_EMULATE, the tests run the CUDA kernels on CPU tensors, as operators of a second namespace.
#ifdef UDSKD_EMULATE
#define UDSKD_OPERATORS udskd_emulated
#define UDSKD_KEY(key) CPU
#else
#define UDSKD_OPERATORS udskd
#define UDSKD_KEY(key) key
#endif
#define UDSKD_IMPLEMENTATIONS(...) STABLE_TORCH_LIBRARY_IMPL(__VA_ARGS__)
