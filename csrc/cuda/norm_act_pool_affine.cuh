// The last launch of the backward passes: adds the gradients of weight and bias over the images.
#pragma once

#include "core/norm_act_pool.h"
#include "cuda/launch.cuh"

namespace trajmatch::cuda {

// partial: [B, 2, A]; weight, bias: [A]
template <class T>
void launch_sum_partial_affine(const NormActPoolShape& shape, const T* partial, T* weight, T* bias,
                               Stream stream);

}  // namespace trajmatch::cuda
