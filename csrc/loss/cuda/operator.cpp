// The operators on CUDA: from tensors to kernels.
#include "../operator.h"

#include <cmath>
#include <cstdlib>
#include <deque>
#include <optional>

#include "../../common/cuda/device.h"
#include "launch_api.h"

namespace udskd::cuda {

void launch_rows_float(const Plan& plan, Job& job, Call& call);
void launch_rows_bfloat16(const Plan& plan, Job& job, Call& call);
void launch_rows_half(const Plan& plan, Job& job, Call& call);
void launch_gradients_float(Job& job, Call& call);
void launch_gradients_bfloat16(Job& job, Call& call);
void launch_gradients_half(Job& job, Call& call);

void launch_rows(Format format, const Plan& plan, Job& job, Call& call) {
  constexpr decltype(&launch_rows_float) kLaunches[] = {launch_rows_float, launch_rows_bfloat16, launch_rows_half};
  kLaunches[format](plan, job, call);
}

void launch_gradients(Format format, Job& job, Call& call) {
  constexpr decltype(&launch_gradients_float) kLaunches[] = {launch_gradients_float, launch_gradients_bfloat16,
                                                             launch_gradients_half};
  kLaunches[format](job, call);
}

namespace {

// Keeps a tensor's device current during its lifetime. Scratch memory comes from PyTorch's allocator, which does not
// reuse it on this stream before the kernels have finished.
class TensorCall : public Call {
 public:
  TensorCall(const Tensor& like, const Problem& p) : like_(like), p_(p), on_(like) {
    device = on_.index(), stream = on_.stream(), limits = on_.limits();
  }
  void* memory(int64_t bytes) override {
    memory_.push_back(empty_like(like_, {(bytes + 7) / 8}, ScalarType::Double));
    DeviceScope::keep_for_replay(memory_.back());
    return memory_.back().mutable_data_ptr();
  }
  void check(const char* kernel) override { on_.check(kernel, p_.rows, p_.classes); }

 private:
  const Tensor& like_;
  const Problem& p_;
  DeviceScope on_;
  std::deque<Tensor> memory_;
};

// The format of all networks, if they share one for which the float kernels are compiled.
std::optional<Format> format_of(const Problem& p) {
  if (p.wide || (p.teacher && p.teacher.dtype != p.a.dtype)) return std::nullopt;
  if (p.a.dtype == ScalarType::Float) return kFloat;
  if (p.a.dtype == ScalarType::BFloat16) return kBFloat16;
  STD_TORCH_CHECK(p.a.dtype == ScalarType::Half, "the kernels do not read ", torch::headeronly::toString(p.a.dtype));
  return kHalf;
}

int squarings(int power) {
  for (int n = 0; n < 4; ++n)
    if (power == 1 << n) return n;
  return -1;
}

Job job_of(const Problem& p) {
  constexpr double kLog2E = 1.44269504088896340736;
  Job job{p, Terms(p, false, true), {}, nullptr};
  const Terms& terms = job.terms;
  job.scales = {float(kLog2E / terms.base),
                float(kLog2E / terms.teacher_base),
                float(terms.to_peer),
                float(terms.to_one),
                float(terms.to_spread),
                float(terms.base * kLn2),
                float(p.temperature),
                float(p.peer_temperature),
                float(1 - p.label_smoothing),
                float(p.label_smoothing / double(p.classes)),
                float(std::log(double(p.classes))),
                squarings(terms.one),
                terms.to_spread == 1 ? 0 : -1};
  return job;
}

Outputs run_rows(const Problem& p, const Tensor& like, Gradients* to) {
  TensorCall call(like, p);
  Outputs out = allocate(p, like, kColumns);
  Job job = job_of(p);
  job.saved = out.rows.mutable_data_ptr(), job.weight = out.weight.mutable_data_ptr();
  job.entropy = out.entropy.mutable_data_ptr(), job.loss = out.loss.mutable_data_ptr();
  job.components = out.components.mutable_data_ptr();
  if (to) job.to_teacher = pointer(to->teacher), job.to_a = pointer(to->a), job.to_b = pointer(to->b);
  const std::optional<Format> format = format_of(p);
  if (format && !job.coupled() && p.classes <= kMostClasses) {
    const char* const forced = std::getenv("UDSKD_CUDA_PLAN");
    launch_rows(*format, plan(p.rows, p.classes, *format, is_usual(job), call.limits, forced), job, call);
  } else {
    launch_careful_rows(job, call);
  }
  return out;
}

void run_gradients(const Problem& p, const void* grad_loss, int64_t grad_stride, const Tensor& saved, Gradients& to) {
  if (p.rows == 0) return;
  TensorCall call(saved, p);
  Job job = job_of(p);
  job.saved = const_cast<void*>(saved.const_data_ptr()), job.grad_loss = grad_loss, job.grad_stride = grad_stride;
  job.to_teacher = pointer(to.teacher), job.to_a = pointer(to.a), job.to_b = pointer(to.b);
  job.coefficients = pointer(to.coefficients);
  const std::optional<Format> format = format_of(p);
  format && !job.coupled() && p.classes <= kMostClasses ? launch_gradients(*format, job, call)
                                                        : launch_careful_gradients(job, call);
}

void backward_cuda(const Problem& p, const Tensor& grad_loss, const Tensor& saved, Gradients& to) {
  run_gradients(p, grad_loss.const_data_ptr(), grad_loss.dim() == 0 ? 0 : grad_loss.stride(0), saved, to);
}

// Normalized weights are known only after all rows: their gradients take a second pass.
Outputs forward_cuda(const Problem& p, const Tensor& like, Gradients& to) {
  const bool needed = pointer(to.teacher) || pointer(to.a) || pointer(to.b);
  const bool second_pass = needed && p.normalize_weights && p.teacher;
  Outputs out = run_rows(p, like, second_pass ? nullptr : &to);
  if (second_pass) run_gradients(p, nullptr, 0, out.rows, to);
  return out;
}

void scale_operator(Tensor grad_loss, Tensor rows, Tensor teacher, Tensor a, Tensor b) {
  check_given("rows", rows), check_given("teacher", teacher), check_given("student_a", a), check_given("student_b", b);
  const bool wide = rows.scalar_type() == ScalarType::Double;
  check_saved(rows, rows, arithmetic(wide), kColumns);
  check_per_row("grad_loss", grad_loss, rows, arithmetic(wide), true);
  STD_TORCH_CHECK(grad_loss.dim() == 0, "grad_loss must be one number, got ", described(grad_loss));
  rows = packed(rows);
  std::optional<Tensor> grad = grad_loss;
  make_readable(grad);
  ScaleJob job{rows.const_data_ptr(), grad->const_data_ptr(), {}, {}, rows.size(0), 0};
  Problem p;
  const std::pair<const char*, Tensor*> gradients[] = {{"teacher", &teacher}, {"student_a", &a}, {"student_b", &b}};
  for (int k = 0; k < 3; ++k) {
    auto& [name, gradient] = gradients[k];
    if (gradient->numel() == 0) continue;
    STD_TORCH_CHECK(gradient->dim() == 2 && gradient->size(0) == job.rows && gradient->is_contiguous() &&
                        (job.classes == 0 || gradient->size(1) == job.classes),
                    "the gradient of ", name, " must be contiguous [", job.rows, ", classes], got ",
                    described(*gradient));
    STD_TORCH_CHECK(is_floating(gradient->scalar_type()) && (wide || gradient->scalar_type() != ScalarType::Double) &&
                        is_aligned(*gradient, gradient->element_size()),
                    "the gradient of ", name, " cannot be scaled in place: ", described(*gradient));
    check_memory(name, *gradient, rows);
    job.gradients[k] = gradient->mutable_data_ptr(), job.dtypes[k] = gradient->scalar_type();
    p.classes = job.classes = gradient->size(1);
  }
  if (job.rows == 0 || job.classes == 0) return;
  p.rows = job.rows;
  TensorCall call(rows, p);
  launch_scale(job, wide, call);
}

}  // namespace
}  // namespace udskd::cuda

UDSKD_REGISTER(CUDA, udskd::cuda::forward_cuda, udskd::cuda::backward_cuda, udskd::kColumns)
UDSKD_REGISTER_SCALE(CUDA, udskd::cuda::scale_operator)
