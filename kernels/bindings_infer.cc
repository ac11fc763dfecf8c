// The kernels of inference as Python sees them: products with quantised weights. Checks are those
// of bindings.cc; the Python side is src/tenarai/ops/fast.py.
#include "python.h"
#include "quant_formats.h"

namespace tenarai {

void bind_inference(MachineClass& machine) { (void)machine; }

}  // namespace tenarai
