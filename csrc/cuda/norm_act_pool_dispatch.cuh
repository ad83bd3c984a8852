// Selects the compiled kernel for the run-time options of a norm-activation-pool.
#pragma once

#include <type_traits>

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_tiling.cuh"
#include "cuda/norm_act_pool_window.cuh"

namespace trajmatch::cuda {

template <Pooling kind>
using PoolingConstant = std::integral_constant<Pooling, kind>;

template <class Body>
void with_pooling(Pooling pooling, const Body& body) {
  switch (pooling) {
    case Pooling::kNone:
      return body(PoolingConstant<Pooling::kNone>());
    case Pooling::kAverage:
      return body(PoolingConstant<Pooling::kAverage>());
    case Pooling::kMax:
      return body(PoolingConstant<Pooling::kMax>());
  }
}

template <class Body>
void with_fixed_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kNone:
      return body(FixedActivation<Activation::kNone>());
    case Activation::kRelu:
      return body(FixedActivation<Activation::kRelu>());
    case Activation::kLeakyRelu:
      return body(FixedActivation<Activation::kLeakyRelu>());
    case Activation::kSigmoid:
      return body(FixedActivation<Activation::kSigmoid>());
  }
}

// Calls body(pooling, held, activation, plan) for the kernel that fits the shape, with `pooling`
// and `held` as compile-time constants. Slots::windows<pooling>() is the number of windows that a
// thread of the held kernel keeps in registers. If blocks share images, body is called once for
// each of the `stored_sums` sums, then once more.
template <class T, class Slots, class Body>
void with_kernel(const NormActPoolShape& shape, double* sums, int stored_sums, const Body& body) {
  with_pooling(shape.pooling, [&](auto pooling) {
    constexpr bool kHolds = std::is_same_v<T, float>;
    Plan plan = plan_blocks(shape, kHolds ? Slots::template windows<pooling()>() : 0,
                            kPlaneThreads<T>, sums);
    if constexpr (kHolds) {
      if (plan.held) {
        return with_fixed_activation(shape.activation, [&](auto activation) {
          body(pooling, std::true_type(), activation, plan);
        });
      }
    }
    const AnyActivation activation{shape.activation};
    if (plan.tiling.parts == 1) return body(pooling, std::false_type(), activation, plan);
    for (plan.tiling.phase = 0; plan.tiling.phase <= stored_sums; ++plan.tiling.phase) {
      body(pooling, std::false_type(), activation, plan);
    }
  });
}

}  // namespace trajmatch::cuda
