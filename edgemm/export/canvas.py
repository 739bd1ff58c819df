"""A graph in the making, composed of the components' own lowered graphs; nothing is traced anew.

The weights are those of the components' files, which the graph names where they lie.  What the runtime computes between
two components runs here on Symbols, which write down what is asked of them, so its mathematics is said once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemm.bundle.components import Variant
from edgemm.errors import UsageError

__all__ = ["Canvas", "Symbol"]


class Canvas:
    """A graph in the making, and the graphs of components that may be put into it."""

    def __init__(self, folder: Path = Path(), variants: Mapping[str, Variant] = MappingProxyType({})) -> None:
        self.variants = variants
        self._models = {name: ir.load(folder / variant.graph) for name, variant in variants.items()}
        self._weights: dict[tuple[str, str], ir.Value] = {}  # of a component, by their names in it
        self._runs = 0
        opsets: dict[str, int] = {}
        for model in self._models.values():
            for domain, version in model.opset_imports.items():
                opsets[domain] = max(version, opsets.get(domain, 0))
        self.graph = ir.Graph([], [], nodes=[], opset_imports=opsets, name="one_call")
        self._constants: dict[tuple[Any, ...], ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        given = self.make("Identity", value)
        given.name, given.type, given.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(given)

    def give(self, name: str, value: ir.Value, dtype: ir.DataType, shape: Sequence[int | str]) -> None:
        """The value itself as an output: a cache is written in place only where no copy stands between."""
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
        self.graph.outputs.append(value)

    def make(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        return self.make_many(op_type, inputs, outputs, **attributes)[0]

    def make_many(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, domain: str = "", **attributes: Any
    ) -> Any:
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        self._runs += 1
        node.name = f"between.{self._runs}.{op_type}"
        for number, value in enumerate(node.outputs):
            value.name = f"{node.name}.{number}"
        self.graph.append(node)
        return tuple(node.outputs)

    def constant(self, value: Any, dtype: Any = np.int64) -> ir.Value:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant.{len(self._constants)}"
            made = ir.Value(
                name=name,
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                shape=ir.Shape(array.shape),
                const_value=ir.Tensor(array, name=name),
            )
            self.graph.register_initializer(made)
            self._constants[key] = made
        return self._constants[key]

    def run(self, component: str, inputs: Mapping[str, ir.Value]) -> dict[str, ir.Value]:
        """The component's graph on these inputs: its nodes copied, its weights shared with its other copies."""
        self._runs += 1
        prefix = f"{component}.{self._runs}."
        graph = self._models[component].clone().graph
        for value in graph.inputs:
            name = value.name or ""
            if name not in inputs:
                raise UsageError(f"one call: {component} wants {name!r}, which the loop does not know")
            value.replace_all_uses_with(inputs[name])
        for name, value in list(graph.initializers.items()):
            if (component, name) not in self._weights:
                self._weights[component, name] = self._weight(component, value)
            value.replace_all_uses_with(self._weights[component, name])
        outputs = {value.name or "": value for value in graph.outputs}
        nodes = list(graph)
        graph.outputs.clear()
        graph.remove(nodes)
        for node in nodes:
            node.name = prefix + (node.name or node.op_type)
            for value in node.outputs:
                if value.name:
                    value.name = prefix + value.name
                    value.shape = None  # axes have other names here
        self.graph.extend(nodes)
        return outputs

    def _weight(self, component: str, value: ir.Value) -> ir.Value:
        """As an initializer of this graph, in the component's own file."""
        tensor, name = value.const_value, f"{component}.{value.name}"
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            place = str(PurePosixPath(self.variants[component].graph).parent.name) + f"/{tensor.location}"
            tensor = ir.ExternalTensor(
                place, tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=name, base_dir=Path(tensor.base_dir).parent,
            )  # fmt: skip
        made = ir.Value(name=name, type=value.type, shape=value.shape, const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def model(self) -> ir.Model:
        return ir.Model(self.graph, ir_version=max(model.ir_version for model in self._models.values()))


UFUNCS = {np.add: "Add", np.subtract: "Sub", np.multiply: "Mul", np.true_divide: "Div", np.sqrt: "Sqrt"}


class Symbol(np.lib.mixins.NDArrayOperatorsMixin):
    """A float32 array of a graph in the making: numpy's operators on it become nodes, plain numbers constants."""

    def __init__(self, canvas: Canvas, value: ir.Value, ndim: int) -> None:
        self.canvas, self.value, self.ndim = canvas, value, ndim

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            return NotImplemented
        if ufunc is np.square:
            return self._new("Mul", self.value, self.value)
        if ufunc not in UFUNCS:
            raise NotImplementedError(f"{ufunc.__name__} has no operator here")
        values = [each.value if isinstance(each, Symbol) else self.canvas.constant(each, np.float32) for each in inputs]
        return self._new(UFUNCS[ufunc], *values)

    def sum(self, axis: int | None, keepdims: bool) -> Symbol:
        axes = list(range(self.ndim)) if axis is None else [axis]
        return self._new("ReduceSum", self.value, self.canvas.constant(axes), keepdims=int(keepdims))

    def clip(self, low: Any, high: Any, out: None = None) -> Symbol:
        bounds = (self.canvas.constant(each, np.float32) for each in (low, high))
        return self._new("Clip", self.value, *bounds)

    def _new(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> Symbol:
        return Symbol(self.canvas, self.canvas.make(op_type, *inputs, **attributes), self.ndim)
