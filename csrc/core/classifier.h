// The classifier of a student. It computes the logits z = W f + b from the features f of the last
// block, and the gradients and tangents that the layer-by-layer engine needs. Each result is a sum
// of one or two products:
//   z  = W f + b,   z' = W f' + W' f + b'
//   df = W^T g,    df' = W^T g' + W'^T g
//   dW = g f^T,    dW' = g' f^T + g f'^T,   db = sum of g over the batch
// Features are [B, pixels, C], the channels-last output of the last block. W is [classes, C,
// pixels] and b is [classes], as in the flat parameters. On CUDA, several trajectories (students
// trained side by side) may share a call: each has its own batch, and its own parameters,
// parameter_stride from the next. ops/layer_student.h uses this file; the CPU engine for ConvNets
// has its own classifier.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

struct ClassifierShape {
  int64_t batch, classes, channels, pixels;
  int64_t trajectories = 1;
  int64_t parameter_stride = 0;  // the same for tangents and gradients of parameters

  TM_HD int64_t features() const { return channels * pixels; }
};

template <class T>
struct ClassifierTerm {
  const T* batch_side;   // f [B, pixels, C], or g [B, classes]
  const T* weight_side;  // W [classes, C, pixels]; in weight gradients f [B, pixels, C]
};

// Computes z. Each term is a product of features and weights.
template <class T>
struct ClassifierForward {
  ClassifierShape shape;
  int terms;  // 1 or 2
  ClassifierTerm<T> term[2];
  const T* bias;  // [classes], or null (0)
  T* logits;      // [B, classes]
};

// Computes df. Each term is a product of logit gradients and weights.
template <class T>
struct ClassifierInputGradient {
  ClassifierShape shape;
  int terms;
  ClassifierTerm<T> term[2];
  T* grad_features;  // [B, pixels, C]
};

// Computes dW. Each term is a product of logit gradients and features. db comes from the first
// term.
template <class T>
struct ClassifierWeightGradient {
  ClassifierShape shape;
  int terms;
  ClassifierTerm<T> term[2];
  T* grad_weight;  // [classes, C, pixels]
  T* grad_bias;    // [classes]
};

// The gradients of a call: one df, or two (df and df'), and dW. On CUDA they share a launch.
template <class T>
struct ClassifierBackward {
  static constexpr int kMost = 2;
  ClassifierInputGradient<T> input[kMost];
  int inputs;
  ClassifierWeightGradient<T> weight;
};

// Computes z, then the gradient of the loss in z; or z', then the tangent of that gradient. `Loss`
// is SoftCrossEntropyBackward or SoftCrossEntropyBackwardTangent (core/soft_cross_entropy.h). On
// CUDA, the shares of the tangent of the loss are not added up: `directional` is null.
template <class T, class Loss>
struct ClassifierLoss {
  ClassifierForward<T> classifier;
  Loss loss;
};

namespace cpu {
// Images [begin, end) of the batch.
template <class T>
void classifier_forward(const ClassifierForward<T>& params, int64_t begin, int64_t end);
template <class T>
void classifier_input_gradient(const ClassifierInputGradient<T>& params, int64_t begin,
                               int64_t end);
// Classes [begin, end).
template <class T>
void classifier_weight_gradient(const ClassifierWeightGradient<T>& params, int64_t begin,
                                int64_t end);
}  // namespace cpu

namespace cuda {
template <class T>
void launch_classifier_forward(const ClassifierForward<T>& params, Stream stream);
template <class T>
void launch_classifier_backward(const ClassifierBackward<T>& params, Stream stream);
template <class T, class Loss>
void launch_classifier_loss(const ClassifierLoss<T, Loss>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
