// Tensors through PyTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>

namespace udskd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// A contiguous tensor of one or two dimensions on the device of `like`. torch::stable::new_empty goes through the
// dispatcher and is several times slower: for small batches, allocations are most of a call.
inline Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[2] = {sizes.size() == 2 ? sizes.begin()[1] : 1, 1};
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int32_t code = dtype == ScalarType::Double  ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Float ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Half  ? aoti_torch_dtype_float16()
                                                    : aoti_torch_dtype_bfloat16();
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, code, device, index, &handle));
  Tensor out(handle);
#ifdef UDSKD_EMULATE  // so that tests notice elements that no kernel writes
  if (out.numel()) std::memset(out.mutable_data_ptr(), 0xCD, size_t(out.numel()) * size_t(out.element_size()));
#endif
  return out;
}

}  // namespace udskd
