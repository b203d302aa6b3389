// Everything that is compiled once for each SIMD level. No include guard, for that reason.

// clang-format off: each needs those before it
#include "../../common/cpu/native.h"
#include "../../common/cpu/vector.h"
#include "../../common/cpu/convert.h"
#include "sweeps.h"
#include "sweep_gradients.h"

inline float logarithm1(float x) { return __builtin_log1pf(x); }
inline double logarithm1(double x) { return __builtin_log1p(x); }
inline float exponential(float x) { return __builtin_expf(x); }
inline double exponential(double x) { return __builtin_exp(x); }

#include "../row_math.h"
#include "rows.h"
#include "row_sums.h"
#include "row_gradients.h"
#include "row_pass.h"
// clang-format on

constexpr Level kLevel{scratch_bytes, rows, wide_row, exponential_of};
