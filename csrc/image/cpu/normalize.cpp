// The operator normalize_views on the CPU: checks, the choice of the SIMD level, and the threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../../common/registration.h"
#include "../../common/simd.h"
#include "../../common/storage.h"
#include "../../common/tensor.h"
#include "normalize_params.h"
#include "normalize_scalar.h"

namespace udskd {
namespace {

#if UDSKD_X86
const NormalizeLevel& level() {
  return simd_level() == kAvx512 ? avx512::kNormalizeLevel
         : simd_level() == kAvx2 ? avx2::kNormalizeLevel
                                 : baseline::kNormalizeLevel;
}
#else
void mirror(const uint8_t* from, int64_t pixels, uint8_t* to) { mirror_from(0, from, pixels, to); }
void normalize(const NormalizeParams& line) { normalize_from(0, line); }
void split(const float* from, int64_t pixels, float* planes, int64_t plane) {
  for (int64_t i = 0; i < 3 * pixels; ++i) planes[i % 3 * plane + i / 3] = from[i];
}

constexpr NormalizeLevel kScalar{mirror, normalize, split};
const NormalizeLevel& level() { return kScalar; }
#endif

constexpr int64_t kPattern = 3 * 16;  // floats of three of the widest registers
constexpr int64_t kGrain = 49152;     // floats for which another thread pays off (unmeasured)

struct NormalizeBatch {
  const uint8_t* pixels;
  const bool* flips;  // or null
  const float* mix;   // or null
  float factor[kPattern], offset[kPattern];
  float* out;
  int64_t height, width;
  bool channels_last;
};

// Normalises rows of the images, in one thread.
class Rows {
 public:
  explicit Rows(const NormalizeBatch& images)
      : images_(images),
        mirrored_(size_t(2 * mirrored_bytes())),
        line_(size_t(images.channels_last ? 0 : 3 * images.width)) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) normalize(row / images_.height, row % images_.height);
  }

 private:
  const NormalizeBatch& images_;
  const NormalizeLevel& level_ = level();
  std::vector<uint8_t> mirrored_;
  std::vector<float> line_;

  int64_t mirrored_bytes() const { return 3 * images_.width + kMirrorSlack; }

  const uint8_t* source(int64_t image, int64_t y, uint8_t* mirrored) {
    const uint8_t* const from = images_.pixels + (image * images_.height + y) * 3 * images_.width;
    if (!images_.flips || !images_.flips[image]) return from;
    level_.mirror(from, images_.width, mirrored);
    return mirrored;
  }

  void normalize(int64_t image, int64_t y) {
    const int64_t width = images_.width, plane = images_.height * width;
    float* const out = images_.out + 3 * image * plane;
    const bool mixed = images_.mix;
    const NormalizeParams line{source(image, y, mirrored_.data()),
                               mixed ? source(image + 1, y, mirrored_.data() + mirrored_bytes()) : nullptr,
                               mixed ? images_.mix[image] : 1,
                               3 * width,
                               images_.factor,
                               images_.offset,
                               images_.channels_last ? out + y * 3 * width : line_.data()};
    level_.normalize(line);
    if (!images_.channels_last) level_.split(line.out, width, out + y * width, plane);
  }
};

void check(const Tensor& x, ScalarType dtype, int64_t size, const char* what) {
  check_given("normalize_views: an argument", x);
  STD_TORCH_CHECK(x.is_cpu() && x.scalar_type() == dtype && x.dim() == 1 && x.size(0) == size && x.is_contiguous(),
                  "normalize_views: ", what, " [", size, "]");
  check_storage("normalize_views: an argument", x);
}

// The stride of a dimension of one element is ignored.
bool has_strides(const Tensor& x, const int64_t (&strides)[4]) {
  for (int64_t d = 0; d < 4; ++d)
    if (x.size(d) > 1 && x.stride(d) != strides[d]) return false;
  return true;
}

void check_images(const Tensor& pixels, const Tensor& out, bool mixed) {
  check_given("normalize_views: pixels", pixels), check_given("normalize_views: out", out);
  STD_TORCH_CHECK(pixels.is_cpu() && pixels.scalar_type() == ScalarType::Byte && pixels.dim() == 4 &&
                      pixels.size(3) == 3 && pixels.is_contiguous(),
                  "normalize_views: pixels must be contiguous uint8 [rows, height, width, 3] on the CPU");
  const int64_t images = out.dim() == 4 ? out.size(0) : 0, height = pixels.size(1), width = pixels.size(2);
  STD_TORCH_CHECK(out.is_cpu() && out.scalar_type() == ScalarType::Float && out.dim() == 4 && out.size(1) == 3 &&
                      out.size(2) == height && out.size(3) == width,
                  "normalize_views: out must be float32 [images, 3, ", height, ", ", width, "] on the CPU");
  const int64_t rows = images + mixed;  // an empty batch may have no row at all
  STD_TORCH_CHECK(pixels.size(0) == rows || (images == 0 && pixels.size(0) == 0), "normalize_views: ", images,
                  mixed ? " mixed" : "", " images are made of ", rows, " rows of pixels, but there are ",
                  pixels.size(0));
  check_storage("normalize_views: pixels", pixels), check_storage("normalize_views: out", out);
}

void normalize_views(Tensor pixels, Optional flips, Optional mix, Tensor factor, Tensor offset, Tensor out) {
  check_images(pixels, out, mix.has_value());
  const int64_t images = out.size(0), height = out.size(2), width = out.size(3), plane = height * width;
  if (flips) check(*flips, ScalarType::Bool, pixels.size(0), "flips must be contiguous bool");
  if (mix) check(*mix, ScalarType::Float, images, "mix must be contiguous float32");
  check(factor, ScalarType::Float, 3, "factor must be contiguous float32");
  check(offset, ScalarType::Float, 3, "offset must be contiguous float32");
  if (out.numel() == 0) return;
  const bool channels_last = has_strides(out, {3 * plane, 1, 3 * width, 3});
  STD_TORCH_CHECK(channels_last || has_strides(out, {3 * plane, plane, width, 1}),
                  "normalize_views: out must be contiguous or channels_last");
  NormalizeBatch batch{pixels.const_data_ptr<uint8_t>(), nullptr, nullptr, {},           {},
                       out.mutable_data_ptr<float>(),    height,  width,   channels_last};
  if (flips) batch.flips = flips->const_data_ptr<bool>();
  if (mix) batch.mix = mix->const_data_ptr<float>();
  for (int64_t i = 0; i < kPattern; ++i)
    batch.factor[i] = factor.const_data_ptr<float>()[i % 3], batch.offset[i] = offset.const_data_ptr<float>()[i % 3];
  const int64_t grain = std::max<int64_t>(1, kGrain / (3 * width));
  torch::stable::parallel_for(0, images * height, grain,
                              [&](int64_t begin, int64_t end) { Rows(batch).run(begin, end); });
}

}  // namespace
}  // namespace udskd

UDSKD_IMPLEMENTATIONS(UDSKD_OPERATORS, UDSKD_KEY(CPU), m) {
  m.impl("normalize_views", TORCH_BOX(&udskd::normalize_views));
}
