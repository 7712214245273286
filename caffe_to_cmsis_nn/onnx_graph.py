# SPDX-License-Identifier: Apache-2.0
"""A small builder of ONNX graphs, with which layers and kernels define their arithmetic for onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import DTypeLike
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 13, 8


class OnnxGraph:
    """An ONNX graph under construction; tensors are NCHW or (N, features) float32 unless cast."""

    def __init__(self) -> None:
        self._nodes: dict[str, onnx.NodeProto] = {}  # by their first output
        self._scaled: set[str] = set()
        self._constants: list[onnx.TensorProto] = []
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}  # of constants, by their content
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def add(self, op: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Adds a node and returns its output's name; arrays become constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = f"t{len(self._nodes)}"
        self._nodes[output] = helper.make_node(op, names, [output], **attributes)
        return output

    def add_all(self, count: int, op: str, *inputs: str | np.ndarray, **attributes: Any) -> list[str]:
        """As `add`, for an operator with `count` outputs."""
        first = self.add(op, *inputs, **attributes)
        self._nodes[first].output.extend(f"{first}_{i}" for i in range(1, count))
        return [*self._nodes[first].output]

    def max_pool(self, x: str, **windows: Any) -> str:
        """MaxPool, moved before monotonic elementwise operators, which then process fewer elements.

        Every window must contain a cell that is not padding.
        """
        node = self._nodes.get(x)
        if node is None or not (node.op_type in ("Floor", "Clip", "Relu") or x in self._scaled):
            return self.add("MaxPool", x, **windows)
        return self.add(node.op_type, self.max_pool(node.input[0], **windows), *node.input[1:])

    def constant(self, values: np.ndarray) -> str:
        """Its name; equal arrays are held once, since layers of one kind have tables in common."""
        values = np.ascontiguousarray(values)
        content = values.dtype.str, values.shape, values.tobytes()
        if content not in self._names:
            self._names[content] = f"c{len(self._constants)}"
            self._constants.append(numpy_helper.from_array(values, self._names[content]))
        return self._names[content]

    def cast(self, x: str, dtype: DTypeLike) -> str:
        return self.add("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def clip(self, x: str, low: float, high: float, dtype: DTypeLike = np.float32) -> str:
        return self.add("Clip", x, np.array(low, dtype), np.array(high, dtype))

    def scale(self, x: str, factor: float) -> str:
        """Multiplies by a positive factor."""
        scaled = self.add("Mul", x, np.array(factor, np.float32))
        self._scaled.add(scaled)
        return scaled

    def slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.add("Slice", x, *(np.array([v], np.int64) for v in (start, stop, axis)))

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int]) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, ["N", *shape]))
        return name

    def output(self, value: str) -> None:
        self._outputs.append(helper.make_empty_tensor_value_info(value))

    def label(self, value: str, name: str) -> None:
        """Names the node that computes a value, for readers of the graph."""
        self._nodes[value].name = name

    def result(self, value: str, name: str, dtype: DTypeLike, shape: Sequence[int]) -> None:
        """Adds a typed output with a name, which gets underscores appended if taken; call it after all `add`."""
        taken = {*self._nodes, *(known.name for known in self._constants), *(known.name for known in self._inputs)}
        while name in taken:
            name += "_"
        self._nodes[name] = helper.make_node("Identity", [value], [name])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._outputs.append(helper.make_tensor_value_info(name, kind, ["N", *shape]))

    def _needed(self) -> list[onnx.NodeProto]:
        """The nodes that outputs depend on, in order; onnxruntime would also run the others."""
        needed = {output.name for output in self._outputs}
        for node in reversed(self._nodes.values()):
            if not needed.isdisjoint(node.output):
                needed.update(node.input)
        return [node for node in self._nodes.values() if not needed.isdisjoint(node.output)]

    def model(self, name: str = "q7", **facts: str) -> onnx.ModelProto:
        """The graph as an ONNX model; `facts` are fields of the model."""
        graph = helper.make_graph(self._needed(), name, self._inputs, self._outputs, self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, **facts)

    def session(
        self, providers: Sequence[str] = ("CPUExecutionProvider",), fused: bool = True
    ) -> onnxruntime.InferenceSession:
        """A session to run the graph; `fused` operators are faster, but may round differently in float."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # callers run batches in parallel threads
        options.log_severity_level = 3
        # Runs nodes in their order, so that watched values do not keep outputs alive to the end.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if not fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(self.model().SerializeToString(), options, providers=list(providers))
