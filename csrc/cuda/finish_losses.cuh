// From the sums of pixel blocks to the losses, on CUDA: a block per image adds up the image's
// sums, then one block makes the losses of them. Both add in one fixed order, in float64.
#pragma once

#include "loss_call.cuh"

namespace blpseg::device {

// Add up what the threads of a block hold; the first thread gets the result.
__device__ inline void add_up_block(LossSums<double>& sums) {
  __shared__ double per_warp[kWarps][kLossSums];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kLossSums; ++i) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
      sums[i] += __shfl_down_sync(~0u, sums[i], distance);
    if (lane == 0) per_warp[warp][i] = sums[i];
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int other = 1; other < kWarps; ++other)
    for (int i = 0; i < kLossSums; ++i) sums[i] += per_warp[other][i];
}

// One block per image. sums_of_block: [N, blocks, kLossSums]; sums_of_image: [N, kLossSums].
template <typename A>
__global__ void __launch_bounds__(kThreads)
    sum_images(const A* sums_of_block, int64_t blocks, double* sums_of_image, A* blp_weight_sum) {
  const int64_t n = blockIdx.x;
  LossSums<double> sums;
  for (int64_t block = threadIdx.x; block < blocks; block += kThreads)
#pragma unroll
    for (int i = 0; i < kLossSums; ++i)
      sums[i] += sums_of_block[(n * blocks + block) * kLossSums + i];
  add_up_block(sums);
  if (threadIdx.x > 0) return;
  for (int i = 0; i < kLossSums; ++i) sums_of_image[n * kLossSums + i] = sums[i];
  if (blp_weight_sum) blp_weight_sum[n] = static_cast<A>(sums[kBlpWeight]);
}

// Where the losses go; pointers of losses that are not asked for are null.
template <typename A>
struct LossResults {
  A* blp = nullptr;
  A* annotation = nullptr;
  A* annotation_weight_sum = nullptr;
};

// One block.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    finish_losses(const double* sums_of_image, int64_t images, double guard,
                  double unlabeled_weight, LossResults<A> results) {
  LossSums<double> sums;  // kBlp: the images' losses
  for (int64_t n = threadIdx.x; n < images; n += kThreads) {
    const double* image = sums_of_image + n * kLossSums;
#pragma unroll
    for (int i = 0; i < kLossSums; ++i)
      sums[i] += i == kBlp ? image[kBlp] / (image[kBlpWeight] + guard) : image[i];
  }
  add_up_block(sums);
  if (threadIdx.x > 0) return;
  if (results.blp) *results.blp = static_cast<A>(sums[kBlp] / (images > 0 ? images : 1));
  if (!results.annotation) return;
  const double weight = sums[kLabeledCount] + unlabeled_weight * sums[kUnlabeledCount];
  const double total = sums[kLabeled] + unlabeled_weight * sums[kUnlabeled];
  *results.annotation = static_cast<A>(total / (weight > 0 ? weight : 1));
  *results.annotation_weight_sum = static_cast<A>(weight);
}

}  // namespace blpseg::device
