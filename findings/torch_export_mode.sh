#!/usr/bin/env bash
# torch 2.13.0, the tracing exporter (`torch.onnx.export(..., dynamo=False)`), with onnx 1.23.2.
#
# Behaviour: exporting changes the model that is exported. The exporter switches the module it is given to eval mode,
# notes only that one module's flag, and afterwards calls `train(flag)` on it, which reaches all modules inside. Models
# whose output is no plain tensor are exported through a small wrapper, and a new `nn.Module` has training=True whatever
# it wraps. So a network that was in eval mode comes back in training mode: the graph is right, but dropout is on in
# torch from then on, silently. Who compares the graph with torch after the export sees a wrong graph, or rather
# another difference each time; who goes on scoring with the network scores with dropout. The default exporter
# (dynamo=True) leaves all flags as they are, and with `wrapper.eval()` beforehand the tracing one does no harm.
#
# Seen:
#   tracing, wrapper as made: dropout training False -> True, torch repeats its answer: False, graph is right: True
#   default, wrapper as made: dropout training False -> False, torch repeats its answer: True, graph is right: True
#   tracing, wrapper.eval():  dropout training False -> False, torch repeats its answer: True, graph is right: True
set -euo pipefail
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT && cd "$dir"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6 \
  > pip.log 2>&1 || { cat pip.log; exit 2; }
env/bin/python -W ignore - <<'PY'
import contextlib, io, logging, torch
from onnx.reference import ReferenceEvaluator

class Wrapper(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, x):
        return self.network(x)

logging.disable(logging.CRITICAL)
torch.manual_seed(0)
x, seen = torch.randn(4, 64), []
for name, dynamo, prepare in (("tracing, wrapper as made:", False, False), ("default, wrapper as made:", True, False),
                              ("tracing, wrapper.eval(): ", False, True)):
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 2)).eval()
    answer, before = network(x).detach(), network[1].training
    wrapper = Wrapper(network).eval() if prepare else Wrapper(network)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(wrapper, (x,), "model.onnx", dynamo=dynamo)
    graph = ReferenceEvaluator("model.onnx")
    (given,) = graph.run(None, {graph.input_names[0]: x.numpy()})
    right = torch.allclose(torch.from_numpy(given), answer, atol=1e-4)
    seen.append((before, network[1].training, torch.equal(network(x), network(x)), right))
    print("{} dropout training {} -> {}, torch repeats its answer: {}, graph is right: {}".format(name, *seen[-1]))
assert seen == [(False, True, False, True), (False, False, True, True), (False, False, True, True)], "it changed"
PY
