# SPDX-License-Identifier: Apache-2.0
"""The tensors of a network that need memory, the layers that compute them, and the rows that each layer reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from caffe_to_cmsis_nn.kernels.base import AnyKernel, RowForm
from caffe_to_cmsis_nn.network.quantized import QuantizedNetwork
from caffe_to_cmsis_nn.onnx_windows import dilated_kernel_size
from caffe_to_cmsis_nn.ops.base import Layer
from caffe_to_cmsis_nn.plan.memory import aligned
from caffe_to_cmsis_nn.target import Target


@dataclass(frozen=True)
class Reading:
    """Row r of a stage reads `window` rows of the stage `source`, from row r * stride - pad.

    It waits for row r * stride + ahead - 1, or for the last row.
    """

    source: int
    window: int
    stride: int
    pad: int
    ahead: int

    def first(self, row: int) -> int:
        return row * self.stride - self.pad

    def awaited(self, row: int) -> int:
        """The end of the rows that must be available."""
        return row * self.stride + self.ahead


@dataclass(frozen=True)
class Stage:
    """A tensor, and the layers (indices) that compute its rows: the first one, then others in place."""

    layers: tuple[int, ...]
    rows: int
    row_bytes: int
    readings: tuple[Reading, ...]  # of the first layer, then of additions in place
    scratch_bytes: int = 0
    form: RowForm | None = None  # of the first layer; None if it can only run whole
    output: bool = False  # the tensor is an output of the network
    layer: Layer | None = None  # the first layer, trimmed for rows
    integers: Any = None  # of that layer

    @property
    def sums(self) -> bool:
        return self.form is not None and self.form.kernel.sums_rows

    @property
    def added(self) -> tuple[Reading, ...]:
        """The additional readings of layers that work in place."""
        return self.readings[len(self.layer.inputs) :] if self.layer else ()

    @property
    def held_bytes(self) -> int:
        """The bytes of a row in memory, 4 per element for sums."""
        return 4 * self.row_bytes if self.sums else self.row_bytes


# --- from layers to stages --------------------------------------------------------------------------------------------


def _shape(layer: Layer) -> tuple[int, int]:
    """The number of rows in the output, and the bytes of each; a vector is one row."""
    shape = layer.out_shape
    return (shape[1], shape[0] * shape[2]) if len(shape) == 3 else (1, layer.out_size)


def _geometry(layer: Any) -> tuple[int, int, int]:
    """Window, stride and padding in rows; a dilated window includes the rows that it skips."""
    return (dilated_kernel_size(layer)[0], layer.stride[0], layer.pad[0]) if hasattr(layer, "window") else (1, 1, 0)


def _reaches_rows(layer: Layer) -> bool:
    """Whether every window contains a row of the image; kernels are not called for padding alone."""
    rows, out = layer.in_shape[1] if len(layer.in_shape) == 3 else 1, _shape(layer)[0]
    window, stride, pad = _geometry(layer)
    return pad < window and (out - 1) * stride - pad < rows


def _by_rows(kernel: AnyKernel, layer: Layer, integers: Any, target: Target) -> tuple[RowForm | None, Layer, Any]:
    """The form, layer and integers for running row by row, with zero edges of windows trimmed if the kernel allows."""
    form = kernel.row_form(layer, target)
    for rows, columns in ((True, True), (True, False), (False, True), (False, False)):
        smaller, held = layer.trimmed(integers, rows, columns)
        if form and _reaches_rows(smaller) and form.kernel.objection(smaller, target) is None:
            return form, smaller, held
    return None, layer, integers


class _Stages:
    """Builds stages from layers in network order."""

    def __init__(self, network: QuantizedNetwork, promised_only: bool) -> None:
        self.network, self.promised_only = network, promised_only
        self.layers = network.graph.layers
        self.index = {layer.name: i for i, layer in enumerate(self.layers)}
        self.readers = {name: [layer for layer in self.layers if name in layer.inputs] for name in self.index}
        self.stages: dict[int, Stage] = {}  # by the layer that makes the tensor; readings name such layers
        self.owner: dict[str, int] = {}  # of each layer's output
        for i, layer in enumerate(self.layers):
            self._add(i, layer)

    def _add(self, i: int, layer: Layer) -> None:
        kernel = self.network.layers[i].kernel
        in_place = bool(layer.inputs) and layer.elementwise and kernel.in_place(layer, self.promised_only)
        host = self._host(layer) if in_place else None
        if host is not None:
            stage = self.stages.pop(host)
            names = dict.fromkeys(name for name in layer.inputs if self.owner[name] != host)
            others = tuple(r for r in (self._reading(name, 1, 1, 0) for name in names) if r not in stage.added)
            self.stages[host] = replace(
                stage,
                layers=(*stage.layers, i),
                readings=(*stage.readings, *others),
                output=layer.name in self.network.graph.outputs,
            )
            self.owner[layer.name] = host
            return
        rows, row_bytes = _shape(layer)
        target = self.network.target
        form, integers = None, self.network.layers[i].integers
        if rows > 1 or len(layer.in_shape) == 3:
            form, layer, integers = _by_rows(kernel, layer, integers, target)
        window, stride, pad = _geometry(layer)
        self.stages[i] = Stage(
            layers=(i,),
            rows=rows,
            row_bytes=row_bytes,
            readings=tuple(self._reading(name, window, stride, pad) for name in layer.inputs),
            scratch_bytes=aligned((form.kernel if form else kernel).scratch_bytes(layer, target)),
            form=form,
            output=layer.name in self.network.graph.outputs,
            layer=layer,
            integers=integers,
        )
        self.owner[layer.name] = i

    def _reading(self, name: str, window: int, stride: int, pad: int) -> Reading:
        return Reading(self.owner[name], window, stride, pad, window - pad)

    def _host(self, layer: Layer) -> int | None:
        """The stage in which the layer can work in place, or None.

        It must not be an output, nor have other readers. An addition takes the stage that looks furthest ahead, so it
        runs as soon as that stage has a row.
        """
        outputs = self.network.graph.outputs
        alone = [self.owner[name] for name in layer.inputs if len(self.readers[name]) == 1 and name not in outputs]
        if len(layer.inputs) > 1:
            made = [host for host in alone if self.stages[host].readings and not self.stages[host].sums]
            return max(made, key=lambda host: (self.stages[host].readings[0].ahead, host), default=None)
        return alone[0] if alone else None

    def ordered(self) -> list[Stage]:
        """The stages, each after those that it reads; readings become indices into the list."""
        order: list[int] = []

        def visit(key: int) -> None:
            if key not in order:
                for reading in self.stages[key].readings:
                    visit(reading.source)
                order.append(key)

        for key in sorted(self.stages, key=lambda key: self.stages[key].layers[-1]):
            visit(key)
        place = {key: i for i, key in enumerate(order)}
        stages = [self.stages[key] for key in order]
        # Readers of a tensor with the same stride advance together: rows that one computes earlier would only wait.
        ahead: dict[tuple[int, int, int], int] = {}
        for stage in stages:
            for r in stage.readings:
                group = (r.source, r.stride, stage.rows)
                ahead[group] = max(ahead.get(group, 0), r.ahead)
        return [
            replace(
                stage,
                readings=tuple(
                    replace(r, source=place[r.source], ahead=ahead[r.source, r.stride, stage.rows])
                    for r in stage.readings
                ),
            )
            for stage in stages
        ]


def find_stages(network: QuantizedNetwork, promised_only: bool = False) -> list[Stage]:
    """The stages of a network, each after those that it reads."""
    return _Stages(network, promised_only).ordered()
