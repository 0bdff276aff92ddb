// When an op gives up calling other threads.
#include "cpu/lateness.h"

#include <pybind11/pybind11.h>

#include "arguments.h"

void bind_lateness(py::module_& m) {
  using clasp::cpu::Lateness;
  py::class_<Lateness>(m, "Lateness")
      .def(py::init<>())
      .def("observe", &Lateness::observe)
      .def("works_alone", &Lateness::works_alone);
}
