#include "device.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

namespace emu {
namespace {

constexpr int kThreadsPerBlock = 1024, kThreadsPerSm = 2048, kBlocksPerSm = 32;
constexpr int kDefaultShared = 48 << 10, kReservedShared = 1 << 10;  // bytes per block

struct Attributes {
  int shared = kDefaultShared;
  bool large_clusters = false;
};
std::mutex lock;
std::map<const void*, Attributes> attributes_of;
constinit thread_local cudaError_t last_error = cudaSuccess;

bool fits_grid(const dim3& grid, const dim3& block) {
  const bool some = grid.x && grid.y && grid.z && block.x && block.y && block.z;
  const bool grid_fits = grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  return some && grid_fits && block.z <= 64 && uint64_t(block.x) * block.y * block.z <= uint64_t(kThreadsPerBlock);
}

}  // namespace

Device& device() {
  static Device emulated;
  return emulated;
}

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The limit by threads and shared memory. The emulator does not count registers.
int blocks_per_sm(unsigned threads, size_t shared) {
  const int by_threads = kThreadsPerSm / 32 / int((threads + 31) / 32);
  const int by_shared = (device().shared + kReservedShared) / (int(shared) + kReservedShared);
  return std::min({kBlocksPerSm, by_threads, by_shared});
}

cudaError_t check(const void* kernel, const Launch& launch) {
  const std::lock_guard guard(lock);
  const Attributes& allowed = attributes_of[kernel];
  if (!fits_grid(launch.grid, launch.block)) return cudaErrorInvalidConfiguration;
  if (launch.shared > size_t(allowed.shared) || launch.shared > size_t(device().shared)) return cudaErrorInvalidValue;
  if (launch.cooperative) {
    if (launch.grid.x % launch.group_blocks) fatal("%u blocks in groups of %u", launch.grid.x, launch.group_blocks);
    const uint64_t at_once = uint64_t(device().sms) * uint64_t(blocks_per_sm(launch.threads(), launch.shared));
    return launch.blocks() > at_once ? cudaErrorCooperativeLaunchTooLarge : cudaSuccess;
  }
  if (launch.cluster == 1) return cudaSuccess;
  if (device().capability < 90) return cudaErrorNotSupported;
  if (launch.cluster < 1 || launch.cluster > (allowed.large_clusters ? 16u : 8u)) return cudaErrorInvalidClusterSize;
  return launch.grid.x % launch.cluster ? cudaErrorInvalidClusterSize : cudaSuccess;
}

}  // namespace emu

// Hidden, so that a CUDA runtime in the same process neither replaces these functions nor is replaced by them.
#define LOCAL extern "C" __attribute__((visibility("hidden")))

LOCAL cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
LOCAL cudaError_t cudaPeekAtLastError() { return emu::last_error; }

LOCAL const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorCooperativeLaunchTooLarge:
      return "cudaErrorCooperativeLaunchTooLarge";
    case cudaErrorInvalidClusterSize:
      return "cudaErrorInvalidClusterSize";
    default:
      return "unrecognized error code";
  }
}

LOCAL const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
    default:
      return "unrecognized error code";
  }
}

LOCAL cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }

LOCAL cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emu::Device& device = emu::device();
  const std::map<cudaDeviceAttr, int> values = {
      {cudaDevAttrWarpSize, warpSize},
      {cudaDevAttrMultiProcessorCount, device.sms},
      {cudaDevAttrComputeCapabilityMajor, device.capability / 10},
      {cudaDevAttrComputeCapabilityMinor, device.capability % 10},
      {cudaDevAttrMaxThreadsPerBlock, emu::kThreadsPerBlock},
      {cudaDevAttrMaxThreadsPerMultiProcessor, emu::kThreadsPerSm},
      {cudaDevAttrMaxBlocksPerMultiprocessor, emu::kBlocksPerSm},
      {cudaDevAttrMaxSharedMemoryPerBlock, emu::kDefaultShared},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, device.shared},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, device.shared + emu::kReservedShared},
      {cudaDevAttrReservedSharedMemoryPerBlock, emu::kReservedShared},
      {cudaDevAttrL2CacheSize, device.l2},
      {cudaDevAttrClusterLaunch, device.capability >= 90},
  };
  const auto found = values.find(attribute);
  if (found == values.end()) emu::fatal("cudaDeviceGetAttribute() has no attribute %d", int(attribute));
  return *value = found->second, cudaSuccess;
}

LOCAL cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard guard(emu::lock);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    emu::attributes_of[kernel].large_clusters = value != 0;
  } else if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > emu::device().shared) return emu::failed(cudaErrorInvalidValue);
    emu::attributes_of[kernel].shared = value;
  }
  return cudaSuccess;
}

LOCAL cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                                size_t shared) {
  if (threads < 1) return emu::failed(cudaErrorInvalidValue);
  emu::Launch one;
  one.grid = dim3(1), one.block = dim3(unsigned(threads)), one.shared = shared;
  *blocks = emu::check(kernel, one) == cudaSuccess ? emu::blocks_per_sm(unsigned(threads), shared) : 0;
  return cudaSuccess;
}

LOCAL cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return emu::submit_memset(to, value, bytes), cudaSuccess;
}

extern "C" __attribute__((visibility("default"))) void emulator_device(const char* property, int value) {
  const std::map<std::string, int emu::Device::*> properties = {
      {"sms", &emu::Device::sms},
      {"capability", &emu::Device::capability},
      {"shared", &emu::Device::shared},
      {"l2", &emu::Device::l2},
  };
  const auto found = properties.find(property);
  if (found == properties.end()) emu::fatal("a device has no property '%s'", property);
  emu::device().*found->second = value;
}
