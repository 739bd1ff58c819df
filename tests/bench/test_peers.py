"""What the comparison with peers rests on: the arithmetic they share, and a table without holes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module", autouse=True)
def on_the_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
    for name in ("job", "compare", "environments", "models"):
        sys.modules.pop(name, None)


def test_likelihood_is_that_of_a_reference_library():
    torch = pytest.importorskip("torch")
    from job import negative_log_likelihood

    generator = np.random.default_rng(0)
    logits, ids = generator.normal(0, 5, (20, 50)).astype(np.float32), generator.integers(0, 50, 20).tolist()
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits[:-1]), torch.tensor(ids[1:]))
    assert negative_log_likelihood(logits, ids) == pytest.approx(float(expected), rel=1e-5)
    assert negative_log_likelihood(np.zeros((20, 50)), ids) == pytest.approx(np.log(50))


def test_every_entry_has_a_script_an_environment_and_a_model():
    from compare import ENTRIES, JOBS, PEERS
    from models import KINDS

    for entry in ENTRIES.values():
        assert (FOLDER / entry.script).is_file() and (entry.environment is None or entry.environment in PEERS)
        assert entry.kind in {"float32", *KINDS} and entry.job in JOBS
    assert {entry.environment for entry in ENTRIES.values()} == {None, *PEERS} - {"optimum"}


def test_no_two_prompts_of_a_process_begin_alike_and_all_are_as_long_as_asked():
    from job import _prompts

    ids = list(range(40))
    prompts = _prompts(ids, 100, 4)
    assert [len(prompt) for prompt in prompts] == [100] * 4
    assert len({prompt[0] for prompt in prompts}) == 4


def test_a_row_is_the_median_of_all_rounds_and_the_most_memory():
    from compare import _row

    rounds = [
        {"load_s": load, "peak_bytes": peak, "token_ms": tokens, "first_token_ms": {"32": [1], "128": [2], "512": [3]}}
        for load, peak, tokens in [(1.0, 5e6, [10, 30]), (3.0, 7e6, [20])]
    ]
    row = _row([rounds[0] | {"perplexity": 42.0}, rounds[1]])
    assert row["load_s"] == 2.0 and row["peak_mb"] == 7.0 and row["tokens_per_s"] == 50 and row["perplexity"] == 42.0
    assert row["first_token_ms"] == {"32": 1, "128": 2, "512": 3}


def test_the_table_names_the_kind_of_machine():
    from compare import machine_kind

    assert machine_kind(["avx512_bf16", "avx512_vnni"]) == "AVX512-BF16 and AVX512-VNNI, without AMX"
    assert machine_kind(["amx_int8", "avx512_vnni"]) == "AMX and AVX512-VNNI"
    assert machine_kind(["avx2"]) == "neither AMX nor VNNI"


def test_what_a_converter_refuses_is_told_in_its_own_words(tmp_path):
    from models import Places

    with pytest.raises(RuntimeError, match=r"^ValueError: no such model$"):
        Places(tmp_path, tmp_path).run(None, "-c", "raise ValueError('no such model')")
    with pytest.raises(FileNotFoundError, match="onnxruntime-genai has no environment"):
        Places(tmp_path, tmp_path).run("genai", "-c", "")
