// Launches that CUDA refuses or records, and queries of the device.
#include "emulator.h"

namespace {

template <class T, int kTimes>
__global__ void add(T* to, T x) {
  if (threadIdx.x == 0) atomicAdd(to, x * kTimes);
}

__global__ void other(int* to) { atomicAdd(to, 1); }

}  // namespace

extern "C" {

// The kernels add a number to *to, once for each block.
const char* run_add(int* to, int x, int grid, int block, long long shared) {
  UDSKD_LAUNCH((add<int, 1>), grid, block, shared, nullptr, to, x);
  return cudaGetErrorName(cudaGetLastError());
}
const char* run_add_in_clusters(int* to, int grid, int cluster) {
  UDSKD_LAUNCH_CLUSTER((add<int, 2>), cluster, grid, 32, 0, nullptr, to, 1);
  return cudaGetErrorName(cudaGetLastError());
}
const char* run_other(int* to, int shared) {
  UDSKD_LAUNCH(other, 1, 1, shared, nullptr, to);
  return cudaGetErrorName(cudaGetLastError());
}
const char* run_cooperatively(int* to, int grid) {
  UDSKD_LAUNCH_COOPERATIVE(other, 1, grid, 1024, 0, nullptr, to);
  return cudaGetErrorName(cudaGetLastError());
}
const char* allow_shared(int bytes) {
  return cudaGetErrorName(cudaFuncSetAttribute(add<int, 1>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}
const char* allow_large_clusters(int whether) {
  return cudaGetErrorName(cudaFuncSetAttribute(add<int, 2>, cudaFuncAttributeNonPortableClusterSizeAllowed, whether));
}
void clear(void* to, int bytes) { cudaMemsetAsync(to, 0, size_t(bytes), nullptr); }

const char* peek_error() { return cudaGetErrorName(cudaPeekAtLastError()); }
const char* get_error() { return cudaGetErrorName(cudaGetLastError()); }

int attribute(int which) {
  int device = -1, value = -1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, static_cast<cudaDeviceAttr>(which), device);
  return value;
}
int occupancy(int threads, int shared) {
  int blocks = -1;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, add<int, 1>, threads, size_t(shared));
  return blocks;
}
}
