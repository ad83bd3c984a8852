#include "ops/student.h"

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "ops/threads.h"

namespace trajmatch {

namespace {

// Tapes live as long as the graph that may go back over them, and come back here.
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

// Never destroyed: tensors may outlive everything at the end of the program.
TapePool& tape_pool() {
  static TapePool* pool = new TapePool;
  return *pool;
}

bool by_layers(const Network& network, bool cuda) { return cuda || network.blocks.empty(); }

template <class T>
StudentBatch<T> batch_of(const StudentProblem& problem) {
  const bool soft = problem.soft_labels(),
             hard = problem.loss == StudentLoss::kCrossEntropy && !soft;
  return {problem.batch(),
          read<T>(problem.images),
          problem.loss,
          problem.scale,
          hard ? read<int64_t>(problem.labels) : nullptr,
          soft ? read<T>(problem.labels) : nullptr};
}

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
Student<T>::Student(const Network& network, const Tensor& like) : network_(network) {
  if (by_layers(network, on_cuda(like))) layers_.emplace(network, like);
}

template <class T>
int64_t Student<T>::tape_size(int64_t batch) const {
  return layers_ ? LayerStudent<T>::tape_size(network_, batch)
                 : cpu::student_tape_size<T>(network_, batch);
}

template <class T>
int64_t Student<T>::tape_size(const Network& network, int64_t batch, bool cuda) {
  return by_layers(network, cuda) ? LayerStudent<T>::tape_size(network, batch)
                                  : cpu::student_tape_size<T>(network, batch);
}

template <class T>
void Student<T>::gradient(const StudentProblem& problem, const Tensor& loss,
                          const Tensor& grad_theta, const OptionalTensor& grad_images,
                          const OptionalTensor& grad_labels, const std::optional<VectorPart>& tape,
                          const OptionalTensor& statistics) {
  if (layers_) {
    return layers_->gradient(problem, loss, grad_theta, grad_images, grad_labels, tape, statistics);
  }
  const StudentGradient<T> call{&network_,
                                read<T>(problem.theta),
                                batch_of<T>(problem),
                                write<T>(loss),
                                write<T>(grad_theta),
                                write<T>(grad_images),
                                write<T>(grad_labels),
                                tape ? write<T>(*tape) : nullptr};
  cpu::student_gradient(call, torch::stable::get_num_threads(), on_threads, memory_of_thread());
}

template <class T>
void Student<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                              const VectorPart& directional, const Tensor& grad_theta,
                              const Tensor& grad_images, const OptionalTensor& grad_labels,
                              const std::optional<VectorPart>& tape) {
  if (layers_) {
    return layers_->gradient_jvp(problem, tangents, directional.tensor(), grad_theta, grad_images,
                                 grad_labels, tape);
  }
  const StudentGradientJvp<T> call{&network_,
                                   read<T>(problem.theta),
                                   batch_of<T>(problem),
                                   read<T>(tangents.theta),
                                   read<T>(tangents.images),
                                   read<T>(tangents.labels),
                                   write<T>(directional),
                                   write<T>(grad_theta),
                                   write<T>(grad_images),
                                   write<T>(grad_labels),
                                   tape ? read<T>(*tape) : nullptr};
  cpu::student_gradient_jvp(call, torch::stable::get_num_threads(), on_threads, memory_of_thread());
}

template class Student<float>;
template class Student<double>;

}  // namespace trajmatch
