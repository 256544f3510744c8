"""Takes apart what ONNX Runtime fuses to its harm on CPUs: the sum of what enters and leaves a layer, normalised.

`SkipLayerNormalization` of ONNX Runtime 1.31 takes several times as long on a CPU as `Sum` and `LayerNormalization` do
(`bench_int8.py` shows what it makes of the whole). As a `Sum` the addition is not fused again when the graph is loaded,
as an `Add` it may be.
"""

from onnxruntime.transformers.onnx_model import OnnxModel

from tasks.export.graph_editor import GraphEditor


def split_skip_layernorm(model: OnnxModel) -> int:
    """Rewrite a graph in place; return how many fused normalisations were taken apart."""
    writer = GraphEditor(model, "normalising_")
    fused = [node for node in model.get_nodes_by_op_type("SkipLayerNormalization") if len(node.output) == 1]
    for node in fused:
        entering, skip, gamma, beta, *bias = node.input
        (epsilon,) = (attribute.f for attribute in node.attribute if attribute.name == "epsilon")
        model.remove_node(node)
        total = writer.add("Sum", [entering, skip, *filter(None, bias)])
        writer.add("LayerNormalization", [total, gamma, beta], node.output[0], axis=-1, epsilon=epsilon)
    model.topological_sort()
    return len(fused)
