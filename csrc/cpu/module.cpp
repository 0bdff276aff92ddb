// An empty module for `import clasp_kernels._C`. Loading the library registers the operators
// through the static initializers of the other files.
#include <Python.h>

namespace {

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    "_C",
    "Native CPU kernels of clasp_kernels; importing registers them.",
    -1,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() {
  return PyModule_Create(&module_definition);
}
