// The Python module trajmatch._C. Importing it registers the operators, which are compiled into the
// same library. The module itself only has functions that take or return no tensors.

// The pybind11 bundled with torch 2.11 and 2.12 does not compile with this macro, which is meant
// for the torch headers.
#undef TORCH_TARGET_VERSION

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>

#include "build_facts.h"  // written by the build: kBuildFacts
#include "core/student_host.h"

namespace trajmatch {
namespace {

namespace py = pybind11;

// kBuildFacts is this marker followed by a JSON text. trajmatch/_extension.py searches the library
// file for the marker to read the facts of a library that fails to load.
constexpr std::string_view kMarker = "trajmatch-build-facts";

py::dict build_info() {
  const std::string_view facts = std::string_view(kBuildFacts).substr(kMarker.size());
  return py::module_::import("json").attr("loads")(py::str(facts.data(), facts.size()));
}

}  // namespace
}  // namespace trajmatch

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled part of trajmatch.";
  module.def("build_info", &trajmatch::build_info,
             "What this module was built with, and what was left out.");
  module.def("release_workspace", &trajmatch::release_workspace,
             "Gives back what the calling thread's student engine keeps for its next call.");
  module.def("tape_elements", &trajmatch::tape_elements, pybind11::arg("network"),
             pybind11::arg("batch_sizes"), pybind11::arg("tape_bytes"), pybind11::arg("float64"),
             pybind11::arg("cuda"), pybind11::arg("trajectories") = 1,
             "Elements of the tapes that student_unroll keeps.");
  module.def("runs_by_images", &trajmatch::runs_by_images, pybind11::arg("network"),
             "True if the CPU engine takes a few images at a time through the whole network.");
  module.def("start_profile", &trajmatch::start_profile,
             "Begins to add up the seconds of the CPU engine's passes.");
  module.def("stop_profile", &trajmatch::stop_profile,
             "Seconds by pass and layer since start_profile, on the first thread.");
}
