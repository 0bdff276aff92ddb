// An empty module for `import clasp_kernels._C_cuda`. Loading the library registers the operators
// through the static initializers of the other files.
#include <Python.h>

namespace {

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    "_C_cuda",
    "CUDA kernels of clasp_kernels; importing registers them.",
    -1,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() {
  return PyModule_Create(&module_definition);
}
