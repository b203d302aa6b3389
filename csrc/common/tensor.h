// PyTorch's tensors through its stable ABI.
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

// Contiguous. Not torch::stable::new_empty, which goes through the dispatcher and is several times slower: for small
// batches these allocations are most of a call.
inline Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[2] = {sizes.size() == 2 ? sizes.begin()[1] : 1, 1};
  int32_t device = 0, index = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int32_t code = dtype == ScalarType::Double  ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Float ? aoti_torch_dtype_float32()
                       : dtype == ScalarType::Half  ? aoti_torch_dtype_float16()
                                                    : aoti_torch_dtype_bfloat16();
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(), strides, code, device, index, &out));
  Tensor made(out);
#ifdef UDSKD_EMULATE  // what a kernel does not write is to be seen
  if (made.numel()) std::memset(made.mutable_data_ptr(), 0xCD, size_t(made.numel()) * size_t(made.element_size()));
#endif
  return made;
}

}  // namespace udskd
