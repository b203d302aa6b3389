// The Python module udskd._C: properties of this build. It includes no PyTorch headers; the operators register
// themselves when it is loaded.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "common/simd.h"
#include "loss/plan.h"

#ifndef UDSKD_CUDA_ARCHS
#define UDSKD_CUDA_ARCHS ""  // set by setup.py if the CUDA kernels are compiled, such as "7.5;9.0;12.0+PTX"
#endif

namespace udskd {
void exponential_of_level(const float* x, int64_t n, float* to);
}

namespace {

using Array = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;

// 2^x by the CPU kernels' own exponential, at the SIMD level in use.
Array exponential(const Array& x) {
  constexpr int64_t kVector = 16;  // a multiple of every level's vector length
  const int64_t n = x.size(), padded = (n + kVector - 1) / kVector * kVector;
  std::vector<float> in(size_t(padded), 0.f), out(in);
  std::copy_n(x.data(), n, in.begin());
  udskd::exponential_of_level(in.data(), padded, out.data());
  return Array(n, out.data());
}

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

// The CUDA kernel for a problem; needs no GPU.
pybind11::dict plan(int64_t rows, int64_t classes, const std::string& dtype, bool usual, int sms, int capability,
                    int64_t shared, int64_t l2, const std::string& force) {
  using namespace udskd::cuda;
  const std::vector<std::string> formats = {"float32", "bfloat16", "float16"};
  const auto format = std::find(formats.begin(), formats.end(), dtype);
  if (format == formats.end()) throw pybind11::value_error("dtype: float32, bfloat16 or float16, not " + dtype);
  if (rows < 0 || classes < 2 || classes > kMostClasses || sms < 1 || shared < 0 || l2 < 0)
    throw pybind11::value_error("plan: rows, shared and l2 must not be negative, sms not 0, classes from 2 to " +
                                std::to_string(kMostClasses));
  const Device device{sms, capability, shared, l2};
  const auto which = Format(format - formats.begin());
  const Plan best = udskd::cuda::plan(rows, classes, which, usual, device, force.empty() ? nullptr : force.c_str());
  pybind11::dict out;
  out["regime"] = name_of(best.regime);
  out["usual"] = best.usual;
  out["threads"] = kLanes[best.regime];
  out["blocks"] = best.group;
  out["packets"] = best.regime < kInShared ? kInRegisters[best.regime][which] : best.packets_of_thread;
  return out;
}

std::vector<std::string> regimes() {
  std::vector<std::string> names;
  for (int regime = 0; regime < udskd::cuda::kRegimes; ++regime)
    names.push_back(udskd::cuda::name_of(udskd::cuda::Regime(regime)));
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native library of udskd: operators under torch.ops.udskd, and properties of this build.";
  m.def("exponential", &exponential, "2^x of float32 x <= 1 as the CPU kernels compute it, for their tests.");
  m.def("plan", &plan, pybind11::arg("rows"), pybind11::arg("classes"), pybind11::arg("dtype") = "float32",
        pybind11::arg("usual") = true, pybind11::arg("sms") = udskd::cuda::Device().sms,
        pybind11::arg("capability") = udskd::cuda::Device().capability,
        pybind11::arg("shared") = udskd::cuda::Device().shared, pybind11::arg("l2") = udskd::cuda::Device().l2,
        pybind11::arg("force") = "",
        "The CUDA kernel for a problem: its regime, the threads of each block that share a row, the blocks that share "
        "a row, and the 16-byte packets of each network that a thread holds. usual: whether the loss has labels, a "
        "teacher, and two students at one temperature, for which most kernels are compiled. The default device is an "
        "H100.");
  m.def("regimes", &regimes, "The regimes of plan(), the values of UDSKD_CUDA_PLAN.");
  m.def("build_info", &build_info, "SIMD levels (compiled, and in use) and CUDA architectures of this library.");
}
