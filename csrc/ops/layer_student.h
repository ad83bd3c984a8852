// The student engine layer by layer, a whole batch at a time, as CUDA runs it: the gradient of a
// ConvNet's loss in its flat parameters, and the directional derivative of that gradient, as one
// walk over the network each. Activations are in channels-last.
//
// Convolutions and the products with the classifier are the library's; norm, activation and
// pooling, loss and everything else is core/. Blocks that ops/fused_blocks.h takes run there.
#pragma once

#include <optional>
#include <vector>

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

  // Writes the loss [] and its gradient [P]; the gradients of images [B, C, H, W] (channels-last)
  // and of soft labels [B, K] where wanted.
  void gradient(const StudentProblem& problem, const Tensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels);

  // Derivatives along the tangents of: the loss (one element), the gradient in theta [P], in the
  // images [B, C, H, W] (channels-last), and, where wanted, in the soft labels [B, K].
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const Tensor& directional, const Tensor& grad_theta, const Tensor& grad_images,
                    const OptionalTensor& grad_labels);

 private:
  // Everything that one block keeps between the passes of one call.
  struct BlockState {
    Tensor weight;  // [C, in, 3, 3], a view of theta
    OptionalTensor weight_tangent;
    OptionalTensor norm_weight, norm_bias, norm_weight_tangent, norm_bias_tangent;
    OptionalTensor input_tangent;  // of the convolution's input
    Tensor input;                  // [B, in, H, W]
    Tensor y, y_tangent;           // output of the convolution
    Tensor mean, rstd, mean_tangent, projection;
  };

  OptionalTensor norm_parameters(const Tensor& theta, const Slice& slice, const Block& block,
                                 const char* name, size_t index);
  Tensor classifier_weight(const Tensor& theta, const char* name);
  Tensor conv_weight(const Tensor& theta, size_t index) const;
  OptionalTensor conv_bias(const Tensor& theta, size_t index) const;
  Tensor features(const Tensor& activations) const;
  Tensor activations(const Tensor& features, int64_t batch) const;

  bool is_fused(size_t index) const { return fuses_ && fused_.takes(index); }
  void read_parameters(const StudentProblem& problem);
  Tensor forward(const StudentProblem& problem);
  Tensor forward_tangent(const StudentProblem& problem, const StudentTangents& tangents);
  void write_classifier_gradient(const Tensor& grad_theta, const Tensor& weight,
                                 const Tensor& bias);
  Tensor conv_bias_place(const Tensor& grad_theta, size_t index) const;
  Tensor norm_gradient(const Tensor& grad_theta, const Slice& slice, const Block& block,
                       const char* name);
  void finish_norm_gradient(const Tensor& grad_theta, const Slice& slice, const Block& block,
                            const Tensor& values);

  Network network_;
  Tensor like_;
  Workspace workspace_;
  std::vector<Convolution> convolutions_;
  FusedBlocks fused_;
  bool fuses_ = true;  // whether this call can use them
  std::vector<BlockState> blocks_;
  Tensor theta_;                // of this call, [P]
  Tensor head_, head_tangent_;  // classifier weights [K, H * W * C]
  Tensor last_, last_tangent_;  // output of the last block
};

extern template class LayerStudent<float>;
extern template class LayerStudent<double>;

}  // namespace trajmatch
