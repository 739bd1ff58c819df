"""The same seed gives the same tokens and the same file, byte for byte, from any thread and beside any other work."""

from __future__ import annotations

import threading

import pytest

import edgemm


def talk(model):
    return model.generate_text("hello", max_new_tokens=25, temperature=1.2, top_p=0.9, seed=11).token_ids


def draw(model, path, **options):
    model.generate_image("a red heart", seed=5, num_inference_steps=6, **options).image.save(path)
    return path.read_bytes()


def test_two_threads_talk_and_draw_on_one_model_as_each_does_alone(model, tmp_path):
    wanted = talk(model), draw(model, tmp_path / "alone.png")
    found: dict[str, list] = {"words": [], "pictures": []}
    begin = threading.Barrier(2)

    def talks():
        begin.wait()
        found["words"] += [talk(model) for _ in range(4)]

    def draws():
        begin.wait()
        found["pictures"] += [draw(model, tmp_path / f"{index}.png") for index in range(8)]

    threads = [threading.Thread(target=work) for work in (talks, draws)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"words": [wanted[0]] * 4, "pictures": [wanted[1]] * 8}


def test_a_bundle_opened_again_writes_the_same_bytes(bundle_path, model, tmp_path):
    with edgemm.load(bundle_path, device="cpu", threads=1) as again:
        assert (talk(again), draw(again, tmp_path / "b.png")) == (talk(model), draw(model, tmp_path / "a.png"))


@pytest.mark.parametrize("count", [2, 5])
def test_a_picture_among_many_is_the_picture_alone(model, tmp_path, count):
    many = model.generate_image("a red heart", num_images=count, seed=5, num_inference_steps=6)
    for index, picture in enumerate(many.images):
        picture.save(tmp_path / "many.png")
        alone = model.generate_image("a red heart", seed=5 + index, num_inference_steps=6).image
        alone.save(tmp_path / "alone.png")
        assert (tmp_path / "many.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_cancel_from_another_thread_ends_talking_and_drawing_within_one_step(model):
    """Each stream is asked for one more event after cancel(): it gives its end, with what there was."""
    words, pictures = model.stream_text("hello", max_new_tokens=50), model.stream_image("a heart")
    said, drawn = [next(words), next(words)], [next(pictures)]
    thread = threading.Thread(target=model.cancel)
    thread.start()
    thread.join()
    said.append(next(words))
    drawn.append(next(pictures))
    assert said[-1].finish_reason == "cancelled" and len(said[-1].result.token_ids) == 2
    assert drawn[-1].finish_reason == "cancelled" and len(drawn[-1].images) == 1
    assert next(words, None) is None and next(pictures, None) is None
