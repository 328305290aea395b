// Huge pages for large new tensors. Linux maps memory when it is first written, 4 KiB at a time:
// for a result of 300 MB that takes as long as the sums that fill it.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

#include "tensor.h"

namespace blpseg {

// Returns a new tensor, after asking for huge pages. Only a hint, and only for blocks that glibc
// never keeps for reuse (DEFAULT_MMAP_THRESHOLD_MAX): others are mapped already.
inline Tensor in_huge_pages(Tensor tensor) {
#ifdef __linux__
  constexpr uintptr_t kSmallest = uintptr_t{32} << 20, kPage = uintptr_t{2} << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t bytes = tensor.numel() * tensor.element_size();
  const uintptr_t first = (start + kPage - 1) / kPage * kPage;
  const uintptr_t end = (start + bytes) / kPage * kPage;
  if (bytes >= kSmallest) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

}  // namespace blpseg
