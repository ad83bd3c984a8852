// The last launch of the backward passes: adds the gradients of weight and bias over the images.
#pragma once

#include "core/norm_act_pool.h"
#include "cuda/launch.cuh"

namespace trajmatch::cuda {

// partial: [K, B, 2, A]; weight, bias: K times [A], shape.parameter_stride apart
template <class T>
void launch_sum_partial_affine(const NormActPoolShape& shape, const T* partial, T* weight, T* bias,
                               Stream stream);

}  // namespace trajmatch::cuda
