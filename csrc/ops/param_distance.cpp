#include "core/param_distance.h"

#include "ops/checks.h"
#include "ops/operators.h"
#include "ops/run.h"

namespace trajmatch {

std::tuple<Tensor, Tensor> param_distance(const Tensor& student, const Tensor& target,
                                          const Tensor& start) {
  const Check check("param_distance");
  check.floating(student, "student");
  check.dim(student, "student", 1);
  check.same(target, "target", student, "student");
  check.same(start, "start", student, "student");
  check.that(student.numel() > 0, "student", "have at least one element", "none");

  const Device device(student);
  const Tensor s = as_contiguous(student), t = as_contiguous(target), b = as_contiguous(start);
  Tensor loss = empty({}, student);
  Tensor sums = empty({2}, student, ScalarType::Double);
  const Tensor partial = empty({2 * kReductionBlocks}, student, ScalarType::Double);
  with_dtype(student, [&](auto type) {
    using T = decltype(type);
    run(ParamDistance<T>{student.numel(), read<T>(s), read<T>(t), read<T>(b),
                         write<double>(partial), write<double>(sums), write<T>(loss)},
        device);
  });
  return {loss, sums};
}

std::tuple<Tensor, Tensor, Tensor> param_distance_backward(const Tensor& grad_loss,
                                                           const Tensor& student,
                                                           const Tensor& target,
                                                           const Tensor& start,
                                                           const Tensor& sums) {
  const Check check("param_distance_backward");
  check.floating(student, "student");
  check.dim(student, "student", 1);
  check.same(target, "target", student, "student");
  check.same(start, "start", student, "student");
  check.same(grad_loss, "grad_loss", student, "student", {});
  check.device(sums, "sums", student, "student");
  check.dtype(sums, "sums", ScalarType::Double);
  check.shape(sums, "sums", {2});

  const Device device(student);
  const Tensor s = as_contiguous(student), t = as_contiguous(target), b = as_contiguous(start);
  const Tensor d = as_contiguous(sums);
  Tensor grad_student = empty(sizes_of(student), student);
  Tensor grad_target = empty(sizes_of(student), student);
  Tensor grad_start = empty(sizes_of(student), student);
  with_dtype(student, [&](auto type) {
    using T = decltype(type);
    run(ParamDistanceBackward<T>{student.numel(), read<T>(s), read<T>(t), read<T>(b),
                                 read<double>(d), read<T>(grad_loss), write<T>(grad_student),
                                 write<T>(grad_target), write<T>(grad_start)},
        device);
  });
  return {grad_student, grad_target, grad_start};
}

}  // namespace trajmatch
