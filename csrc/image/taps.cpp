// Compiled for the baseline alone and without fused multiply-add: each rounding is Pillow's.
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

struct Line {
  double scale, support, inverse;
  int64_t pixels;
};

Line line_of(int64_t from, int64_t to) {
  const double scale = double(from) / double(to), support = std::max(scale, 1.0);
  return {scale, support, 1.0 / support, from};
}

double triangle(double x) {
  const double from_peak = x < 0 ? -x : x;
  return from_peak < 1 ? 1 - from_peak : 0;
}

// The shares of one position's taps, and their sum.
double weigh(const Line& line, double centre, int64_t first, int64_t count, double* share) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) {
    share[k] = triangle((double(k + first) - centre + 0.5) * line.inverse);
    sum += share[k];
  }
  return sum;
}

struct TapRange {
  int64_t first, count;
};

TapRange tap(const Line& line, int64_t position, double* share, int32_t* shares) {
  const double centre = (double(position) + 0.5) * line.scale;
  int64_t first = std::max<int64_t>(int64_t(centre - line.support + 0.5), 0);
  int64_t count = std::min<int64_t>(int64_t(centre + line.support + 0.5), line.pixels) - first;
  const double sum = weigh(line, centre, first, count, share);
  for (int64_t k = 0; k < count; ++k) shares[k] = int32_t(0.5 + share[k] / sum * double(1 << kShareBits));
  while (count > 1 && shares[count - 1] == 0) --count;
  int64_t nothing = 0;
  while (nothing < count - 1 && shares[nothing] == 0) ++nothing;
  if (nothing) std::copy(shares + nothing, shares + count, shares);
  return {first + nothing, count - nothing};
}

}  // namespace

int64_t tap_room(int64_t from, int64_t to) { return 2 * int64_t(std::ceil(line_of(from, to).support)) + 1; }

int64_t find_taps(int64_t from, int64_t to, int64_t begin, int64_t n, int64_t room, int32_t* first, int32_t* count,
                  int32_t* shares) {
  const Line line = line_of(from, to);
  constexpr int64_t kFew = 64;
  double few[kFew];
  std::vector<double> many(size_t(room > kFew ? room : 0));
  double* const share = room > kFew ? many.data() : few;
  int64_t most = 1;
  for (int64_t i = 0; i < n; ++i, shares += room) {
    const TapRange range = tap(line, begin + i, share, shares);
    std::fill(shares + range.count, shares + room, 0);
    first[i] = int32_t(range.first), count[i] = int32_t(range.count);
    most = std::max(most, range.count);
  }
  return most;
}

}  // namespace udskd
