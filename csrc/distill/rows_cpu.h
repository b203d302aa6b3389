// The row kernels of the CPU at one SIMD level. No include guard: distill_cpu.cpp includes this file once for every
// level, inside a namespace of that level's name and under its target options, so that the compiler vectorises the same
// source for each.

// e^x for x <= 0 in 2^-126..1, to 1.01 ulp; 0 below that. Vectorises, which the library's expf does not.
inline float exponential(float x) {
  const float shifter = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which is left in the low bits
  const float shifted_n = x * 1.44269504f + shifter, n = shifted_n - shifter;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float poly = 1.9875691500e-4f;
  poly = poly * r + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  const uint32_t exponent = (__builtin_bit_cast(uint32_t, shifted_n) << 23) + 0x3f800000u;
  const float e = (poly * r * r + r + 1.f) * __builtin_bit_cast(float, exponent);
  return x < -87.f ? 0.f : e;  // a NaN fails the comparison and stays
}

inline double exponential(double x) { return __builtin_exp(x); }
inline float logarithm(float x) { return __builtin_logf(x); }
inline double logarithm(double x) { return __builtin_log(x); }

// Sixteen independent partial results: the compiler may vectorise them, since no addition is reordered.
template <class Acc>
struct Lanes {
  static constexpr int kWidth = 16;

  template <class F>
  Acc max(int64_t n, F f) const {
    Acc best[kWidth];
    for (int l = 0; l < kWidth; ++l) best[l] = -Acc(INFINITY);
    int64_t c = 0;
    for (; c + kWidth <= n; c += kWidth) {
      for (int l = 0; l < kWidth; ++l) {
        const Acc x = f(c + l);
        best[l] = x > best[l] ? x : best[l];
      }
    }
    for (int l = 0; c < n; ++c, ++l) best[l] = f(c) > best[l] ? f(c) : best[l];
    for (int l = 1; l < kWidth; ++l) best[0] = best[l] > best[0] ? best[l] : best[0];
    return best[0];
  }

  template <int N, class F>
  void sum(int64_t n, F f, Acc (&sums)[N]) const {
    Acc partial[N][kWidth] = {};
    int64_t c = 0;
    for (; c + kWidth <= n; c += kWidth) {
      for (int l = 0; l < kWidth; ++l) {
        Acc terms[N];
        f(c + l, terms);
        for (int k = 0; k < N; ++k) partial[k][l] += terms[k];
      }
    }
    for (int l = 0; c < n; ++c, ++l) {
      Acc terms[N];
      f(c, terms);
      for (int k = 0; k < N; ++k) partial[k][l] += terms[k];
    }
    for (int k = 0; k < N; ++k) {
      for (int half = kWidth / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) partial[k][l] += partial[k][l + half];
      sums[k] = partial[k][0];
    }
  }

  template <class F>
  void blocks(int64_t n, F f) const {
    int64_t c = 0;
    for (; c + kWidth <= n; c += kWidth) f(c, std::integral_constant<int, kWidth>());
    for (; c < n; ++c) f(c, std::integral_constant<int, 1>());
  }
};

template <class Acc>
struct Values {
  const Acc* data;
  Acc operator()(int64_t c) const { return data[c]; }
};

#include "row_math.h"

template <class Acc, class In>
void widen(const void* from, int64_t n, Acc* to) {
  const In* in = static_cast<const In*>(from);
  for (int64_t c = 0; c < n; ++c) to[c] = static_cast<Acc>(in[c]);
}

template <class In>
const void* row_start(const Matrix& m, int64_t row) {
  return static_cast<const In*>(m.data) + row * m.stride;
}

// One row in the arithmetic's dtype: in place if it is so already, else converted into scratch.
template <class Acc>
Values<Acc> load_row(const Matrix& m, int64_t row, int64_t n, Acc* scratch) {
  switch (m.dtype) {
    case ScalarType::Double:
      if constexpr (std::is_same_v<Acc, double>) return {static_cast<const Acc*>(row_start<double>(m, row))};
      widen<Acc, double>(row_start<double>(m, row), n, scratch);
      break;
    case ScalarType::Float:
      if constexpr (std::is_same_v<Acc, float>) return {static_cast<const Acc*>(row_start<float>(m, row))};
      widen<Acc, float>(row_start<float>(m, row), n, scratch);
      break;
    case ScalarType::Half:
      widen<Acc, torch::headeronly::Half>(row_start<torch::headeronly::Half>(m, row), n, scratch);
      break;
    default:
      widen<Acc, torch::headeronly::BFloat16>(row_start<torch::headeronly::BFloat16>(m, row), n, scratch);
  }
  return {scratch};
}

template <class Acc, class Out>
void narrow(const Acc* from, int64_t n, void* to, int64_t row) {
  Out* out = static_cast<Out*>(to) + row * n;
  for (int64_t c = 0; c < n; ++c) out[c] = static_cast<Out>(from[c]);
}

template <class Acc>
void store_row(const Acc* from, int64_t n, void* to, int64_t row, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return narrow<Acc, double>(from, n, to, row);
    case ScalarType::Float:
      return narrow<Acc, float>(from, n, to, row);
    case ScalarType::Half:
      return narrow<Acc, torch::headeronly::Half>(from, n, to, row);
    default:
      return narrow<Acc, torch::headeronly::BFloat16>(from, n, to, row);
  }
}

// The rows of a problem as the kernels read them, with the scratch that conversions need.
template <class Acc>
struct Rows {
  const Problem& p;
  std::vector<Acc> scratch;
  Values<Acc> teacher{}, a{}, b{}, target{};

  explicit Rows(const Problem& problem) : p(problem), scratch(size_t(5 * problem.classes)) {}

  void load(int64_t row) {
    const int64_t n = p.classes;
    if (p.teacher) teacher = load_row<Acc>(p.teacher, row, n, &scratch[0]);
    a = load_row<Acc>(p.a, row, n, &scratch[size_t(n)]);
    if (p.b) b = load_row<Acc>(p.b, row, n, &scratch[size_t(2 * n)]);
    if (p.target) target = load_row<Acc>(p.target, row, n, &scratch[size_t(3 * n)]);
  }
  Acc* gradient() { return &scratch[size_t(4 * p.classes)]; }
};

template <class Acc>
void forward_rows(const Problem& p, int64_t begin, int64_t end, void* saved) {
  const Lanes<Acc> team;
  Rows<Acc> rows(p);
  for (int64_t row = begin; row < end; ++row) {
    Acc* out = static_cast<Acc*>(saved) + row * kColumns;
    std::fill(out, out + kColumns, Acc(0));
    if (p.labels && p.labels[row] == p.ignore_index) continue;
    rows.load(row);
    if (p.teacher) out[kMaxT] = team.max(p.classes, rows.teacher);
    out[kMaxA] = team.max(p.classes, rows.a);
    if (p.b) out[kMaxB] = team.max(p.classes, rows.b);
    row_statistics<Acc>(team, p, row, shifted<Acc>(rows.teacher, out[kMaxT]), shifted<Acc>(rows.a, out[kMaxA]),
                        shifted<Acc>(rows.b, out[kMaxB]), target_of<Acc>(p, row, rows.target), out);
    out[kShare] = 1;
  }
}

template <class Acc>
void student_rows(const Problem& p, int64_t row, Rows<Acc>& rows, const Acc* s, Acc share, bool is_b) {
  const auto teacher = shifted<Acc>(rows.teacher, s[kMaxT]);
  const auto x = shifted<Acc>(is_b ? rows.b : rows.a, s[is_b ? kMaxB : kMaxA]);
  const auto other = shifted<Acc>(is_b ? rows.a : rows.b, s[is_b ? kMaxA : kMaxB]);
  const auto y = target_of<Acc>(p, row, rows.target);
  const StudentScales<Acc> scales = student_scales<Acc>(p, row, s, share, is_b);
  const Acc inverse = Acc(1 / p.temperature), inverse_peer = Acc(1 / p.peer_temperature);
  Acc* out = rows.gradient();
  Lanes<Acc>().blocks(p.classes, [=](int64_t c, auto width) {
    student_gradient<Acc>(out + c, c, width, scales, x, teacher, other, y, inverse, inverse_peer);
  });
}

template <class Acc>
void teacher_rows(const Problem& p, int64_t row, Rows<Acc>& rows, const Acc* s, Acc share) {
  const auto teacher = shifted<Acc>(rows.teacher, s[kMaxT]), a = shifted<Acc>(rows.a, s[kMaxA]),
             b = shifted<Acc>(rows.b, s[kMaxB]);
  const Acc scale = share * value<Acc>(p.kd, row) * s[kWeight] * Acc(p.temperature), inverse = Acc(1 / p.temperature);
  Acc* out = rows.gradient();
  for (int64_t c = 0; c < p.classes; ++c) {
    out[c] = p.has_kd() ? teacher_gradient<Acc>(c, teacher, a, inverse, s[kSumT], s[kSumA], s[kKlTA], scale) : Acc(0);
    if (p.has_kd() && p.b) out[c] += teacher_gradient<Acc>(c, teacher, b, inverse, s[kSumT], s[kSumB], s[kKlTB], scale);
  }
}

template <class Acc>
void backward_rows(const Problem& p, int64_t begin, int64_t end, const Backward& to) {
  Rows<Acc> rows(p);
  const int64_t n = p.classes;
  for (int64_t row = begin; row < end; ++row) {
    const Acc* s = static_cast<const Acc*>(to.saved) + row * kColumns;
    const Acc g = static_cast<const Acc*>(to.grad_loss)[row * to.grad_stride], share = g * s[kShare];
    if (to.coefficients) {
      Acc c[kComponents], *out = static_cast<Acc*>(to.coefficients) + 3 * row;
      row_components<Acc>(p, s, c);
      for (int k = 0; k < 3; ++k) out[k] = s[kShare] == 0 ? Acc(0) : share * (c[2 * k] + c[2 * k + 1]);
    }
    if (s[kShare] == 0) {  // ignored: zeros, whatever the logits hold
      std::fill_n(rows.gradient(), n, Acc(0));
    } else {
      rows.load(row);
    }
    if (to.teacher) {
      if (s[kShare] != 0) teacher_rows<Acc>(p, row, rows, s, share);
      store_row(rows.gradient(), n, to.teacher, row, p.teacher.dtype);
    }
    if (to.a) {
      if (s[kShare] != 0) student_rows<Acc>(p, row, rows, s, share, false);
      store_row(rows.gradient(), n, to.a, row, p.a.dtype);
    }
    if (to.b) {
      if (s[kShare] != 0) student_rows<Acc>(p, row, rows, s, share, true);
      store_row(rows.gradient(), n, to.b, row, p.b.dtype);
    }
  }
}

void forward(const Problem& p, int64_t begin, int64_t end, void* saved) {
  p.wide ? forward_rows<double>(p, begin, end, saved) : forward_rows<float>(p, begin, end, saved);
}

void backward(const Problem& p, int64_t begin, int64_t end, const Backward& to) {
  p.wide ? backward_rows<double>(p, begin, end, to) : backward_rows<float>(p, begin, end, to);
}
