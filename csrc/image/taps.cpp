// Compiled for the baseline and without fused multiply-add, so that each step is rounded as in Pillow.
#include "taps.h"

#include <algorithm>
#include <cmath>
#include <vector>

#ifdef __clang__
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace udskd {
namespace {

// A triangle filter along a line of `pixels`: `scale` pixels of the source for each of the result, the filter's half
// width and its inverse.
struct Filter {
  double scale, support, inverse_support;
  int64_t pixels;
};

Filter make_filter(int64_t from, int64_t to) {
  const double scale = double(from) / double(to), support = std::max(scale, 1.0);
  return {scale, support, 1.0 / support, from};
}

double triangle(double x) {
  const double distance = x < 0 ? -x : x;
  return distance < 1 ? 1 - distance : 0;
}

// Writes the weights of the taps of one pixel, before normalisation, and returns their sum.
double compute_weights(const Filter& filter, double centre, int64_t first, int64_t count, double* weights) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    weights[k] = triangle((double(k + first) - centre + 0.5) * filter.inverse_support);
    sum += weights[k];
  }
  return sum;
}

struct TapRange {
  int64_t first, count;
};

// The taps of one pixel, with their weights as integers. `unscaled` has room for as many weights as `weights`.
TapRange find_taps_of_pixel(const Filter& filter, int64_t pixel, double* unscaled, int32_t* weights) {
  const double centre = (double(pixel) + 0.5) * filter.scale;
  const int64_t first = std::max<int64_t>(int64_t(centre - filter.support + 0.5), 0);
  int64_t count = std::min<int64_t>(int64_t(centre + filter.support + 0.5), filter.pixels) - first;
  const double sum = compute_weights(filter, centre, first, count, unscaled);
  for (int64_t k = 0; k < count; ++k) weights[k] = int32_t(0.5 + unscaled[k] / sum * double(1 << kWeightBits));
  while (count > 1 && weights[count - 1] == 0) --count;
  int64_t skipped = 0;
  while (skipped < count - 1 && weights[skipped] == 0) ++skipped;
  if (skipped) std::copy(weights + skipped, weights + count, weights);
  return {first + skipped, count - skipped};
}

}  // namespace

int64_t tap_capacity(int64_t from, int64_t to) { return 2 * int64_t(std::ceil(make_filter(from, to).support)) + 1; }

int64_t find_taps(int64_t from, int64_t to, int64_t begin, int64_t n, int64_t capacity, int32_t* first, int32_t* count,
                  int32_t* weights) {
  const Filter filter = make_filter(from, to);
  constexpr int64_t kFew = 64;
  double few[kFew];
  std::vector<double> many(size_t(capacity > kFew ? capacity : 0));
  double* const unscaled = capacity > kFew ? many.data() : few;
  int64_t max_taps = 1;
  for (int64_t i = 0; i < n; ++i, weights += capacity) {
    const TapRange range = find_taps_of_pixel(filter, begin + i, unscaled, weights);
    std::fill(weights + range.count, weights + capacity, 0);
    first[i] = int32_t(range.first), count[i] = int32_t(range.count);
    max_taps = std::max(max_taps, range.count);
  }
  return max_taps;
}

}  // namespace udskd
