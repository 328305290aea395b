// Work whose parts differ in size, on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace blpseg {

// Calls work(worker, next) for as many workers as threads; each asks next() for the number of a
// part to do, until it gets -1. Every part goes to whichever thread is free, so no result may
// depend on which.
template <typename Work>
void share_work(int64_t threads, int64_t parts, const Work& work) {
  std::atomic<int64_t> taken{0};
  const auto next = [&]() -> int64_t {
    const int64_t part = taken++;
    return part < parts ? part : -1;
  };
  torch::stable::parallel_for(0, std::min(threads, parts), 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) work(worker, next);
  });
}

}  // namespace blpseg
