"""What a foreign graph multiplies with goes by the name that its weight has: else it would stay in float, unsaid."""

from __future__ import annotations

import pytest

from edgemm.export.products import products_of
from edgemm.export.specs import graph_weights
from edgemm.families.folder import find_foreign
from edgemm.families.hf_checkpoint import open_checkpoint
from edgemm.families.table import load_family
from edgemm.quantize.layers import TOWERS
from tests.export.nano import needs_opset_24
from tests.families.tiny.folders import write_folder
from tests.traced import traced

TOLD = ("transformer", "text_head", "image_head", *TOWERS)  # components that `--precision int8` quantizes
FAST, LONG = ("llama", "fuyu"), ("emu3", "janus", "qwen3_vl")


@needs_opset_24
@pytest.mark.parametrize("family", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_every_product_of_a_graph_goes_by_the_name_of_its_weight(family, tmp_path):
    found = find_foreign(write_folder(family, tmp_path / family))
    assert found
    graphs = load_family(found).parts(open_checkpoint(found)).graphs
    weights = graph_weights(graphs)
    for component in TOLD:
        if component in graphs:
            products = list(products_of(traced(graphs[component]), component))
            assert products or component in TOWERS
            for product in products:
                assert (
                    tuple(weights[product.layer].shape) == tuple(product.stored.shape)[:: 1 if product.across else -1]
                )
