// The views of images that the operators take, and their checks.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../common/storage.h"
#include "../common/tensor.h"

namespace udskd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kViewColumns = 8;
constexpr int64_t kMaxPixels = 1 << 24;  // of a line: exact in the float32 of Pillow's boxes, and far below 2^31

// A row of `views`; udskd/data/resize.py documents the fields.
struct View {
  int64_t left, top, right, bottom, width, height, x, y;
};
static_assert(sizeof(View) == kViewColumns * sizeof(int64_t));

struct Shape {
  int64_t height, width;
};

// `row` is the image's index in its batch. Every message begins with "crop_resize: ", which udskd/data/resize.py
// searches for.
inline void check_view(const View& v, const Shape& shape, int64_t size, int64_t row) {
  STD_TORCH_CHECK(shape.height >= 1 && shape.height <= kMaxPixels && shape.width >= 1 && shape.width <= kMaxPixels,
                  "crop_resize: image ", row, " is ", shape.height, " x ", shape.width, " pixels, expected 1 to ",
                  kMaxPixels, " a side");
  STD_TORCH_CHECK(0 <= v.left && v.left < v.right && v.right <= shape.width && 0 <= v.top && v.top < v.bottom &&
                      v.bottom <= shape.height,
                  "crop_resize: image ", row, " has the box (left ", v.left, ", top ", v.top, ", right ", v.right,
                  ", bottom ", v.bottom, "), which is empty or not within its ", shape.height, " x ", shape.width,
                  " pixels");
  STD_TORCH_CHECK(v.width >= 1 && v.width <= kMaxPixels && v.height >= 1 && v.height <= kMaxPixels,
                  "crop_resize: image ", row, " is to be resized to width ", v.width, ", height ", v.height,
                  ", expected 1 to ", kMaxPixels);
  STD_TORCH_CHECK(0 <= v.x && v.x <= v.width - size && 0 <= v.y && v.y <= v.height - size, "crop_resize: image ", row,
                  " has the window of ", size, " pixels at x ", v.x, ", y ", v.y, ", which is not within width ",
                  v.width, ", height ", v.height);
}

inline void check_out(const Tensor& out, int64_t dim, const char* shape) {
  check_given("crop_resize: out", out);
  STD_TORCH_CHECK(out.dim() == dim && out.size(dim - 1) == 3 && out.size(dim - 2) == out.size(dim - 3) &&
                      out.scalar_type() == ScalarType::Byte && out.is_contiguous(),
                  "crop_resize: out must be contiguous uint8 ", shape);
  check_storage("crop_resize: out", out);
}

inline void check_int64(const Tensor& x, const char* name, int64_t rows, int64_t columns) {
  check_given(name, x);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long && x.is_contiguous() && x.dim() == (columns ? 2 : 1) &&
                      x.size(0) == rows && (!columns || x.size(1) == columns),
                  "crop_resize: ", name, " must be contiguous int64 for ", rows, " images");
  check_storage(name, x);
}

// A batch of images, concatenated in `pixels`. `offsets` is on the same device, shapes and views are on the CPU.
struct Batch {
  const uint8_t* pixels;
  int64_t bytes;
  const int64_t* offsets;
  const Shape* shapes;
  const View* views;
  uint8_t* out;
  int64_t images, size;
};

inline Batch read_batch(const Tensor& pixels, const Tensor& offsets, const Tensor& shapes, const Tensor& views,
                        Tensor& out) {
  check_given("crop_resize: pixels", pixels);
  check_out(out, 4, "[images, size, size, 3]");
  const int64_t images = out.size(0);
  STD_TORCH_CHECK(pixels.scalar_type() == ScalarType::Byte && pixels.dim() == 1 && pixels.is_contiguous(),
                  "crop_resize: pixels must be contiguous uint8 [bytes]");
  check_storage("crop_resize: pixels", pixels);
  check_int64(offsets, "offsets", images, 0), check_int64(shapes, "shapes", images, 2);
  check_int64(views, "views", images, kViewColumns);
  STD_TORCH_CHECK(shapes.is_cpu() && views.is_cpu(), "crop_resize: shapes and views must be on the CPU");
  STD_TORCH_CHECK(offsets.device() == pixels.device() && out.device() == pixels.device(),
                  "crop_resize: offsets and out must be on the device of pixels");
  const Batch batch{pixels.const_data_ptr<uint8_t>(),
                    pixels.numel(),
                    offsets.const_data_ptr<int64_t>(),
                    static_cast<const Shape*>(shapes.const_data_ptr()),
                    static_cast<const View*>(views.const_data_ptr()),
                    out.mutable_data_ptr<uint8_t>(),
                    images,
                    out.size(1)};
  for (int64_t row = 0; row < images; ++row) check_view(batch.views[row], batch.shapes[row], batch.size, row);
  return batch;
}

}  // namespace udskd
