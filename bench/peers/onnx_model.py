"""The ONNX model of a case: one RNN node a layer, weights as initialisers. ONNX Runtime and OpenVINO both
run it.
"""

from __future__ import annotations

import torch

from bench.cases.case import Case
from bench.cases.inputs import Inputs


def build(case: Case, inputs: Inputs) -> bytes:
    """Inputs x [T, B, I], h0_0, h0_1 (one a layer) [D, B, H] and, when packed, lengths [B].

    Output y [T, D, B, H], the last layer's.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    T, B, H, D = case.steps, case.batch, case.hidden_size, case.directions
    activation = {"tanh": "Tanh", "relu": "Relu"}[case.nonlinearity]
    nodes, constants = [], []
    feeds = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, B, case.input_size])]
    if case.packed:
        feeds.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [B]))
    source = "x"
    for layer in range(case.layers):
        sides = [inputs.layer(layer, direction) for direction in range(D)]
        stacked = {
            "W": np.stack([side[0].float().numpy() for side in sides]),
            "R": np.stack([side[1].float().numpy() for side in sides]),
            "B": np.stack([torch.cat(side[2:]).float().numpy() for side in sides]),
        }
        constants += [numpy_helper.from_array(array, f"{name}{layer}") for name, array in stacked.items()]
        feeds.append(helper.make_tensor_value_info(f"h0_{layer}", TensorProto.FLOAT, [D, B, H]))
        last = layer == case.layers - 1
        output = "y" if last else f"y{layer}"
        names = [
            source,
            f"W{layer}",
            f"R{layer}",
            f"B{layer}",
            "lengths" if case.packed else "",
            f"h0_{layer}",
        ]
        direction = "bidirectional" if D == 2 else "forward"
        nodes.append(
            helper.make_node(
                "RNN", names, [output], hidden_size=H, activations=[activation] * D, direction=direction
            )
        )
        if not last:  # [T, D, B, H] -> [T, B, D * H], the next layer's input
            constants.append(numpy_helper.from_array(np.array([T, B, D * H]), f"shape{layer}"))
            nodes.append(helper.make_node("Transpose", [output], [f"t{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{layer}", f"shape{layer}"], [f"x{layer + 1}"]))
            source = f"x{layer + 1}"
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [T, D, B, H])
    graph = helper.make_graph(nodes, "rnn", feeds, [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()
