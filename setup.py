"""Build blpseg: the setuptools script, and the PEP 517 backend that pyproject.toml names.

The script drives CMake; CMakeLists.txt alone describes the native build. An install without native
code does not fail, since blpseg_ops also works in pure Python. What was not built, and why, is
written to blpseg_ops/_native_build.json; `python -m blpseg_ops` shows it.

The backend is setuptools' with one addition. pip builds in an isolated environment, which hides
installed packages. The backend makes an installed torch visible again, so that native code is built
against it and no second one (5 GB) is downloaded. Without a torch, torch is a build requirement, so
that `pip install .` alone is enough to get native code.

Environment:
    BLPSEG_NATIVE         0: build no native code; 1: a failed native build fails the install
    BLPSEG_CUDA           0: leave the CUDA library out even where nvcc is found
    BLPSEG_SANITIZE       1: CPU kernels with sanitizers, for the fuzzer (see CONTRIBUTING.md)
    TORCH_CUDA_ARCH_LIST  as for PyTorch's own extensions, e.g. "8.0;9.0+PTX"
    MAX_JOBS              number of compilers that run at a time
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools import Extension, build_meta, setup
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
NATIVE = os.environ.get("BLPSEG_NATIVE", "")
PRODUCTS = ("_C.*.so", "_C.pyd", "libblpseg_cuda.so", "_native_build.json")


class BuildError(Exception):
    """Native code could not be built; the text says why, for the user to read."""


def _run(*command: str | Path) -> None:
    """Run a build step; on failure, raise with the lines that tell what went wrong."""
    print("+", *command, flush=True)
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
        # The first line that names an error is the cause; what follows is often its echo.
        first = next((i for i, line in enumerate(lines) if "error" in line.lower()), len(lines) - 8)
        raise BuildError("\n".join(lines[max(first, 0) : max(first, 0) + 8]))


def _tool(name: str) -> str:
    """Find cmake or ninja on the PATH, where pip puts build requirements, or beside python."""
    places = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    if found := shutil.which(name, path=places):
        return found
    raise BuildError(f"{name} was not found: pip install {name}")


class NativeBuild(build_ext):
    """Configures, builds and installs the two native libraries into the package."""

    def run(self) -> None:
        package = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        package = package / "blpseg_ops"
        package.mkdir(parents=True, exist_ok=True)
        for pattern in PRODUCTS:  # a stale library must not outlive a failed build
            for stale in package.glob(pattern):
                stale.unlink()
        report: dict[str, str | None] = {"cpu": None, "cuda": None}  # None: built; a text: why not
        try:
            if NATIVE == "0":
                raise BuildError("BLPSEG_NATIVE=0 was set when blpseg was installed")
            report["cuda"] = self._build(package)
        except Exception as error:  # whatever it was: pure Python works, and the report tells
            if NATIVE == "1":
                raise
            report["cpu"] = report["cuda"] = str(error)
            print(f"blpseg: installing without native code: {error}", file=sys.stderr)
        (package / "_native_build.json").write_text(json.dumps(report, indent=2) + "\n")

    def _build(self, package: Path) -> str | None:
        """Build both libraries; return why there is no CUDA library, or None when there is one."""
        torch = importlib.util.find_spec("torch")
        if torch is None or not torch.submodule_search_locations:
            raise BuildError("no torch was found to build against: pip install torch")
        pybind11 = importlib.util.find_spec("pybind11")
        if pybind11 is None:
            raise BuildError("pybind11 was not found: pip install pybind11")
        import pybind11

        torch_dir = torch.submodule_search_locations[0]
        cmake, build = _tool("cmake"), ROOT / "build" / "native"
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": _tool("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "BLPSEG_SANITIZE": "ON" if os.environ.get("BLPSEG_SANITIZE") == "1" else "OFF",
            "BLPSEG_VERSION": self.distribution.get_version(),
            "BLPSEG_TORCH_DIR": torch_dir,
            # Not torch itself: importing it takes seconds, and its metadata leaves "+cu132" out.
            "BLPSEG_TORCH_VERSION": runpy.run_path(f"{torch_dir}/version.py")["__version__"],
        }

        def configure(cuda: bool) -> None:
            options = [f"-D{key}={value}" for key, value in settings.items()]
            # --fresh: an isolated build leaves paths in the cache that are gone the next time.
            options.append(f"-DBLPSEG_CUDA={'ON' if cuda else 'OFF'}")
            try:
                _run(cmake, "--fresh", "-G", "Ninja", "-S", ROOT, "-B", build, *options)
            except BuildError as error:
                if "CMAKE_CXX_COMPILER" not in str(error):
                    raise
                raise BuildError(
                    "no working C++ compiler was found (Debian, Ubuntu: apt install g++; "
                    f"macOS: xcode-select --install). CMake said:\n{error}"
                ) from None

        def make(target: str) -> None:
            jobs = os.environ.get("MAX_JOBS", "")
            _run(cmake, "--build", build, "--target", target, *(["-j", jobs] if jobs else []))
            _run(cmake, "--install", build, "--component", target, "--prefix", package)

        no_cuda = "BLPSEG_CUDA=0 was set when blpseg was installed"
        if os.environ.get("BLPSEG_CUDA") != "0":
            configure(cuda=True)
            if "BLPSEG_CUDA_ARCHS:" in (build / "CMakeCache.txt").read_text():
                try:
                    make("blpseg_cuda")
                    no_cuda = None
                except BuildError as error:
                    if NATIVE == "1":
                        raise
                    no_cuda = str(error)
            else:
                no_cuda = "no nvcc was found (looked at CUDACXX, CUDA_HOME and the PATH)"
        if no_cuda is not None:
            configure(cuda=False)
        make("_C")
        return no_cuda

    # CMake installed the files where they belong; setuptools has nothing left to copy or list.
    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


OLDEST_TORCH = (2, 10)  # the first with every stable-ABI call that csrc/ makes


def _has_torch() -> bool:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_TORCH


# The isolated build runs the same interpreter, so "purelib" still names the outer environment.
# Appended, not prepended: packages of the build environment take precedence.
if not _has_torch():
    sys.path.append(sysconfig.get_path("purelib"))


def _build_requirements() -> list[str]:
    if _has_torch() or NATIVE == "0":
        return []
    return ["torch>={}.{}".format(*OLDEST_TORCH)]


def get_requires_for_build_wheel(config_settings=None):
    """PEP 517 hook."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _build_requirements()


def get_requires_for_build_editable(config_settings=None):
    """PEP 660 hook."""
    return build_meta.get_requires_for_build_editable(config_settings) + _build_requirements()


if __name__ == "__main__":  # also when setuptools' own backend runs this file
    setup(
        # A name without sources makes the wheel a binary one; CMake knows the sources.
        ext_modules=[Extension("blpseg_ops._C", sources=[])],
        cmdclass={"build_ext": NativeBuild},
    )
