// The Python module udskd._C: what this build holds. Kept free of PyTorch headers; the operators register themselves
// when it is loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "backend/simd.h"

#ifndef UDSKD_CUDA_ARCHS
#define UDSKD_CUDA_ARCHS ""  // setup.py gives the list, such as "7.5;9.0;12.0+PTX", when the CUDA kernels are compiled
#endif

namespace {

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(';', begin), list.size());
    parts.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

pybind11::dict build_info() {
  std::vector<std::string> levels;
  for (int level = 0; level < udskd::kSimdLevels; ++level)
    if (udskd::simd_compiled(level)) levels.push_back(udskd::simd_name(level));
  pybind11::dict info;
  info["simd"] = udskd::simd_name(udskd::simd_level());
  info["simd_levels"] = levels;
  info["simd_problem"] = udskd::simd_problem();
  info["cuda_archs"] = split(UDSKD_CUDA_ARCHS);
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native library of udskd: operators under torch.ops.udskd, and what this build holds.";
  m.def("build_info", &build_info, "SIMD levels (compiled, and in use) and CUDA architectures of this library.");
}
