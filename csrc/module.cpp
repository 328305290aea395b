// blpseg_ops._C: loading it registers the CPU kernels (each in its file under csrc/cpu/) with
// torch's dispatcher. Python sees build_info() only; tensors reach the kernels through
// torch.ops.blpseg.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>

#include "cpu/capability.h"
#include "cpu/lam/lam_settings.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::list archs;
  std::istringstream list(BLPSEG_CUDA_ARCHS);
  for (std::string arch; std::getline(list, arch, ',');) archs.append(arch);

  py::dict info;
  info["version"] = BLPSEG_VERSION;
  info["compiler"] = BLPSEG_COMPILER;
  info["torch"] = BLPSEG_TORCH_VERSION;
  info["cuda"] = *BLPSEG_CUDA_VERSION ? py::object(py::str(BLPSEG_CUDA_VERSION)) : py::none();
  info["archs"] = archs;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "The CPU kernels of blpseg_ops, and how they were built.";
  // The schemas live in Python, once, so that an install without native code has them as well.
  py::module_::import("blpseg_ops._schemas");
  blpseg::cpu_capability();  // a bad BLPSEG_CPU_CAPABILITY shall be said now
  module.def(
      "build_info", &build_info,
      "How this module was built.\n\n"
      "Returns:\n"
      "    dict: version (of blpseg), compiler, torch (built against), cuda (the toolkit's\n"
      "    version, or None when no CUDA library was built) and archs (what that library is\n"
      "    compiled for, e.g. '90-real', '120-virtual').");
  module.def("cpu_capability", &blpseg::cpu_capability_name,
             "The variant of the CPU kernels in use: 'portable', 'avx2' or 'avx512'.");
  module.def("cpu_capabilities", &blpseg::cpu_capabilities,
             "The variants that this build has and this machine runs, best last.");
  module.def(
      "set_cpu_capability", &blpseg::set_cpu_capability, py::arg("name"),
      "Choose a variant; the environment variable BLPSEG_CPU_CAPABILITY does so on loading.\n\n"
      "Raises:\n"
      "    ValueError: name is not among cpu_capabilities().");
  module.def("min_tiles_to_sum_apart", &blpseg::min_tiles_to_sum_apart,
             "The number of 64-pixel tiles from which lam with eps > 0 sums T apart from Z.");
  module.def("set_min_tiles_to_sum_apart", &blpseg::set_min_tiles_to_sum_apart, py::arg("tiles"),
             "Change that number; tests use it on small inputs.");
}
