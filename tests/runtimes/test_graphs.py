"""What a model is told of a graph: its words, and pictures where nodes have them."""

from __future__ import annotations

import dataclasses
import json

import networkx
import numpy as np
import pytest

import edgemm
from edgemm import Graph
from edgemm.bundle.bundle import Loops
from edgemm.bundle.chat import as_messages, chat_prompt, with_graph
from edgemm.bundle.manifest import GraphRows
from edgemm.cli.main import main
from edgemm.errors import InputError, UsageError
from tests.runtimes.tiny_bundle import TEXT_TEMPLATE, build, byte_tokenizer, text_loop

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 20, 3), dtype=np.uint8)
ASKED = "Which node is left of b?"
WORDS = Graph([{"id": "a", "text": "a red circle"}, {"id": "b"}], [("a", "left of", "b")])
SHOWN = Graph([{"id": "a", "text": "seen", "image": PIXELS}, {"id": "b", "image": PIXELS[::-1]}], [("a", "on", "b")])


def said(model, prompt, **given):
    return model.generate_text(prompt, max_new_tokens=6, **given).token_ids


def test_a_graph_of_words_is_its_text_before_the_question(model):
    wanted = said(model, WORDS.to_text() + ASKED)
    assert wanted != said(model, ASKED)
    assert said(model, ASKED, graph=WORDS) == wanted
    assert [result.token_ids for result in model.generate_texts([ASKED] * 2, graph=WORDS, max_new_tokens=6)] == [
        wanted
    ] * 2
    drawn = networkx.MultiDiGraph()
    drawn.add_nodes_from([("a", {"text": "a red circle"}), "b"])
    drawn.add_edge("a", "b", type="left of")
    assert said(model, ASKED, graph=drawn) == wanted
    assert said(model, ASKED, graph=networkx.node_link_data(drawn, edges="edges")) == wanted


def test_a_graph_stands_before_what_was_said_first(model):
    earlier = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": "a"}]
    last = {"role": "user", "content": "Sure?"}
    told = [{"role": "user", "content": WORDS.to_text() + ASKED}, earlier[1], last]
    assert said(model, [*earlier, last], graph=WORDS) == said(model, told)


def decoded(prompt, tokenizer):
    """The prompt as a string, a # for each row of a picture."""
    return "".join(
        "#" if row >= 0 else tokenizer.decode([token], skip_special_tokens=False)
        for token, row in zip(prompt.input_ids.tolist(), prompt.image_index.tolist())
    )


@pytest.mark.parametrize("joined", [False, True])
def test_pictures_stand_where_their_nodes_do(model, joined):
    loop = text_loop()
    if joined:
        loop = dataclasses.replace(loop, joined=True, apart=True)
    messages = with_graph(as_messages(ASKED, [PIXELS]), SHOWN)
    prompt = chat_prompt(messages, loop, model.tokenizer)
    picture = "#" * loop.image_token_count + "\n"
    wanted = f"{picture}A graph of 2 nodes and 1 edge.\na: seen {picture}\nb: {picture}\na -> on: b\n{ASKED}"
    shown = decoded(prompt, byte_tokenizer())
    assert shown == f"{TEXT_TEMPLATE.user_open}{wanted}{TEXT_TEMPLATE.user_close}{TEXT_TEMPLATE.assistant_open}"
    rows = prompt.image_index[prompt.image_index >= 0]
    assert rows.tolist() == list(range(3 * loop.image_token_count))


def test_where_pictures_stand_before_everything_each_node_says_which_is_its_own(model):
    loop = dataclasses.replace(text_loop(), block=True, image_open="<", image_end=">")
    prompt = chat_prompt(with_graph(as_messages(ASKED, [PIXELS]), SHOWN), loop, model.tokenizer)
    told = "A graph of 2 nodes and 1 edge.\na: seen [picture 2]\nb: [picture 3]\na -> on: b\n" + ASKED
    shown = decoded(prompt, byte_tokenizer())
    assert shown.endswith(f"{TEXT_TEMPLATE.user_open}{told}{TEXT_TEMPLATE.user_close}{TEXT_TEMPLATE.assistant_open}")
    assert shown.count("#") == 3 * loop.image_token_count


def test_the_order_of_pictures_is_that_of_their_nodes(model):
    turned = Graph(
        [{"id": "a", "text": "seen", "image": PIXELS[::-1]}, {"id": "b", "image": PIXELS}], [("a", "on", "b")]
    )
    logits = [
        model.generate_text(ASKED, graph=graph, max_new_tokens=1, logprobs=5).logprobs for graph in (SHOWN, turned)
    ]
    assert logits[0] != logits[1]


def test_a_session_reads_a_graph_with_any_message(model):
    with model.session() as chat:
        first = chat.generate_text(ASKED, graph=SHOWN, max_new_tokens=4).token_ids
        assert first == said(model, ASKED, graph=SHOWN)[: len(first)]
        assert chat.generate_text("And now?", graph=WORDS, max_new_tokens=2).metrics.prompt_tokens > len(
            WORDS.to_text()
        )


@pytest.mark.parametrize("rows", [None, GraphRows(("on",), 4)])
def test_what_was_said_of_a_graph_is_in_the_messages_of_a_session(model, rows):
    """However the model read it: who keeps them and asks again later tells the graph again."""
    (message,) = with_graph(as_messages(ASKED, [PIXELS]), SHOWN, rows)
    wanted = "A graph of 2 nodes and 1 edge.\na: seen [picture 2]\nb: [picture 3]\na -> on: b\n" + ASKED
    assert message.in_words == wanted and len(message.images) == 3
    if rows is None:
        with model.session() as chat:
            chat.generate_text(ASKED, images=[PIXELS], graph=SHOWN, max_new_tokens=2)
            assert chat.messages[0]["content"] == wanted and len(chat.messages[0]["images"]) == 3


def test_a_graph_is_drawn_from_its_words(model):
    wanted = model.generate_image(WORDS.to_text() + "as a sketch", seed=3).pixels
    assert np.array_equal(model.generate_image("as a sketch", graph=WORDS, seed=3).pixels, wanted)
    alone = model.generate_image(WORDS.to_text().strip(), seed=3).pixels
    assert np.array_equal(model.generate_image("", graph=WORDS, seed=3).pixels, alone)
    with pytest.raises(InputError, match="draws from words alone: node 'a' of the graph is a picture"):
        model.generate_image("x", graph=SHOWN)


def test_pictures_of_nodes_are_refused_by_a_model_that_reads_none(tmp_path):
    path = build(tmp_path / "blind.bundle", loops=Loops(text_loop()), without=("image_encoder", "image_decoder"))
    with edgemm.load(path, device="cpu", threads=1) as blind:
        with pytest.raises(InputError, match="does not read pictures"):
            said(blind, ASKED, graph=SHOWN)
        assert said(blind, ASKED, graph=WORDS)


def test_what_is_no_graph_is_a_wrong_call(model):
    with pytest.raises(UsageError, match="graph is int, expected node-link JSON"):
        said(model, ASKED, graph=7)
    with pytest.raises(UsageError, match="graph is int, expected node-link JSON"):
        model.generate_image("x", graph=7)


def test_verbs_take_a_file_and_refuse_a_broken_one_in_a_line(bundle_path, tmp_path, capsys):
    drawn = networkx.DiGraph()
    drawn.add_node("a", text="a red circle")
    drawn.add_edge("a", "b", type="left of")
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(networkx.node_link_data(drawn, edges="edges")))
    bad.write_text('{"nodes": [{"id": "a"}, {"id": "a"}], "edges": []}')
    chat = ["chat", str(bundle_path), "--device", "cpu", "--prompt", ASKED, "--max-new-tokens", "2", "--graph"]
    draw = ["draw", str(bundle_path), "--device", "cpu", "--output", str(tmp_path / "x.png"), "--graph"]
    assert main([*chat, str(good)]) == 0
    assert main([*draw, str(good)]) == 0 and (tmp_path / "x.png").exists()
    for words in (chat, draw):
        capsys.readouterr()
        assert main([*words, str(bad)]) == 3
        assert capsys.readouterr().err == f"edgemm: error: {bad}: nodes[1]: node 'a' stands twice, first as nodes[0]\n"
    assert main(draw[:-1]) == 2
