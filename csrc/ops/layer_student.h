// The student engine layer by layer, a whole batch at a time: the gradient of a network's loss in
// its flat parameters, and the directional derivative of that gradient, as one walk over the
// network each. So CUDA runs every network, and the CPU those that are no ConvNet. Activations are
// in channels-last.
//
// Convolutions are the library's; norm, activation and pooling, classifier, loss and everything
// else is core/. Blocks that ops/fused_blocks.h takes run there.
#pragma once

#include <optional>
#include <vector>

#include "core/classifier.h"
#include "ops/convolution.h"
#include "ops/fused_blocks.h"
#include "ops/network.h"
#include "ops/run.h"
#include "ops/student_problem.h"
#include "ops/workspace.h"

namespace trajmatch {

template <class T>
class LayerStudent {
 public:
  LayerStudent(const Network& network, const Tensor& like);

  // Elements of the tape of a batch: all that gradient computes and gradient_jvp reads again. With
  // it the latter walks forward and backward along the tangents alone.
  static int64_t tape_size(const Network& network, int64_t batch);

  // Writes the loss [] and its gradient [P]; the gradients of images [B, C, H, W] (channels-last)
  // and of soft labels [B, K], and the tape, where wanted.
  void gradient(const StudentProblem& problem, const Tensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                const std::optional<VectorPart>& tape);

  // Derivatives along the tangents of: the loss (one element), the gradient in theta [P], in the
  // images [B, C, H, W] (channels-last), and, where wanted, in the soft labels [B, K]. A tape is
  // that of gradient for the same problem; the tangents are then theta's alone.
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const Tensor& directional, const Tensor& grad_theta, const Tensor& grad_images,
                    const OptionalTensor& grad_labels, const std::optional<VectorPart>& tape);

 private:
  // Everything that one block keeps between the passes of one call.
  struct BlockState {
    Tensor weight;  // [C, in, 3, 3]
    OptionalTensor weight_tangent;
    OptionalTensor norm_weight, norm_bias, norm_weight_tangent, norm_bias_tangent;
    OptionalTensor input_tangent;  // of the convolution's input
    Tensor input;                  // [B, in, H, W]
    Tensor y_tangent, mean_tangent, projection;
  };
  // What the backward kernels write of a norm's parameters; all empty where it has none.
  struct NormGradients {
    OptionalTensor weight, bias;
    OptionalTensor partial;  // [B, 2, parameters]: the sums of each image
  };
  // Places of what gradient computes, in a tape or, where the next call may overwrite it, in the
  // workspace.
  struct Kept {
    std::vector<KeptBlock> blocks;
    Tensor logits, grad_logits;  // [B, K]
  };
  // Calls visit(name, block, member, sizes) for everything of Kept, in the order of a tape.
  template <class Visit>
  static void each_kept(const Network& network, int64_t batch, Kept& kept, const Visit& visit);

  OptionalTensor norm_parameters(const Tensor& theta, const Slice& slice, const Block& block,
                                 const char* name, size_t index);
  Tensor conv_weight_place(const Tensor& theta, size_t index) const;
  Tensor conv_weight(const Tensor& theta, const char* name, size_t index);
  OptionalTensor conv_bias(const Tensor& theta, size_t index) const;
  ClassifierShape classifier_shape() const;
  const T* classifier_weight(const Tensor& theta) const;
  const T* classifier_bias(const Tensor& theta) const;

  bool is_fused(size_t index) const { return fuses_ && fused_.takes(index); }
  bool comes_by_itself(const Tensor& member, size_t index) const;
  void begin(const StudentProblem& problem, const std::optional<VectorPart>& tape, bool is_new);
  void put(Tensor& kept, const Tensor& computed) const;
  void forward();
  Tensor forward_tangent(const StudentTangents& tangents);
  void write_loss(const StudentProblem& problem, const Tensor& loss,
                  const OptionalTensor& grad_labels);
  void classifier_backward();
  Tensor conv_bias_place(const Tensor& grad_theta, size_t index) const;
  NormGradients norm_gradients(const Tensor& grad_theta, size_t index);
  void finish_norm_gradients(const Tensor& grad_theta, size_t index,
                             const NormGradients& gradients);

  Network network_;
  Tensor like_;
  Workspace workspace_;
  std::vector<Convolution> convolutions_;
  FusedBlocks fused_;
  bool fuses_ = true;  // whether this call can use them
  std::vector<BlockState> blocks_;
  // Of this call:
  int64_t batch_ = 0;
  bool has_tape_ = false;
  Tensor theta_;  // [P]
  Kept kept_;
  Tensor last_tangent_;  // of the last block's output
};

extern template class LayerStudent<float>;
extern template class LayerStudent<double>;

}  // namespace trajmatch
