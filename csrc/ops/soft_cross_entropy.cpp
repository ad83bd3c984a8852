#include "core/soft_cross_entropy.h"

#include "ops/checks.h"
#include "ops/operators.h"
#include "ops/run.h"

namespace trajmatch {

void check_labels(const Check& check, const Tensor& labels, const char* argument,
                  const Tensor& like, const char* like_name, int64_t batch, int64_t classes) {
  check.device(labels, argument, like, like_name);
  if (labels.scalar_type() == ScalarType::Long) {
    check.shape(labels, argument, {batch});
    // Reading the values on CUDA would wait for the device; the kernel turns bad labels into NaN.
    if (labels.is_cuda()) return;
    const Tensor values = as_contiguous(labels);
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t label = read<int64_t>(values)[i];
      if (label >= 0 && label < classes) continue;
      check.value_error(argument, "lie in [0, " + std::to_string(classes) + ")",
                        std::to_string(label));
    }
  } else {
    check.dtype(labels, argument, like.scalar_type());
    check.shape(labels, argument, {batch, classes});
  }
}

namespace {

bool soft(const Tensor& labels) { return labels.scalar_type() != ScalarType::Long; }

void check_inputs(const Check& check, const Tensor& logits, const Tensor& targets) {
  check.floating(logits, "logits");
  check.dim(logits, "logits", 2);
  check.that(logits.numel() > 0, "logits", "have at least one row and one class",
             text(sizes_of(logits)));
  check_labels(check, targets, "targets", logits, "logits", logits.size(0), logits.size(1));
}

template <class T>
SoftCrossEntropyInputs<T> inputs(const Tensor& logits, const Tensor& targets,
                                 const OptionalTensor& grad_loss) {
  return {logits.size(0),
          logits.size(1),
          1.0,
          read<T>(grad_loss),
          read<T>(logits),
          soft(targets) ? nullptr : read<int64_t>(targets),
          soft(targets) ? read<T>(targets) : nullptr};
}

}  // namespace

Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets) {
  check_inputs(Check("soft_cross_entropy"), logits, targets);
  const Device device(logits);
  const Tensor z = as_contiguous(logits), t = as_contiguous(targets);
  Tensor loss = empty({}, logits);
  const Tensor rows = empty({logits.size(0)}, logits);
  with_dtype(logits, [&](auto type) {
    using T = decltype(type);
    run(SoftCrossEntropyForward<T>{inputs<T>(z, t, std::nullopt), write<T>(rows), write<T>(loss)},
        device);
  });
  return loss;
}

std::tuple<Tensor, Tensor> soft_cross_entropy_backward(const Tensor& grad_loss,
                                                       const Tensor& logits,
                                                       const Tensor& targets) {
  const Check check("soft_cross_entropy_backward");
  check_inputs(check, logits, targets);
  check.same(grad_loss, "grad_loss", logits, "logits", {});
  const Device device(logits);
  const Tensor z = as_contiguous(logits), t = as_contiguous(targets);
  Tensor grad_logits = empty(sizes_of(logits), logits);
  Tensor grad_targets = empty(soft(targets) ? sizes_of(logits) : Ints{0}, logits);
  with_dtype(logits, [&](auto type) {
    using T = decltype(type);
    run(SoftCrossEntropyBackward<T>{inputs<T>(z, t, grad_loss), write<T>(grad_logits),
                                    soft(targets) ? write<T>(grad_targets) : nullptr},
        device);
  });
  return {grad_logits, grad_targets};
}

std::tuple<Tensor, Tensor, Tensor> soft_cross_entropy_backward_tangent(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& targets,
    const OptionalTensor& logits_tangent, const OptionalTensor& targets_tangent) {
  const Check check("soft_cross_entropy_backward_tangent");
  check_inputs(check, logits, targets);
  check.same(grad_loss, "grad_loss", logits, "logits", {});
  if (logits_tangent) check.same(*logits_tangent, "logits_tangent", logits, "logits");
  if (targets_tangent) check.same(*targets_tangent, "targets_tangent", logits, "logits");
  check.that(!targets_tangent || soft(targets), "targets_tangent", "be absent for class indices",
             "a tensor");
  const Device device(logits);
  const Tensor z = as_contiguous(logits), t = as_contiguous(targets);
  const OptionalTensor zt = as_contiguous(logits_tangent);
  const OptionalTensor tt = as_contiguous(targets_tangent);
  Tensor directional = empty({}, logits);
  Tensor grad_logits = empty(sizes_of(logits), logits);
  Tensor grad_targets = empty(soft(targets) ? sizes_of(logits) : Ints{0}, logits);
  const Tensor rows = empty({logits.size(0)}, logits);
  with_dtype(logits, [&](auto type) {
    using T = decltype(type);
    run(SoftCrossEntropyBackwardTangent<T>{inputs<T>(z, t, grad_loss), read<T>(zt), read<T>(tt),
                                           write<T>(rows), write<T>(directional),
                                           write<T>(grad_logits),
                                           soft(targets) ? write<T>(grad_targets) : nullptr},
        device);
  });
  return {directional, grad_logits, grad_targets};
}

}  // namespace trajmatch
