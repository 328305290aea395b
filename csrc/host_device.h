// Marks functions that host and device compile alike.
#pragma once

#if defined(__CUDACC__)
#define BLPSEG_HOST_DEVICE __host__ __device__
#else
#define BLPSEG_HOST_DEVICE
#endif
