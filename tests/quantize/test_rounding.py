"""Numbers of one weight: against ONNX Runtime's own quantizers, and against the error that each method minimises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, DefaultWeightOnlyQuantizer
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

from edgemm.quantize.rounding import gptq, kquant, low_rank_branch, rtn
from edgemm.quantize.smoothing import awq_factors, output_error, smoothquant_factors
from edgemm.quantize.spec import Layer


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    return torch.randn(96, 160, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gram() -> torch.Tensor:
    """Of inputs with a few loud channels and neighbours that say much the same, as in a language model."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(500, 160, generator=random)
    x = x + 0.7 * x.roll(1, dims=1)
    x[:, ::37] *= 20
    return x.T @ x / len(x)


@pytest.mark.parametrize("bits", [4, 8])
def test_rtn_is_onnx_runtimes_own(weight, bits):
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=bits)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(weight.numpy().T.copy())
    ours = rtn(weight, bits, 32, symmetric=False)
    if bits == 4:
        packed = np.stack((packed & 15, packed >> 4), -1)
        zeros = np.stack((zeros & 15, zeros >> 4), -1).reshape(96, -1)[:, :5]
    np.testing.assert_allclose(ours.scales.numpy(), scales, rtol=2**-11)  # ours can be stored in float16
    np.testing.assert_array_equal(ours.zeros.numpy(), zeros)
    off = ours.codes.numpy().astype(int) - packed.reshape(96, -1)
    assert np.abs(off).max() <= 1 and np.mean(off != 0) < 0.02, "near-ties fall the other way"


def test_kquant_has_no_larger_error_than_onnx_runtimes(weight):
    codes, scale, zero = quant_tensor_k_quant_cpu(weight.numpy().reshape(-1, 32), 4, 32)
    theirs = torch.from_numpy(((codes - zero) * scale).reshape(96, 160)).float()
    blocks = weight.view(96, -1, 32)
    mass = (blocks.square().mean(-1, keepdim=True).sqrt() + blocks.abs()).view(96, 160)
    errors = [
        float((mass * (said - weight).square()).mean()) for said in (kquant(weight, 4, 32, False).dequantized(), theirs)
    ]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("symmetric", [True, False])
def test_kquant_beats_rounding_to_nearest(weight, symmetric):
    found, plain = (
        float((method(weight, 4, 32, symmetric).dequantized() - weight).square().mean()) for method in (kquant, rtn)
    )
    assert found < 0.97 * plain


def test_gptq_halves_the_error_of_the_outputs(weight, gram):
    errors = [
        output_error(numbers.dequantized() - weight, gram)
        for numbers in (gptq(weight, gram, 4, 32, False), kquant(weight, 4, 32, False))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_damped_gptq_keeps_the_weights_near_as_well(weight, gram):
    """What is looked up and multiplied with: better outputs than k-quant's, better weights than GPTQ's."""
    plain, bold, damped = (
        numbers.dequantized() - weight
        for numbers in (
            kquant(weight, 4, 32, True),
            gptq(weight, gram, 4, 32, True),
            gptq(weight, gram, 4, 32, True, damping=1.0),
        )
    )
    assert output_error(bold, gram) < output_error(damped, gram) < 0.8 * output_error(plain, gram)
    assert plain.square().sum() < damped.square().sum() < 0.8 * bold.square().sum()


def test_awq_lowers_the_error_of_the_outputs_and_smooths_nothing_where_nothing_helps(weight, gram):
    layer = Layer(4, 32, symmetric=False)
    factors = awq_factors([weight], [layer], gram)
    said = rtn(weight * factors, 4, 32, False).dequantized() / factors
    assert output_error(said - weight, gram) < 0.8 * output_error(
        rtn(weight, 4, 32, False).dequantized() - weight, gram
    )
    assert torch.equal(awq_factors([weight], [layer], torch.eye(160)), torch.ones(160))


def test_smoothquant_balances_inputs_and_weights(weight):
    largest = torch.rand(160, generator=torch.Generator().manual_seed(2)) * 50 + 1
    factors = smoothquant_factors([weight], largest)
    torch.testing.assert_close(largest / factors, (weight * factors).abs().amax(0))


def test_the_branch_is_the_best_of_its_rank_for_loud_channels(weight, gram):
    squares = gram.diagonal()
    down, up = low_rank_branch(weight, squares, 8)
    left = (weight - up @ down) * squares.sqrt()
    values = torch.linalg.svdvals(weight * squares.sqrt())
    assert float(left.square().sum()) == pytest.approx(float(values[8:].square().sum()), rel=0.02)
    assert torch.linalg.matrix_rank(up @ down) == 8


def test_a_weight_of_zeros_stays_zero():
    for method in (rtn, kquant):
        for symmetric in (True, False):
            assert not method(torch.zeros(3, 64), 4, 32, symmetric).dequantized().any()
