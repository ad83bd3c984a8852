#include "ops/student.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ops/threads.h"

namespace trajmatch {

namespace {

// Memory for tapes on the CPU. A tape lives as long as the graph that may run backwards over it;
// then its memory returns to this pool for the next tape.
class TapePool {
 public:
  std::unique_ptr<cpu::Pages> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<cpu::Pages>();
    std::unique_ptr<cpu::Pages> pages = std::move(free_.back());
    free_.pop_back();
    return pages;
  }
  void give_back(cpu::Pages* pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace_back(pages);
  }
  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<cpu::Pages>> free_;
};

// Never destroyed, because tensors may outlive static objects at the end of the program.
TapePool& tape_pool() {
  static TapePool* pool = new TapePool;
  return *pool;
}

// One trajectory's part of a tensor, or of a vector, that is given.
OptionalTensor part_of(const OptionalTensor& all, int64_t trajectory, int64_t trajectories) {
  if (!all) return std::nullopt;
  return trajmatch::part_of(*all, trajectory, trajectories);
}

VectorPart part_of(VectorPart all, int64_t trajectory, int64_t trajectories) {
  all.size /= trajectories;
  all.begin += trajectory * all.size;
  return all;
}

std::optional<VectorPart> part_of(const std::optional<VectorPart>& all, int64_t trajectory,
                                  int64_t trajectories) {
  if (!all) return std::nullopt;
  return part_of(*all, trajectory, trajectories);
}

// True if the network runs layer by layer: always on CUDA, on the CPU if it is not a chain.
bool by_layers(const Network& network, bool cuda) { return cuda || network.blocks.empty(); }

}  // namespace

cpu::EngineMemory& memory_of_thread() {
  static thread_local cpu::EngineMemory memory;
  return memory;
}

void on_threads(int64_t count, const cpu::ParallelBody& body) {
  in_parallel(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

void release_student_memory() {
  memory_of_thread().release();
  tape_pool().clear();
}

Tensor empty_tape(int64_t elements, const Tensor& like) {
  if (elements == 0 || on_cuda(like)) return empty({elements}, like);
  const int64_t size = like.scalar_type() == ScalarType::Double ? sizeof(double) : sizeof(float);
  std::unique_ptr<cpu::Pages> pages = tape_pool().take();
  void* data = pages->reserve(elements * size);
  const Ints sizes{elements}, strides{1};
  return torch::stable::from_blob(
      data, ref(sizes), ref(strides), like.device(), like.scalar_type(),
      [owned = pages.release()](void*) { tape_pool().give_back(owned); });
}

template <class T>
Student<T>::Student(const Network& network, const Tensor& like, int64_t trajectories)
    : network_(network) {
  const bool cuda = on_cuda(like);
  if (by_layers(network, cuda)) layers_.emplace(network, like, cuda ? trajectories : 1);
}

template <class T>
int64_t Student<T>::tape_size(const Network& network, int64_t batch, int64_t trajectories,
                              bool cuda) {
  if (cuda) return LayerStudent<T>::tape_size(network, batch, trajectories);
  return trajectories * (by_layers(network, false) ? LayerStudent<T>::tape_size(network, batch, 1)
                                                   : cpu::student_tape_size<T>(network, batch));
}

template <class T>
template <class Body>
bool Student<T>::each_trajectory(const StudentProblem& problem, const Body& body) {
  const int64_t trajectories = problem.trajectories;
  if (trajectories == 1 || on_cuda(problem.images)) return false;
  for (int64_t k = 0; k < trajectories; ++k) {
    StudentProblem one = problem;
    one.trajectories = 1;
    one.theta = part_of(problem.theta, k, trajectories);
    one.images = trajmatch::part_of(problem.images, k, trajectories);
    one.labels = part_of(problem.labels, k, trajectories);
    body(k, one);
  }
  return true;
}

template <class T>
StudentCall<T> Student<T>::call_on(const Tensor& images, const T* theta) const {
  static const cpu::InParallel in_parallel = on_threads;
  StudentCall<T> call{};
  call.network = &network_;
  call.batch.size = images.size(0);
  call.batch.images = read<T>(images);
  call.theta = theta;
  call.parts = std::min<int64_t>(torch::stable::get_num_threads(), images.size(0));
  call.in_parallel = &in_parallel;
  call.memory = &memory_of_thread();
  return call;
}

template <class T>
StudentCall<T> Student<T>::call_on(const StudentProblem& problem, T* loss, const Tensor& grad_theta,
                                   const OptionalTensor& grad_images,
                                   const OptionalTensor& grad_labels,
                                   const std::optional<VectorPart>& tape) const {
  StudentCall<T> call = call_on(problem.images, read<T>(problem.theta));
  call.batch.loss = problem.loss;
  call.batch.scale = problem.scale;
  if (problem.soft_labels()) {
    call.batch.target = read<T>(problem.labels);
  } else if (problem.loss == StudentLoss::kCrossEntropy) {
    call.batch.index = read<int64_t>(problem.labels);
  }
  call.loss = loss;
  call.grad_theta = write<T>(grad_theta);
  call.grad_images = write<T>(grad_images);
  call.grad_target = write<T>(grad_labels);
  call.tape = tape ? write<T>(*tape) : nullptr;
  return call;
}

template <class T>
Tensor Student<T>::logits(const Tensor& theta, const Tensor& images) {
  if (layers_) return layers_->logits(theta, images);
  const Tensor result = empty({images.size(0), network_.num_classes}, theta);
  StudentCall<T> call = call_on(images, read<T>(theta));
  call.pass = StudentPass::kLogits;
  call.logits = write<T>(result);
  cpu::run_student(call);
  return result;
}

template <class T>
void Student<T>::gradient(const StudentProblem& problem, const OptionalTensor& loss,
                          const Tensor& grad_theta, const OptionalTensor& grad_images,
                          const OptionalTensor& grad_labels, const std::optional<VectorPart>& tape,
                          const OptionalTensor& statistics) {
  const int64_t count = problem.trajectories;
  if (each_trajectory(problem, [&](int64_t k, const StudentProblem& one) {
        gradient(one, part_of(loss, k, count), part_of(grad_theta, k, count),
                 part_of(grad_images, k, count), part_of(grad_labels, k, count),
                 part_of(tape, k, count), part_of(statistics, k, count));
      })) {
    return;
  }
  if (layers_) {
    return layers_->gradient(problem, loss, grad_theta, grad_images, grad_labels, tape, statistics);
  }
  // A chain has no batch norms, so the CPU engine has no statistics to write.
  StudentCall<T> call =
      call_on(problem, write<T>(loss), grad_theta, grad_images, grad_labels, tape);
  call.pass = StudentPass::kGradient;
  cpu::run_student(call);
}

template <class T>
void Student<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                              const VectorPart& directional, const Tensor& grad_theta,
                              const Tensor& grad_images, const OptionalTensor& grad_labels,
                              const std::optional<VectorPart>& tape) {
  const int64_t count = problem.trajectories;
  if (each_trajectory(problem, [&](int64_t k, const StudentProblem& one) {
        const StudentTangents along{part_of(tangents.theta, k, count),
                                    part_of(tangents.images, k, count),
                                    part_of(tangents.labels, k, count)};
        gradient_jvp(one, along, part_of(directional, k, count), part_of(grad_theta, k, count),
                     part_of(grad_images, k, count), part_of(grad_labels, k, count),
                     part_of(tape, k, count));
      })) {
    return;
  }
  if (layers_) {
    return layers_->gradient_jvp(problem, tangents, directional.tensor(), grad_theta, grad_images,
                                 grad_labels, tape);
  }
  StudentCall<T> call =
      call_on(problem, write<T>(directional), grad_theta, grad_images, grad_labels, tape);
  call.pass = StudentPass::kGradientJvp;
  call.theta_tangent = read<T>(tangents.theta);
  call.images_tangent = read<T>(tangents.images);
  call.target_tangent = read<T>(tangents.labels);
  cpu::run_student(call);
}

template class Student<float>;
template class Student<double>;

}  // namespace trajmatch
