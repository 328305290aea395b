// Enough of CUDA to run unchanged kernels on a host without a GPU, one block after the other,
// slowly. The threads of a block are fibers of one thread. A fiber runs until it must wait for
// others:
// __syncthreads, __syncwarp, ballots and shuffles, which all threads of a warp must reach. It
// cannot show races between threads that do not wait for each other, nor how a device rounds.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 blockIdx, gridDim, blockDim, threadIdx;
using std::max;
using std::min;

namespace cuda_on_host {

constexpr int kWarp = 32;

// Threads that wait for each other, and the values that they exchange.
struct Group {
  int members = 0, arrived = 0, generation = 0;
  uint64_t words[kWarp];

  void open_if_complete() {
    if (members > 0 && arrived == members) arrived = 0, ++generation;
  }
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  jmp_buf place;
  bool begun = false, ended = false;
  static constexpr size_t kStack = 1 << 16;
};

struct Block {
  const std::function<void()>* kernel;
  std::vector<Fiber>* fibers;
  std::vector<Group> warps;
  Group all;
  int current;
  jmp_buf scheduler;
  ucontext_t first_switch;

  Group& warp() { return warps[current / kWarp]; }
};
inline Block* block;
inline int64_t launches = 0;

inline void give_turn() {
  if (_setjmp((*block->fibers)[block->current].place) == 0) _longjmp(block->scheduler, 1);
}

inline void meet(Group& group) {
  const int generation = group.generation;
  ++group.arrived;
  group.open_if_complete();
  while (group.generation == generation) give_turn();
}

inline void run_fiber() {
  (*block->kernel)();
  // Other threads no longer wait for this one.
  for (Group* group : {&block->warp(), &block->all}) --group->members, group->open_if_complete();
  (*block->fibers)[block->current].ended = true;
  _longjmp(block->scheduler, 1);
}

inline void continue_fiber(Fiber& fiber) {
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = Fiber::kStack;
  context.uc_link = nullptr;
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
}

inline void run_block(int threads, const std::function<void()>& kernel) {
  static std::vector<Fiber> fibers(1024);
  Block own{&kernel, &fibers, std::vector<Group>((threads + kWarp - 1) / kWarp), {}, 0, {}, {}};
  block = &own;
  own.all.members = threads;
  for (int i = 0; i < threads; ++i) {
    ++own.warps[i / kWarp].members;
    fibers[i].begun = fibers[i].ended = false;
  }
  for (bool left = true; left;) {
    left = false;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].ended) continue;
      own.current = i;
      threadIdx.x = i;
      continue_fiber(fibers[i]);
      left = left || !fibers[i].ended;
    }
  }
}

inline void launch(dim3 grid, int threads, const std::function<void()>& kernel) {
  ++launches;
  gridDim = grid;
  blockDim = dim3(threads);
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(threads, kernel);
    }
}

// Return the values that the lanes of the warp hold.
template <typename T>
std::vector<T> exchange(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Group& warp = block->warp();
  std::memcpy(&warp.words[threadIdx.x % kWarp], &value, sizeof(T));
  meet(warp);
  std::vector<T> of_lane(kWarp);
  for (int lane = 0; lane < kWarp; ++lane)
    std::memcpy(&of_lane[lane], &warp.words[lane], sizeof(T));
  meet(warp);
  return of_lane;
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::meet(cuda_on_host::block->all); }
inline void __syncwarp() { cuda_on_host::meet(cuda_on_host::block->warp()); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __ballot_sync(unsigned, int flag) {
  unsigned bits = 0, lane = 0;
  for (const int of_lane : cuda_on_host::exchange(flag)) bits |= unsigned{of_lane != 0} << lane++;
  return bits;
}

inline int __any_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) != 0; }

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_on_host::exchange(value)[lane];
}

template <typename T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int lane = threadIdx.x % cuda_on_host::kWarp + distance;
  const std::vector<T> of_lane = cuda_on_host::exchange(value);
  return lane < cuda_on_host::kWarp ? of_lane[lane] : value;
}
