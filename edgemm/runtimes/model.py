"""An opened bundle that talks and draws: what `edgemm.load` gives back.

It turns a caller's words, pictures and options into requests, loads engines when they are first needed, and hands both
to the loops (text_loop.py, image_tokens_loop.py, denoise_loop.py).  It knows no graph, no sampling and no schedule.
"""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from edgemm.bundle import UNCONDITIONAL, Bundle, open_bundle
from edgemm.errors import BundleError, EdgemmError, InputError, UsageError
from edgemm.loops import DenoiseLoop, ImageTokensLoop, TextLoop
from edgemm.picture import PictureSource, load_picture
from edgemm.runtimes import schedule
from edgemm.runtimes.adapters import AdaptedEngine, Adapter, Adapters
from edgemm.runtimes.backends import Choice, assign, load_backend, select
from edgemm.runtimes.cache_budget import CacheBudget, MemoryPlan, plan_memory
from edgemm.runtimes.calls import Calls
from edgemm.runtimes.constraint import ConstraintMaker
from edgemm.runtimes.denoise_loop import DrawClock, DrawEngines, DrawRequest, check_noise, draw
from edgemm.runtimes.engine import Arrays, Engine, check_finite
from edgemm.runtimes.events import DenoiseProgress, TextChunk
from edgemm.runtimes.image_tokens_loop import CodesClock, CodesEngines, CodesRequest, draw_codes
from edgemm.runtimes.interleaved import DRAW_MARKS, InterleavedResult, check_marks, write_interleaved
from edgemm.runtimes.kv_cache import CachedTransformer
from edgemm.runtimes.onnx_external_data import check_external_data
from edgemm.runtimes.prompt import (
    Message,
    Prompt,
    as_messages,
    chat_prompt,
    drawing_prompt,
    empty_drawing_prompt,
    image_prompt,
    unconditional_prompt,
    with_picture_ids,
)
from edgemm.runtimes.results import ImageResult, TextResult
from edgemm.runtimes.sampling import Sampling
from edgemm.runtimes.session import Session
from edgemm.runtimes.tensor_file import read_tensors
from edgemm.runtimes.text_batch import write_replies
from edgemm.runtimes.text_loop import Clock, TextRequest, write_reply
from edgemm.runtimes.text_options import TextOptions
from edgemm.runtimes.threads import ThreadPlan, plan_threads
from edgemm.tokenizer import Tokenizer

__all__ = ["Model"]

MOST_PICTURES = 64  # of one prompt in one call
LARGEST_GUIDANCE = 100.0
T = TypeVar("T")


class Model:
    """One bundle on one device.

    Threads may share it.  Runs of its engines take turns, one at a time, and every call has a K/V cache and prefix of
    its own, so calls from several threads, or several open streams, interleave safely and each sees only its own.
    `cancel()` may be called from any thread: every call in progress ends within one token or one denoising step and
    keeps what it has.  Closing one stream ends that call alone.  Use it as a context manager, or `close()` it.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: Choice,
        plan: ThreadPlan,
        memory_limit_mb: float | None = None,
        backend: str | Mapping[str, str] | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.choice = choice  # what it runs on, and why
        self.threads = plan
        self.memory: MemoryPlan = plan_memory(self.manifest, choice.target, memory_limit_mb)
        self.budget = CacheBudget(self.memory.cache_bytes)  # of all conversations together
        self._components = self.manifest.targets[choice.target]
        self.choices = assign(choice, self._components, backend)  # what each component runs on
        self._engines: dict[str, Engine] = {}
        self._loading = threading.Lock()
        self._running = threading.Lock()
        self._calls = Calls()
        self._closed = False
        self._unconditional: Arrays | None = None
        self.tokenizer = Tokenizer(bundle.file(self.manifest.tokenizer))
        self.constraints = self._constraint_maker()
        self.adapters = Adapters(
            {component: self.manifest.variant(component, choice.target).inputs for component in self._components}
        )
        for component in self._components:
            check_external_data(*self._files(component))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        verify: bool = True,
        memory_limit_mb: float | None = None,
        backend: str | Mapping[str, str] | None = None,
    ) -> Model:
        """Opens a bundle; nothing is run before every file's hash was checked (`verify`)."""
        plan = plan_threads(threads)
        bundle = open_bundle(path, verify=verify)
        return cls(bundle, select(device, bundle.manifest.targets), plan, memory_limit_mb, backend)

    # Text

    def generate_text(
        self,
        prompt: str | Sequence[dict[str, Any]],
        images: Sequence[PictureSource] = (),
        **options: Any,
    ) -> TextResult:
        """A reply to a prompt, or to messages; `options` are those of stream_text."""
        for chunk in self.stream_text(prompt, images, **options):
            if chunk.result is not None:
                return chunk.result
        raise EdgemmError("the reply ended without a result")

    def stream_text(
        self,
        prompt: str | Sequence[dict[str, Any]],
        images: Sequence[PictureSource] = (),
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        grammar: str | None = None,
        timeout_s: float | None = None,
        ignore_eos: bool = False,
    ) -> Iterator[TextChunk]:
        """The reply in pieces as they come; arguments are checked and pictures read before the first is asked for.

        `prompt` is a string or a list of {"role", "content", "images"}; `images` belong to the last message.  With
        `logprobs` each token tells how likely it was, and so many of the likeliest beside it.  With `json_schema`, or
        `grammar` in Lark's notation, the reply can be nothing else.  After `timeout_s` the reply ends with the reason
        "cancelled" and keeps what it has.  With `ignore_eos` the model's own stop tokens end nothing, so that a
        benchmark times every token it asked for.
        """
        options = TextOptions(
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            stop,
            logprobs,
            json_schema,
            grammar,
            timeout_s,
            ignore_eos,
        )
        return Session(self).stream_text(prompt, images, **vars(options))

    def session(self, system: str | None = None) -> Session:
        """A conversation that keeps its K/V cache between turns; `system` is its system message."""
        return Session(self, () if system is None else (Message("system", system),))

    def generate_texts(
        self,
        prompts: Sequence[str | Sequence[dict[str, Any]]],
        images: Sequence[Sequence[PictureSource]] | None = None,
        **options: Any,
    ) -> list[TextResult]:
        """A reply to each prompt, written side by side; `images` are a list a prompt, `options` as in stream_text.

        Every reply is the one that its prompt would get alone, with the same seed.
        """
        began = time.perf_counter()
        chosen, loop = TextOptions(**options), self._text_loop()
        self._check_open()
        if isinstance(prompts, str) or not prompts:
            raise UsageError("prompts is empty or a string, expected a list of prompts")
        given = [()] * len(prompts) if images is None else images
        if len(given) != len(prompts):
            raise UsageError(f"images has {len(given)} lists, expected one for each of {len(prompts)} prompts")
        requests, pictures = [], []
        for prompt, own in zip(prompts, given):
            messages = as_messages(prompt, own)
            tokens = chat_prompt(messages, loop, self.tokenizer)
            self._check_length(len(tokens))
            requests.append(chosen.request(tokens, loop, self.constraints))
            pictures.append([self._picture(image, loop) for message in messages for image in message.images])

        def write(cancelled: Callable[[], bool]) -> Iterator[list[TextResult]]:
            clocks = [Clock(began) for _ in requests]
            seen = [self._timed_look(r.prompt, own, clock) for r, own, clock in zip(requests, pictures, clocks)]
            asked = [dataclasses.replace(r, prompt=prompt) for r, (prompt, _) in zip(requests, seen)]
            transformer = self.conversation(rows=len(asked))
            yield write_replies(asked, [tokens for _, tokens in seen], transformer, self.tokenizer, cancelled, clocks)

        return next(self._call(write, chosen.timeout_s))

    def generate(
        self,
        prompt: str | Sequence[dict[str, Any]],
        images: Sequence[PictureSource] = (),
        drawing: Mapping[str, Any] | None = None,
        draw_marks: tuple[str, str] = DRAW_MARKS,
        max_images: int = 4,
        **options: Any,
    ) -> Iterator[TextChunk | DenoiseProgress | ImageResult | InterleavedResult]:
        """Text and pictures in one reply, as they come, and at last the whole InterleavedResult.

        What the model writes between `draw_marks` is drawn, with the options `drawing` (those of stream_image), and the
        picture is read back before the reply goes on; `options` are those of stream_text.
        """
        self._check_open()
        chosen, loop, marks = TextOptions(**options), self._text_loop(), check_marks(draw_marks)
        _check_whole("max_images", max_images, 1, MOST_PICTURES)
        drawing = dict(drawing or {})
        self._drawing("the options are checked before anything is written", **drawing)
        if loop.joined:
            raise InputError("this model reads a conversation as one string, in which no drawn picture can be put")
        messages = as_messages(prompt, images)
        tokens = chat_prompt(messages, loop, self.tokenizer)
        self._check_length(len(tokens))
        request = chosen.request(tokens, loop, self.constraints)
        pictures = [self._picture(image, loop) for message in messages for image in message.images]
        return self._call(
            lambda cancelled: write_interleaved(self, request, pictures, marks, max_images, drawing, cancelled),
            chosen.timeout_s,
        )

    def _write(
        self,
        request: TextRequest,
        image_tokens: np.ndarray | None,
        cancelled: Callable[[], bool],
        clock: Clock,
        transformer: CachedTransformer,
    ) -> Iterator[TextChunk]:
        yield from write_reply(request, image_tokens, transformer, self.tokenizer, cancelled, clock)

    def conversation(self, rows: int = 1) -> CachedTransformer:
        """The transformer with an empty memory, for one reply or several side by side."""
        head = self.engine("text_head") if "text_head" in self._components else None
        loop, most = self.manifest.loops.text, self.manifest.limits.max_context
        silent = self._ids(loop.silent_ids) if loop and loop.silent_ids else None
        engine = self.engine("transformer")
        return CachedTransformer(engine, most, head=head, rows=rows, budget=self.budget, silent=silent)

    def _timed_conversation(self, clock: Clock) -> CachedTransformer:
        """A conversation; what its engines take to load is told apart."""
        start = time.perf_counter()
        made = self.conversation()
        clock.load_s += time.perf_counter() - start
        return made

    def look(self, prompt: Prompt, pictures: list[np.ndarray], loop: TextLoop) -> tuple[Prompt, np.ndarray | None]:
        """Pictures (3, S, S) as what the transformer reads: token ids in the prompt, or tokens (1, m, width) beside."""
        if pictures and "vq_encoder" in self._components:
            return with_picture_ids(prompt, self._as_ids(self.engine("vq_encoder"), pictures, loop)), None
        return prompt, self._encode(self.engine("image_encoder"), pictures, loop) if pictures else None

    def _timed_look(self, prompt: Prompt, pictures: list[np.ndarray], clock: Clock) -> tuple[Prompt, np.ndarray | None]:
        """The same; what its engines take to load is told apart."""
        eyes = [name for name in ("image_encoder", "vq_encoder") if pictures and name in self._components]
        clock.load_s += self._timed_engines(eyes)[1]
        start = time.perf_counter()
        seen = self.look(prompt, pictures, self._text_loop())
        clock.image_encode_s += time.perf_counter() - start
        return seen

    def _ids(self, path: str) -> np.ndarray:
        """A table of token ids in the bundle."""
        ids = read_tensors(self.bundle.file(path)).get("ids")
        if ids is None or ids.dtype != np.int64 or ids.ndim != 1:
            raise BundleError(f"{path}: expected a tensor `ids` of whole numbers")
        return ids

    def _as_ids(self, encoder: Engine, pictures: list[np.ndarray], loop: TextLoop) -> np.ndarray:
        """Pictures (3, S, S) -> token ids (m), one picture after the other."""
        ids = np.zeros((len(pictures), loop.image_token_count), dtype=np.int64)
        for index, picture in enumerate(pictures):
            encoder.bind({"pixels": picture[None]}, {"token_ids": ids[index : index + 1]}).run()
        return ids.reshape(-1)

    def _encode(self, encoder: Engine, pictures: list[np.ndarray], loop: TextLoop) -> np.ndarray:
        """Pictures (3, S, S) -> tokens (1, m, width), one picture after the other."""
        count, width = loop.image_token_count, encoder.outputs["image_tokens"].fixed(2, "width")
        tokens = np.zeros((len(pictures), count, width), dtype=np.float32)
        for index, picture in enumerate(pictures):
            encoder.bind({"pixels": picture[None]}, {"image_tokens": tokens[index : index + 1]}).run()
        check_finite(tokens, "image_encoder, image tokens")
        return tokens.reshape(1, -1, width)

    # Pictures

    def generate_image(self, prompt: str, **options: Any) -> ImageResult:
        """A picture of a prompt; `options` are those of stream_image."""
        for event in self.stream_image(prompt, **options):
            if isinstance(event, ImageResult):
                return event
        raise EdgemmError("drawing ended without a result")

    def stream_image(
        self,
        prompt: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        num_images: int = 1,
        noise: np.ndarray | None = None,
        preview: bool = False,
        timeout_s: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        image: PictureSource | None = None,
    ) -> Iterator[DenoiseProgress | ImageResult]:
        """Progress after every step, with previews when asked for, and at last the ImageResult.

        What is None is the bundle's own default.  Picture number i has the seed `seed + i`; `noise`, (n, p) or
        (num_images, n, p), takes the place of the seeds' noise.  Guidance leads away from `negative_prompt`, or from
        the empty prompt; guidance 1 leaves that half out.  `image` is a picture to edit, for bundles that can.  Models
        that draw by denoising take steps, noise and previews; those that draw token by token take temperature, top_k
        and top_p.
        """
        start = self._drawing(
            prompt,
            num_inference_steps,
            guidance_scale,
            seed,
            num_images,
            noise,
            preview,
            temperature,
            top_k,
            top_p,
            negative_prompt,
            image,
        )
        return self._call(start, timeout_s)

    def _drawing(
        self,
        prompt: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
        num_images: int = 1,
        noise: np.ndarray | None = None,
        preview: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        negative_prompt: str | None = None,
        image: PictureSource | None = None,
    ) -> Callable[[Callable[[], bool]], Iterator[DenoiseProgress | ImageResult]]:
        """What draws, given a `cancelled`; options are checked now."""
        self._check_open()
        _check_whole("seed", seed, 0, 2**64 - 1)
        _check_whole("num_images", num_images, 1, MOST_PICTURES)
        if image is not None:
            raise InputError(
                f"bundle {self.manifest.name} does not edit pictures: its model was trained to draw from words alone; "
                "leave `image` out, or ask about the picture with generate_text"
            )
        loop = self.manifest.loops.image_tokens
        if loop is not None:
            _refuse(
                "draws token by token", num_inference_steps=num_inference_steps, noise=noise, preview=preview or None
            )
            sampling = (temperature, top_k, top_p)
            codes = self._codes_request(prompt, guidance_scale, seed, num_images, sampling, negative_prompt, loop)
            return lambda cancelled: self._draw_codes(codes, loop, cancelled, CodesClock())
        _refuse("draws by denoising", temperature=temperature, top_k=top_k, top_p=top_p)
        clock, denoise = DrawClock(), self._denoise_loop()
        request = self._draw_request(
            prompt, num_inference_steps, guidance_scale, seed, num_images, noise, preview, negative_prompt, denoise
        )
        return lambda cancelled: self._draw(request, denoise, cancelled, clock)

    def _draw_request(
        self,
        prompt: str,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        seed: int,
        num_images: int,
        noise: np.ndarray | None,
        preview: bool,
        negative_prompt: str | None,
        loop: DenoiseLoop,
    ) -> DrawRequest:
        steps = loop.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = loop.guidance_scale if guidance_scale is None else guidance_scale
        _check_whole("num_inference_steps", steps, 1, self.manifest.limits.max_steps)
        _check_guidance(scale)
        tokens, negative = drawing_prompt(prompt, loop.template, self.tokenizer), None
        if negative_prompt is not None:
            if scale == 1:
                raise UsageError("negative_prompt needs guidance, guidance_scale is 1")
            negative = drawing_prompt(negative_prompt, loop.template, self.tokenizer)
        self._check_length(max(len(tokens), len(negative or ())))
        seeds = tuple(int(seed) + index for index in range(num_images))
        if noise is None:
            noises = tuple(schedule.initial_noise(each, loop.token_count, loop.token_width) for each in seeds)
        else:
            noises = check_noise(noise, num_images, loop)
        return DrawRequest(tokens, steps, float(scale), seeds, noises, preview, negative)

    def _draw(
        self, request: DrawRequest, loop: DenoiseLoop, cancelled: Callable[[], bool], clock: DrawClock
    ) -> Iterator[DenoiseProgress | ImageResult]:
        adapter = self.adapters.active
        names = ("transformer", "conditioner", "denoiser", "image_decoder")
        loaded, clock.load_s = self._timed_engines(names, adapter)
        if "transformer" in adapter.touched and request.negative is None:  # the bundle's own was made without it
            request = dataclasses.replace(request, negative=empty_drawing_prompt(loop.template, self.tokenizer))
        if self._unconditional is None:
            self._unconditional = read_tensors(self.bundle.file(UNCONDITIONAL))
        engines = DrawEngines(
            **loaded,
            unconditional=self._unconditional,
            max_context=self.manifest.limits.max_context,
            budget=self.budget,
        )
        yield from draw(request, loop, engines, cancelled, clock)

    def _codes_request(
        self,
        prompt: str,
        guidance_scale: float | None,
        seed: int,
        num_images: int,
        sampling: tuple[float | None, int | None, float | None],
        negative_prompt: str | None,
        loop: ImageTokensLoop,
    ) -> CodesRequest:
        scale = loop.guidance_scale if guidance_scale is None else guidance_scale
        _check_guidance(scale)
        asked_temperature, asked_k, asked_p = sampling
        tokens = image_prompt(prompt, loop, self.tokenizer)
        blank = None if scale == 1 else unconditional_prompt(tokens, negative_prompt, loop, self.tokenizer)
        self._check_length(max(len(tokens), len(blank or ())) + loop.length)
        return CodesRequest(
            tokens,
            blank,
            float(scale),
            Sampling(
                loop.temperature if asked_temperature is None else asked_temperature,
                loop.top_k if asked_k is None else asked_k,
                loop.top_p if asked_p is None else asked_p,
            ),
            tuple(int(seed) + index for index in range(num_images)),
        )

    def _draw_codes(
        self, request: CodesRequest, loop: ImageTokensLoop, cancelled: Callable[[], bool], clock: CodesClock
    ) -> Iterator[DenoiseProgress | ImageResult]:
        start = time.perf_counter()
        engines = self.codes_engines(loop)
        clock.load_s = time.perf_counter() - start
        yield from draw_codes(request, loop, engines, cancelled, clock)

    def codes_engines(self, loop: ImageTokensLoop) -> CodesEngines:
        """What draws token by token."""
        own_head = loop.code_ids is None
        return CodesEngines(
            self.engine("transformer"),
            self.engine("vq_decoder"),
            self.engine("image_head") if own_head else None,
            self.engine("image_embedder") if own_head else None,
            None if loop.code_ids is None else self._ids(loop.code_ids),
            self.manifest.limits.max_context,
        )

    # Adapters

    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> None:
        """Reads an adapter in PEFT's layout; set_adapter makes it the one that calls take."""
        self.adapters.load(name, Path(path))

    def set_adapter(self, name: str | None) -> None:
        """The adapter of every call and session that begins from now on; None for none.  Takes no copy."""
        self.adapters.set(name)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; calls that began with it keep it to their end."""
        self.adapters.unload(name)

    # Life

    def cancel(self) -> None:
        """Ends every call in progress, from any thread; each keeps what it has."""
        self._calls.cancel()

    def close(self) -> None:
        """Ends every call and lets the engines go; a closed model answers nothing more."""
        self._closed = True
        self.cancel()
        self._engines.clear()

    def prepare(self) -> None:
        """Loads every engine now, so that no first call has to wait for one."""
        self._timed_engines(tuple(self._components))

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, start: Callable[[Callable[[], bool]], Iterator[T]], timeout_s: float | None) -> Iterator[T]:
        """Runs a loop with a `cancelled` that hears cancel(), close() and the clock."""

        def begin(cancelled: Callable[[], bool]) -> Iterator[T]:
            self._check_open()
            return start(cancelled)

        return self._calls.run(begin, timeout_s)

    def engine(self, component: str, adapter: Adapter | None = None) -> Engine:
        """A component's engine, loaded when first asked for, with the active adapter or the one given."""
        if component not in self._components:
            raise InputError(f"this bundle has no {component} for target {self.choice.target}")
        with self._loading:
            self._check_open()
            if component not in self._engines:
                graph, data = self._files(component)
                variant = self.manifest.variant(component, self.choice.target)
                choice = self.choices[component]
                self._engines[component] = load_backend(choice.backend).open_engine(
                    component, graph, data, variant, choice.provider, self.threads, self._running
                )
            engine = self._engines[component]
        factors = (adapter or self.adapters.active).factors.get(component)
        return engine if factors is None else AdaptedEngine(engine, factors)

    def watch_engines(self, watch: Callable[[Engine], Engine]) -> None:
        """Loads every engine and puts `watch(engine)` in its place: for measuring, between calls."""
        watched = {component: watch(self.engine(component)) for component in self._components}
        with self._loading:
            self._engines.update(watched)

    def _timed_engines(
        self, components: Sequence[str], adapter: Adapter | None = None
    ) -> tuple[dict[str, Engine], float]:
        start, adapter = time.perf_counter(), adapter or self.adapters.active
        return {component: self.engine(component, adapter) for component in components}, time.perf_counter() - start

    def _files(self, component: str) -> tuple[Any, Any]:
        variant = self.manifest.variant(component, self.choice.target)
        return self.bundle.file(variant.graph), None if variant.data is None else self.bundle.file(variant.data)

    def _picture(self, image: PictureSource, loop: TextLoop) -> np.ndarray:
        if not {"image_encoder", "vq_encoder"} & self._components.keys():
            raise InputError(f"bundle {self.manifest.name} does not read pictures: it has no image_encoder")
        most = self.manifest.limits.max_image_pixels
        return load_picture(image, loop.image_size, loop.background, most, loop.image_fit, loop.image_resample)

    def _constraint_maker(self) -> ConstraintMaker:
        text, names = self.manifest.loops.text, self._components
        size = 0
        speaker = "text_head" if "text_head" in names else "transformer"
        if speaker in names:
            outputs = self.manifest.variant(speaker, self.choice.target).outputs
            size = next((spec.fixed(1, "vocabulary") for spec in outputs if spec.name == "logits"), 0)
        stops = () if text is None else text.stop_token_ids
        return ConstraintMaker(self.bundle.file(self.manifest.tokenizer), size, stops)

    def _text_loop(self) -> TextLoop:
        if self.manifest.loops.text is None:
            raise BundleError(f"bundle {self.manifest.name} does not talk: it has no text loop")
        return self.manifest.loops.text

    def _denoise_loop(self) -> DenoiseLoop:
        if self.manifest.loops.denoise is None:
            raise BundleError(
                f"bundle {self.manifest.name} does not draw: it has no denoise loop and no image_tokens loop"
            )
        return self.manifest.loops.denoise

    def _check_length(self, tokens: int) -> None:
        if tokens > self.manifest.limits.max_context:
            raise InputError(
                f"the prompt takes {tokens} tokens, this bundle holds at most {self.manifest.limits.max_context}; "
                "shorten it"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the model is closed")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}, expected a whole number from {low} to {high}")


def _check_guidance(scale: float) -> None:
    if not (math.isfinite(scale) and 0 <= scale <= LARGEST_GUIDANCE):
        raise UsageError(f"guidance_scale is {scale}, expected 0 to {LARGEST_GUIDANCE:g}")


def _refuse(how: str, **options: Any) -> None:
    """Options that mean nothing to this bundle's way of drawing."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: this bundle {how} and has no such option")
