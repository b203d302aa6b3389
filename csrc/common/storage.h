// Checks that a tensor is defined and that all of its memory exists and is aligned: untyped_storage().resize_() can
// shrink a storage that tensors still use, and a buffer for torch.frombuffer() can begin at any address.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace udskd {

// Python can pass None even for a tensor that is not optional.
inline void check_given(const char* name, const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(x.defined(), name, " must be a tensor, got None");
}

// Every element lies within the tensor's storage. Strides of a PyTorch tensor are never negative.
inline bool is_within_storage(const torch::stable::Tensor& x) {
  int64_t last = x.storage_offset(), bytes = 0;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) == 0) return true;
    last += (x.size(d) - 1) * x.stride(d);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(x.get(), &bytes));
  return (last + 1) * int64_t(x.element_size()) <= bytes;
}

// The address of the first element is a multiple of `to` bytes, such as the size of an element.
inline bool is_aligned(const torch::stable::Tensor& x, size_t to) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % to == 0;
}

// All of the checks above, for the operators on images.
inline void check_storage(const char* name, const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(is_within_storage(x), name, " reaches beyond the end of its storage");
  STD_TORCH_CHECK(x.numel() == 0 || x.const_data_ptr(), name, " has no memory");
  STD_TORCH_CHECK(is_aligned(x, x.element_size()), name, " does not begin at a multiple of its element's size");
}

}  // namespace udskd
