// Kernel calls recorded once and made again without Python: the decoding of a token is some hundred
// of them. The Python side is src/tenarai/ops/replay.py.
#include "python.h"

namespace tenarai {
namespace {

// The kernel calls made between start() and stop(), which replay() makes again without Python. The
// arrays they use are kept alive and at their addresses; what stands in them may change.
struct Program {
  Machine& machine;
  Tape tape;

  explicit Program(Machine& m) : machine(m) {}
  ~Program() { stop(); }

  void start() {
    if (machine.tape) fail("another program is being recorded on this machine");
    tape.clear();
    machine.tape = &tape;
  }
  void stop() {
    if (machine.tape == &tape) machine.tape = nullptr;
  }
  void replay() {
    for (const auto& call : tape) call();
  }
};

}  // namespace

void bind_replay(MachineClass& machine) {
  nb::class_<Program>(machine, "Program", "Kernel calls, recorded to be made again.")
      .def(nb::init<Machine&>(), "machine"_a, nb::keep_alive<1, 2>())
      .def("start", &Program::start)
      .def("stop", &Program::stop)
      .def("replay", &Program::replay, Release())
      .def("__len__", [](const Program& self) { return self.tape.size(); });
}

}  // namespace tenarai
