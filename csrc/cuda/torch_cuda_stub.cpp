// Stands in for libtorch_cuda while linking (see CMakeLists.txt); never loaded, never installed.
#include <cstdint>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t, void**) { return 1; }
