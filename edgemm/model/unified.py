"""The whole model of a native family in torch: it reads and it draws, and every bundle is held against it.

Training, export and evaluation meet here.  Loading and saving are in checkpoint.py, losses in flow.py and train/.
Axes: b batch, s tokens, m image tokens for reading, n image tokens for drawing, w transformer width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgemm.bundle.node_link import Graph
from edgemm.bundle.prompt import Prompt, Tokenizer, with_picture_ids
from edgemm.model import codes, flow
from edgemm.model.conditioner import Conditioner, Prefix
from edgemm.model.config import ModelConfig, SamplerConfig
from edgemm.model.denoiser import Denoiser
from edgemm.model.designs import Connector, DenseDenoiser
from edgemm.model.graph_encoder import GraphEncoder
from edgemm.model.image_tokens import Autoencoder, VqTokenizer, pixels_to_tokens, tokens_to_pixels
from edgemm.model.prompts import draw_prompt, read_prompt, stop_ids
from edgemm.model.transformer import KeyValues, Transformer
from edgemm.model.vision import ImageEncoder, moved

__all__ = ["Asked", "Unified"]


@dataclass(frozen=True, eq=False)
class Asked:
    """One message, with pictures (pictures, 3, S, S) in [0, 1], a graph's after the others, or all of them the frames
    of a `clip`."""

    text: str
    pixels: Tensor | None = None
    graph: Graph | None = None
    clip: bool = False


def _named(pictures: Tensor, rows: Tensor, nodes: Tensor) -> Tensor:
    """Rows of pictures (m, w), with that one of a graph's (r, w) added which `nodes` (m) says, where it is not -1."""
    return pictures + torch.where((nodes >= 0)[:, None], rows[nodes.clamp(min=0)], 0.0)


class Unified(nn.Module):
    """transformer, image_encoder, conditioner and denoiser, with the strings that go around prompts.

    Where the objective is "ar" there is a VQ tokenizer in place of the last three.
    """

    image_encoder: ImageEncoder  # this and all but the last of the next: of objective "flow" only
    graph_encoder: GraphEncoder | None
    motion_encoder: ImageEncoder | None
    conditioner: Conditioner
    denoiser: Denoiser | DenseDenoiser
    autoencoder: Autoencoder | None
    vq: VqTokenizer | None

    def __init__(self, config: ModelConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.config = config
        self.tokenizer_json = tokenizer_json
        self.adapter: Path | None = None  # the PEFT folder whose weights were merged into a base transformer
        self.tokenizer = Tokenizer("tokenizer.json", tokenizer_json)
        tokens, rows = len(self.tokenizer), config.transformer.vocab_size + config.transformer.queries
        if tokens > rows:
            raise ValueError(f"the tokenizer has {tokens} tokens, the transformer's embedding {rows} rows")
        self.transformer = Transformer(config.transformer)
        kind = config.image_tokens.kind
        self.autoencoder = Autoencoder(config.image_tokens) if kind == "ae" else None
        self.vq = VqTokenizer(config.image_tokens) if kind == "vq" else None
        if config.objective == "ar":
            return
        width, motion = config.transformer.width, config.motion
        self.image_encoder = ImageEncoder(config.vision, width)
        self.motion_encoder = None if motion is None else ImageEncoder(motion, width, channels=6)
        kind_of_conditioner = Connector if config.experts == "connector" else Conditioner
        self.graph_encoder = None if config.graph is None else GraphEncoder(width, config.graph)
        self.conditioner = kind_of_conditioner(config, skip=len(self.encode(config.draw.open)))
        self.denoiser = (
            DenseDenoiser(config, self.transformer, self.conditioner.skip)
            if config.experts == "dense"
            else Denoiser(config)
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.embed_tokens.weight.device

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of one piece; `special` lets <|im_end|> and its like be one token."""
        return self.tokenizer.encode(text, special)

    # --- drawing ------------------------------------------------------------------------------------------------

    def prompt_cache(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Tensor | None] | None = None,
        learn: bool = False,
        every_layer: bool = False,
        graphs: Sequence[Graph | None] | None = None,
    ) -> tuple[KeyValues, Tensor, Tensor]:
        """K/V of the prefix layers (b, g, s, d), prompt_mask (b, s) float and prefix_length (b) of drawing prompts.

        A picture (3, S, S) to draw from may stand before a prompt's words, or a graph without pictures.
        `learn` keeps what a gradient needs;
        `every_layer` gives all that were read, from the first on.
        """
        with torch.set_grad_enabled(learn and torch.is_grad_enabled()):
            none = [None] * len(prompts)
            cached, mask, length = self._prompt_cache(prompts, pictures or none, graphs or none)
        return cached if every_layer else [cached[i] for i in self.config.denoiser.prefix_layers], mask, length

    def _prompt_cache(
        self, prompts: Sequence[str], pictures: Sequence[Tensor | None], graphs: Sequence[Graph | None]
    ) -> tuple[KeyValues, Tensor, Tensor]:
        built = [
            draw_prompt(self.config, self.tokenizer, prompt, picture is not None, graph)
            for prompt, picture, graph in zip(prompts, pictures, graphs, strict=True)
        ]
        x, limit, index = self.embedded(built, [[] if picture is None else [picture] for picture in pictures])
        depth = max(self.config.denoiser.prefix_layers) + 1
        _, cached = self.transformer(x, limit, depth=depth, pictured=index >= 0)
        length = torch.tensor([len(prompt) for prompt in built], device=self.device)
        return cached, self._padded(built, "users_own", 0), length

    def _padded(self, prompts: Sequence[Prompt], name: str, filling: int) -> Tensor:
        rows = [torch.from_numpy(getattr(prompt, name)) for prompt in prompts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filling).to(self.device)

    def embedded(
        self, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts of unlike lengths, each with its pictures (3, S, S) and clips (frames, 3, S, S) in their order, as
        what the transformer takes: x (b, s, w), attention_limit (b, s) and image_index (b, s)."""
        ids, index = self._padded(prompts, "input_ids", 0), self._padded(prompts, "image_index", -1)
        limit = torch.maximum(
            self._padded(prompts, "attention_limit", 0), torch.arange(ids.shape[1], device=ids.device)
        )
        if not (index >= 0).any():
            return self.transformer.embed_ids(ids), limit, index
        beside: list[list[Tensor]] = [[] for _ in prompts]  # rows of each prompt: its pictures', then its graph's
        shown = [picture for own in pictures for picture in own]
        if shown:
            clean = iter(self._image_tokens(shown))
            for row, own in enumerate(pictures):
                beside[row] += [next(clean) for _ in own]
        if any(prompt.graph is not None for prompt in prompts):
            for row, (prompt, rows) in enumerate(zip(prompts, self.graph_rows(prompts), strict=True)):
                if beside[row] and prompt.nodes is not None:
                    beside[row] = [_named(torch.cat(beside[row]), rows, torch.from_numpy(prompt.nodes).to(rows.device))]
                beside[row].append(rows)
        empty = ids.new_zeros(0, self.config.transformer.width, dtype=torch.float32)
        image_tokens = nn.utils.rnn.pad_sequence([torch.cat([empty, *own]) for own in beside], batch_first=True)
        return self.transformer.embed(ids, image_tokens, index, self.config.names_nodes), limit, index

    def _image_tokens(self, shown: Sequence[Tensor]) -> list[Tensor]:
        """Image tokens (m, w) of pictures and clips, as `embedded` takes them; those of one shape are read together."""
        found: dict[int, Tensor] = {}
        for shape in dict.fromkeys(one.shape for one in shown):
            rows = [row for row, one in enumerate(shown) if one.shape == shape]
            pixels = torch.stack([shown[row] for row in rows]).to(self.device)
            if len(shape) == 3:
                tokens = self.image_encoder(pixels)
            else:
                tokens = self.clip_tokens(self.clip_features(pixels), shape[0])
            found |= zip(rows, tokens, strict=True)
        return [found[row] for row in range(len(shown))]

    def graph_rows(self, prompts: Sequence[Prompt]) -> Tensor:
        """Rows (b, r, w) of the graphs in prompts; of those without one they say nothing."""
        assert self.graph_encoder is not None
        most = max(0 if prompt.graph is None else prompt.graph.shape[1] for prompt in prompts)
        told = torch.zeros(3, len(prompts), most, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            if prompt.graph is not None:
                told[:, row, : prompt.graph.shape[1]] = torch.from_numpy(prompt.graph)
        return self.graph_encoder(*told.to(self.device))

    def prefix(
        self,
        prompts: Sequence[str],
        pictures: Sequence[Tensor | None] | None = None,
        graphs: Sequence[Graph | None] | None = None,
    ) -> Prefix:
        """Everything about the prompts that the denoiser reads; "" is the unconditional prompt."""
        return self.conditioner(*self.prompt_cache(prompts, pictures, graphs=graphs))

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        noise: Tensor,
        sampler: SamplerConfig | None = None,
        pictures: Sequence[Tensor | None] | None = None,
        graphs: Sequence[Graph | None] | None = None,
    ) -> Tensor:
        """Pictures (b, 3, H, W) in [0, 1] from noise (b, n, p), one a prompt, each from a picture or a graph if one is
        given."""
        prefix, free = self.prefix(prompts, pictures, graphs), self.prefix([""] * len(prompts))
        tokens = flow.sample(
            lambda x, t, size: self.denoiser(x, t, prefix, size),
            lambda x, t, size: self.denoiser(x, t, free, size),
            noise,
            sampler or self.config.sampler,
        )
        return self.to_pixels(tokens)

    @torch.no_grad()
    def draw_codes(
        self, prompts: Sequence[str], sampler: SamplerConfig | None = None, choose: codes.Choose = codes.likeliest
    ) -> Tensor:
        """Pictures (b, 3, H, W) in [0, 1], one a prompt, of a model whose pictures are codes."""
        assert self.vq is not None
        guidance = (sampler or self.config.sampler).guidance_scale
        return self.vq.decode(codes.write_codes(self, prompts, guidance, choose)).clamp(0, 1)

    def to_tokens(self, pixels: Tensor) -> Tensor:
        """Pictures (b, 3, H, W) in [0, 1] as drawing tokens (b, n, p)."""
        if self.autoencoder is None:
            return pixels_to_tokens(pixels, self.config.image_tokens)
        return self.autoencoder.encode(pixels)

    def to_pixels(self, tokens: Tensor) -> Tensor:
        """Drawing tokens (b, n, p) as pictures (b, 3, H, W), clipped to [0, 1]."""
        if self.autoencoder is None:
            return tokens_to_pixels(tokens, self.config.image_tokens)
        return self.autoencoder.decode(tokens).clamp(0, 1)

    # --- reading ------------------------------------------------------------------------------------------------

    def clip_features(self, clips: Tensor) -> Tensor:
        """What the eyes give of clips (b, frames, 3, S, S) in [0, 1], frame after frame: (b, m, features)."""
        seen = [
            self.image_encoder.features(clips[:, place])
            if (motion := self._motion(place)) is None
            else motion.features(moved(clips[:, place], clips[:, place - 1]))
            for place in range(clips.shape[1])
        ]
        return torch.cat(seen, dim=1)

    def clip_tokens(self, features: Tensor, frames: int) -> Tensor:
        """Of so many frames, clip_features' (b, m, features) -> image tokens (b, m', w)."""
        eyes = [self._motion(place) or self.image_encoder for place in range(frames)]
        parts = features.split([len(eye.position) for eye in eyes], dim=1)
        return torch.cat([eye.project(part) for eye, part in zip(eyes, parts, strict=True)], dim=1)

    def _motion(self, place: int) -> ImageEncoder | None:
        """Who reads a clip's frame, if it is no keyframe."""
        return self.motion_encoder if self.config.motion and place % self.config.motion.every else None

    @torch.no_grad()
    def generate(
        self,
        text: str,
        pixels: Tensor | None = None,
        max_new_tokens: int = 64,
        stop: bool = True,
        graph: Graph | None = None,
        clip: bool = False,
    ) -> tuple[list[int], Tensor]:
        """Greedy reply to one message, as Asked has it: token ids, and the logits (tokens, vocab) behind each and
        behind the one that stopped it. The cache is static, as on a device."""
        stops = set(stop_ids(self.config, self.tokenizer)) if stop else set()
        steps = [
            (said[0], logits[0])
            for _, said, logits in self._say([Asked(text, pixels, graph, clip)], max_new_tokens, stops)
        ]
        return [token for token, _ in steps if token not in stops], torch.stack([logits for _, logits in steps])

    @torch.no_grad()
    def replies(self, asked: Sequence[Asked], max_new_tokens: int = 64) -> list[list[int]]:
        """Token ids of the greedy reply to each message, all read together: those of `generate`, but where two tokens
        are as likely up to the rounding of sums."""
        stops = set(stop_ids(self.config, self.tokenizer))
        replies: list[list[int]] = [[] for _ in asked]
        for rows, said, _ in self._say(asked, max_new_tokens, stops):
            for row, token in zip(rows, said, strict=True):
                replies[row] += [token] if token not in stops else []
        return replies

    def _say(
        self, asked: Sequence[Asked], max_new_tokens: int, stops: set[int]
    ) -> Iterator[tuple[list[int], list[int], Tensor]]:
        """Step by step, which messages are not answered yet, the next token of each, and its logits (b, vocab)."""
        prompts, shown = self._prompts_of(asked)
        decode = codes.BatchDecode(self, prompts, max_new_tokens, shown)
        rows, tokens = list(range(len(asked))), None
        for _ in range(max_new_tokens):
            logits = self.transformer.logits(decode.step(tokens))
            logits[:, self.config.first_code :] = float("-inf")  # a reply says words only
            tokens = logits.argmax(-1)
            said = tokens.tolist()
            yield rows, said, logits
            going = [place for place, token in enumerate(said) if token not in stops]
            if not going:
                return
            if len(going) < len(rows):
                decode.keep(going)
                rows, tokens = [rows[place] for place in going], tokens[going]

    def _prompts_of(self, asked: Sequence[Asked]) -> tuple[list[Prompt], list[list[Tensor]]]:
        """Each message's prompt, and the pictures and clips that `embedded` takes beside it; a picture's codes stand in
        the prompt itself."""
        prompts, shown = [], []
        for one in asked:
            pictures = [] if one.pixels is None else list(one.pixels)
            count = len(pictures) - (0 if one.graph is None else len(one.graph.pictures))
            prompt = read_prompt(self.config, self.tokenizer, one.text, count, one.graph, one.clip)
            if pictures and self.vq is not None:
                seen = self.vq.encode(torch.stack(pictures).to(self.device)).flatten() + self.config.first_code
                prompt, pictures = with_picture_ids(prompt, seen.cpu().numpy()), []
            prompts.append(prompt)
            shown.append([one.pixels] if pictures and one.clip and one.pixels is not None else pictures)
        return prompts, shown

    def with_sampler(self, **changes: object) -> SamplerConfig:
        """The model's sampler defaults with some of them changed."""
        return dataclasses.replace(self.config.sampler, **changes)  # type: ignore[arg-type]
