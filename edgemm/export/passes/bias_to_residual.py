"""A bias goes to the residual stream directly: r + (x W + b) becomes (r + b) + x W, where no other reads the inner sum.

TensorRT for RTX 1.7 fails on the first form in a transformer whose o_proj and down_proj both have a bias ("value.h:
CHECK(is_const())"), as it does with adapters there (adapter_points.py); it builds the second.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemm.export.passes.rewriting import made_by, nodes_of

__all__ = ["bias_to_residual"]


def bias_to_residual(model: ir.Model) -> bool:
    """In `model` itself; answers whether there was one."""
    changed = False
    for outer in nodes_of(model, "Add"):
        for place, value in enumerate(outer.inputs):
            inner, residual = made_by(value, "Add"), outer.inputs[1 - place]
            found = _product_and_bias(inner)
            if value is None or inner is None or found is None or residual is None or residual.is_initializer():
                continue
            if len(list(value.uses())) > 1:
                continue
            product, bias = found
            shifted = ir.node("Add", [residual, bias], name=f"{outer.name}/bias")
            shifted.outputs[0].name = f"{outer.name}/bias"
            shifted.outputs[0].type, shifted.outputs[0].shape = residual.type, residual.shape
            model.graph.insert_before(outer, shifted)
            outer.replace_input_with(1 - place, shifted.outputs[0])
            outer.replace_input_with(place, product)
            model.graph.remove(inner, safe=True)
            changed = True
            break
    return changed


def _product_and_bias(add: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    inputs = () if add is None else tuple(add.inputs)
    for product, bias in (inputs, inputs[::-1]) if inputs else ():
        if product is not None and made_by(product, "MatMul") and bias is not None and bias.is_initializer():
            return product, bias
    return None
