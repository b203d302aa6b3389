// Everything that is compiled once for each SIMD level. No include guard, for that reason.

// clang-format off: each needs those before it
#include "../cpu/native.h"
#include "../cpu/vector.h"
#include "../cpu/convert.h"
#include "../cpu/sweeps.h"
#include "../cpu/gradients.h"

inline float logarithm1(float x) { return __builtin_log1pf(x); }
inline double logarithm1(double x) { return __builtin_log1p(x); }
inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

#include "row_scalars.h"
#include "rows_cpu.h"
#include "row_sums_cpu.h"
#include "row_gradients_cpu.h"
#include "row_pass_cpu.h"
// clang-format on

constexpr Level kLevel{scratch_bytes, rows, wide_row, exponential_of};
