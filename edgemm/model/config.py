"""What a unified model is made of, as frozen dataclasses: they travel with the weights as config.json.

No torch here: the exporter, the trainer and `edgemm inspect` all read these.  Families other than `mot` add their own
parts later; a preset is a plain entry of PRESETS.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.bundle.drawing import DenoiseTemplate
from edgemm.bundle.files import check_sizes, decode, parse, read_text, reading
from edgemm.bundle.manifest import TextTemplate
from edgemm.errors import BundleError, CheckpointError, InputError

__all__ = [
    "PRESETS",
    "DenoiserConfig",
    "GraphConfig",
    "ImageTokensConfig",
    "MixtureConfig",
    "ModelConfig",
    "MotionConfig",
    "SamplerConfig",
    "TransformerConfig",
    "VisionConfig",
]


# EfficientNet-Lite0's later blocks and their channels (arXiv:1905.11946, without the 1280 of its head).
LITE0_CHANNELS = {5: 80, 6: 80, 7: 80, 8: 112, 9: 112, 10: 112, 11: 192, 12: 192, 13: 192, 14: 192, 15: 320}


LARGEST = {"depth": 1000, "image_size": 1 << 13, "frames": 1 << 13, "num_inference_steps": 100_000}  # of strangers'
LARGEST_NUMBER = 1 << 24  # whatever it counts


def _check_positive(part: str, config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{part} {name} is {getattr(config, name)}, expected 1 or more")


@dataclass(frozen=True)
class MixtureConfig:
    """Experts in the place of a feed-forward network (model/feed_forward.py)."""

    experts: int
    top: int  # experts a token goes to; of an expert's own choice: on the mean
    width: int  # hidden numbers of each
    shared: int = 0  # hidden numbers of one more that every token goes to
    by_modality: bool = False  # one half is for words, the other for pictures, and the router chooses within a half

    def __post_init__(self) -> None:
        _check_positive("mixture", self, "experts", "top", "width")
        halves = 2 if self.by_modality else 1
        if self.experts < 2 or self.experts % halves or self.top * halves > self.experts or self.shared < 0:
            raise ValueError(
                f"mixture of {self.experts} experts, top {self.top}, shared {self.shared}, by_modality "
                f"{self.by_modality}: expected 2 experts or more, no more chosen than there are, half of them each "
                "where they are apart"
            )

    @property
    def active_width(self) -> int:
        """Hidden numbers that a token meets."""
        return self.top * self.width + self.shared


@dataclass(frozen=True)
class TransformerConfig:
    """The autoregressive decoder, in the shape of Llama (arXiv:2302.13971) with grouped queries (arXiv:2305.13245)."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_context: int = 2048  # positions the weights were trained for
    queries: int = 0  # learned tokens behind the vocabulary, which are read and never said: of a connector
    mixture: MixtureConfig | None = None  # in the place of every layer's feed-forward network

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "width", "depth", "heads", "kv_heads", "head_width", "ffn_width", "max_context")
        _check_positive("transformer", self, *sizes)
        if self.heads % self.kv_heads:
            raise ValueError(f"transformer heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.queries < 0:
            raise ValueError(f"transformer queries is {self.queries}, expected 0 or more")
        if self.head_width % 2:
            raise ValueError(f"transformer head_width {self.head_width} is odd: rotary embedding turns pairs")


@dataclass(frozen=True)
class VisionConfig:
    """How a picture becomes clean image tokens for reading: a grid of features, and the visual word it looks like."""

    # "lite0": EfficientNet-Lite0's feature maps; "patch": linear patches; "dual": both side by side; "conv": an eye
    # of its own, taught before anything reads; "vq": the codes that are drawn, as tokens of the vocabulary
    encoder: str
    image_size: int  # side of the square the encoder reads, in pixels
    stride: int  # pixels a token covers along one side
    feature_width: int  # numbers a square of the grid has before the projection; codes have none, 0
    hidden_width: int  # inside the projection; codes have none, 0
    blocks: tuple[int, ...] = ()  # of lite0, whose maps are averaged onto the grid beside the last one
    words: int = 0  # visual words the encoder knows; 0 leaves them out
    word_tokens: int = 0  # image tokens that spell one visual word

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.encoder not in ("lite0", "patch", "dual", "conv", "vq"):
            raise ValueError(f"vision encoder {self.encoder!r} is none of: lite0, patch, dual, conv, vq")
        _check_positive("vision", self, "image_size", "stride")
        if self.encoder != "vq":
            _check_positive("vision", self, "feature_width", "hidden_width")
        if self.image_size % self.stride:
            raise ValueError(f"vision image_size {self.image_size} is not a multiple of stride {self.stride}")
        if unknown := [block for block in self.blocks if block not in LITE0_CHANNELS or not self.sees]:
            raise ValueError(f"vision block {unknown[0]} of encoder {self.encoder}: lite0 has {list(LITE0_CHANNELS)}")
        self._check_conv() if self.encoder == "conv" else self._check_features()
        if min(self.words, self.word_tokens) < 0 or (self.words > 0) != (self.word_tokens > 0):
            raise ValueError(f"vision words {self.words} and word_tokens {self.word_tokens}: both or neither")

    def _check_features(self) -> None:
        stride, width = (32, 1280 + self.middle_width) if self.sees else (self.stride, 0)
        width += 0 if self.encoder in ("lite0", "vq") else 3 * stride**2
        if (self.stride, self.feature_width) != (stride, width):
            raise ValueError(
                f"vision encoder {self.encoder} gives feature_width {width} at stride {stride}, "
                f"not {self.feature_width} at {self.stride}"
            )

    def _check_conv(self) -> None:
        """Each layer but one halves the sides, and widths double up to a quarter of the last."""
        if self.stride < 4 or self.stride & (self.stride - 1):
            raise ValueError(f"vision encoder conv has stride {self.stride}, expected 4, 8, 16 or another power of two")
        if self.feature_width % 8:
            raise ValueError(f"vision encoder conv has feature_width {self.feature_width}, expected a multiple of 8")

    @property
    def sees(self) -> bool:
        """Whether EfficientNet-Lite0 is in it."""
        return self.encoder in ("lite0", "dual")

    @property
    def middle_width(self) -> int:
        """Numbers of a square that come from the middle blocks; they stand first."""
        return sum(LITE0_CHANNELS[block] for block in self.blocks)

    @property
    def grid_count(self) -> int:
        """Squares of the feature map."""
        return (self.image_size // self.stride) ** 2

    @property
    def token_count(self) -> int:
        """Image tokens of one picture: its grid, then what spells its visual word."""
        return self.grid_count + self.word_tokens


@dataclass(frozen=True)
class MotionConfig(VisionConfig):
    """How a clip is read: a keyframe as a picture is, then few tokens a frame, of what moved since the one before."""

    every: int = 8  # frames from one keyframe to the next

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("motion", self, "every")
        if self.encoder != "conv" or self.words:
            raise ValueError(f"motion encoder {self.encoder!r} with {self.words} words, expected conv without any")


@dataclass(frozen=True)
class ImageTokensConfig:
    """How a picture is cut for drawing: `patch` draws its pixels (arXiv:2511.13720), `ae` an autoencoder's latents,
    `vq` entries of a codebook (arXiv:1711.00937)."""

    kind: str
    image_size: int
    patch: int  # pixels a token covers along one side
    channels: int = 0  # of ae: numbers of a token; of vq: numbers of a code
    hidden: int = 0  # of ae and vq: channels inside the convolutions
    codes: int = 0  # of vq: entries of the codebook
    frames: int = 1  # pictures of a clip, which are drawn at once; as pixels they stand below one another
    frame_ms: int = 100  # how long each of several is shown

    def __post_init__(self) -> None:
        _check_positive("image_tokens", self, "frames", "frame_ms")
        if self.frames > 1 and self.kind != "patch":
            raise ValueError(f"image_tokens kind {self.kind!r} with {self.frames} frames: clips are drawn as patches")
        if self.kind not in ("patch", "ae", "vq"):
            raise ValueError(f"image tokens {self.kind!r} are none of: patch, ae, vq")
        _check_positive("image_tokens", self, "image_size", "patch")
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch {self.patch}")
        if self.kind != "patch":
            _check_positive("image_tokens", self, "channels", "hidden")
            if self.patch & (self.patch - 1):
                raise ValueError(f"image_tokens patch {self.patch} is no power of two: an autoencoder halves")
        elif self.channels or self.hidden:
            raise ValueError(
                f"image_tokens channels {self.channels} and hidden {self.hidden} are for kind 'ae' or 'vq' only"
            )
        if (self.codes > 1) != (self.kind == "vq"):
            raise ValueError(f"image_tokens codes is {self.codes}: kind 'vq' has 2 or more, the others 0")

    @property
    def cell_count(self) -> int:
        """Tokens of one frame."""
        return (self.image_size // self.patch) ** 2

    @property
    def token_count(self) -> int:
        return self.frames * self.cell_count

    @property
    def token_width(self) -> int:
        return 3 * self.patch**2 if self.kind == "patch" else self.channels


@dataclass(frozen=True)
class DenoiserConfig:
    """The image expert, and the conditioner that feeds it once a prompt.  All zero: the model has none."""

    width: int = 0
    depth: int = 0
    heads: int = 0
    ffn_width: int = 0
    prefix_layers: tuple[int, ...] = ()  # transformer layer whose K/V denoiser layer i attends to
    prompt_width: int = 0  # numbers of the whitened, pooled prompt
    layout_width: int = 0  # numbers a token gets from the conditioner's layout; 0 leaves it out
    condition_width: int = 0  # width of the time-and-prompt vector; 0 means `width`
    step_size: bool = False  # whether it is told how far the next step goes: few-step students are (arXiv:2410.12557)
    mixture: MixtureConfig | None = None  # experts that choose their tokens, in the place of feed-forward networks

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix_layers", tuple(self.prefix_layers))
        if not any(dataclasses.astuple(self)):
            return
        _check_positive("denoiser", self, "width", "depth", "heads", "ffn_width", "prompt_width")
        if self.width % self.heads:
            raise ValueError(f"denoiser width {self.width} is not a multiple of heads {self.heads}")
        if len(self.prefix_layers) != self.depth:
            raise ValueError(f"denoiser depth {self.depth} needs as many prefix_layers, not {len(self.prefix_layers)}")
        if self.mixture and (self.mixture.shared or self.mixture.by_modality):
            raise ValueError(
                "denoiser mixture: experts that choose their tokens have none that is shared, and no halves"
            )
        if min(self.prefix_layers) < 0 or min(self.layout_width, self.condition_width) < 0:
            raise ValueError("denoiser prefix_layers, layout_width and condition_width cannot be negative")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def conditioning(self) -> int:
        return self.condition_width or self.width


@dataclass(frozen=True)
class SamplerConfig:
    """Defaults of the drawing loop; see docs/bundle.md for the formulas."""

    num_inference_steps: int = 25
    guidance_scale: float = 2.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    shift: float = 1.0
    temperature: float = 1.0  # this and the next two: how codes are drawn, where pictures are codes
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        _check_positive("sampler", self, "num_inference_steps")
        if not (
            0 <= self.temperature <= 100 and (self.top_k is None or self.top_k >= 1) and 0 < (self.top_p or 1) <= 1
        ):
            raise ValueError(
                f"sampler temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p}: expected 0 to 100, "
                "1 or more, above 0 and at most 1"
            )
        low, high = self.guidance_interval
        if not (0 <= low <= high <= 1 and self.shift > 0 and self.guidance_scale >= 0):
            raise ValueError(
                f"sampler guidance_interval {low:g} to {high:g}, shift {self.shift:g}, guidance_scale "
                f"{self.guidance_scale:g}: expected 0 <= low <= high <= 1, shift above 0, guidance_scale 0 or more"
            )


@dataclass(frozen=True)
class GraphConfig:
    """How a graph is read as rows (model/graph_encoder.py)."""

    kinds: tuple[str, ...]  # types of edges that it knows
    nodes: int  # of a graph at most
    named: bool = False  # a node's row is added to its words and its picture, too

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", tuple(self.kinds))
        _check_positive("graph", self, "nodes")
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"graph kinds are {', '.join(self.kinds) or 'none'}, expected some, each once")


CHAT = TextTemplate(
    user_open="<|im_start|>user\n",
    user_close="<|im_end|>\n",
    assistant_open="<|im_start|>assistant\n",
    assistant_close="<|im_end|>\n",
    system_open="",
    system_close="",
    system_default="",
)
DRAW = DenoiseTemplate(open="<|im_start|>user\nDraw", close="<|im_end|>\n")  # `open` never reaches the denoiser


@dataclass(frozen=True)
class ModelConfig:
    """One unified model: text and pictures in, text and pictures out."""

    name: str
    transformer: TransformerConfig
    vision: VisionConfig
    image_tokens: ImageTokensConfig
    denoiser: DenoiserConfig  # of no layers where the objective is "ar"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    chat: TextTemplate = CHAT
    draw: DenoiseTemplate = DRAW
    image_close: str = "\n"  # after a picture's tokens, in a message
    stop_tokens: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")
    family: str = "mot"
    # "dense": the denoiser has no layers of its own, it uses the transformer's; "connector": it sees learned queries
    experts: str = "mot"
    objective: str = "flow"  # "ar": pictures are codes, which the transformer says one after the other; no denoiser
    base: str = ""  # where the transformer's own weights come from; "" keeps them in the checkpoint
    base_layers: tuple[int, ...] = ()  # of the base, those that the transformer keeps; none: all
    origin: str = ""  # the base that weights kept in the checkpoint were once trained from: its licence still holds
    background: tuple[int, int, int] = (255, 255, 255)  # what transparent pictures are laid on
    graph: GraphConfig | None = None  # None: a graph is read as text
    motion: MotionConfig | None = None  # None: a clip's frames are read as pictures one after the other
    edits: bool = False  # was taught to draw from a picture before the prompt (train/tasks/draw.py)
    schema_version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", tuple(self.background))
        object.__setattr__(self, "base_layers", tuple(self.base_layers))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))
        if self.base_layers and len(self.base_layers) != self.transformer.depth:
            raise ValueError(f"base_layers are {len(self.base_layers)}, the transformer has {self.transformer.depth}")
        if self.experts not in ("mot", "dense", "connector"):
            raise ValueError(f"experts {self.experts!r} is none of: mot, dense, connector")
        if (self.experts == "connector") != (self.transformer.queries > 0):
            raise ValueError(
                f"experts {self.experts!r} with {self.transformer.queries} queries; a connector has some, others none"
            )
        if self.graph and self.objective == "ar":
            raise ValueError("graph with objective 'ar': a model of codes reads tokens alone")
        self._check_motion()
        if self.base and self.transformer.mixture:
            raise ValueError(f"transformer mixture with base {self.base!r}, whose feed-forward networks are whole")
        if self.image_tokens.frames > 1 and (self.experts == "dense" or self.edits):
            raise ValueError("image_tokens frames: neither dense experts nor models that edit draw clips")
        if self.objective not in ("flow", "ar"):
            raise ValueError(f"objective {self.objective!r} is none of: flow, ar")
        self._check_codes()
        if self.objective == "ar":
            return
        if self.experts == "dense":
            mine, theirs = self.denoiser, self.transformer
            found = (mine.width, mine.depth, mine.prefix_layers, mine.conditioning, mine.step_size, mine.mixture)
            wanted = (theirs.width, theirs.depth, tuple(range(theirs.depth)), theirs.width, False, None)
            if found != wanted:
                raise ValueError(
                    f"dense experts: denoiser width, depth, prefix_layers, conditioning, step_size and mixture are "
                    f"{found}, the transformer's layers want {wanted}"
                )
        deepest = max(self.denoiser.prefix_layers)
        if deepest >= self.transformer.depth:
            raise ValueError(f"prefix layer {deepest} is beyond the transformer's {self.transformer.depth} layers")

    def _check_motion(self) -> None:
        if self.motion is None:
            return
        if self.objective == "ar" or self.vision.words:
            raise ValueError("motion with objective 'ar' or visual words: a clip is read by grids of features")
        mine, theirs = self.motion, self.vision
        if (mine.image_size, mine.feature_width) != (theirs.image_size, theirs.feature_width):
            raise ValueError(
                f"motion has image_size {mine.image_size} and feature_width {mine.feature_width}, vision "
                f"{theirs.image_size} and {theirs.feature_width}: both have to be the same"
            )

    def _check_codes(self) -> None:
        """Codes are drawn, read and said as tokens, or not at all."""
        drawn, read = self.image_tokens, self.vision
        found = (drawn.kind == "vq", read.encoder == "vq", self.denoiser.depth == 0)
        if set(found) != {self.objective == "ar"}:
            raise ValueError(
                f"objective {self.objective!r} with image tokens {drawn.kind!r}, vision encoder {read.encoder!r} and a "
                f"denoiser of depth {self.denoiser.depth}: 'ar' goes with vq, vq and 0, 'flow' with none of them"
            )
        if self.objective == "ar" and (drawn.image_size, drawn.patch) != (read.image_size, read.stride):
            raise ValueError(
                f"codes are drawn at {drawn.image_size} pixels, {drawn.patch} a code, and read at {read.image_size}, "
                f"{read.stride} a code: both have to be the same"
            )
        if drawn.codes >= self.transformer.vocab_size:
            raise ValueError(f"{drawn.codes} codes do not fit in a vocabulary of {self.transformer.vocab_size}")

    @property
    def first_code(self) -> int:
        """Token id of code 0: codes are the vocabulary's last ids."""
        return self.transformer.vocab_size - self.image_tokens.codes

    @property
    def names_nodes(self) -> bool:
        """Whether it reads graphs as rows, and a node's row is added to its words and picture."""
        return self.graph is not None and self.graph.named

    @property
    def prefix_heads(self) -> int:
        """Key and value heads of the prefix that the denoiser reads."""
        return self.transformer.kv_heads if self.experts == "dense" else self.denoiser.heads

    @property
    def prefix_head_width(self) -> int:
        return self.transformer.head_width if self.experts == "dense" else self.denoiser.head_width

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any], where: str = "config.json") -> ModelConfig:
        """Raises CheckpointError with the field's name when the document does not describe a model."""
        if document.get("schema_version") != 1:
            raise CheckpointError(f"{where}: schema_version is {document.get('schema_version')!r}, this edgemm reads 1")
        try:
            check_sizes(document, where, lambda name: LARGEST.get(name, LARGEST_NUMBER))
            return decode(cls, _templates_apart(document), where)
        except (InputError, ValueError) as error:
            message = str(error)
            raise CheckpointError(message if message.startswith(where) else f"{where}: {message}") from error

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        if not path.exists():
            raise CheckpointError(f"{path}: not found; a checkpoint folder holds config.json")
        try:
            with reading(path, "cannot be read as JSON", CheckpointError):
                document = parse(read_text(path).encode(), str(path))
        except BundleError as error:
            raise CheckpointError(str(error)) from error
        return cls.from_json(document, str(path))


def _templates_apart(document: dict[str, Any]) -> dict[str, Any]:
    """The document as it is written today: `chat` once held what is no part of a template, and what it left out was the
    default."""
    found = dict(document)
    for part, default in (("chat", CHAT), ("draw", DRAW)):
        if isinstance(found.get(part), dict):
            found[part] = dataclasses.asdict(default) | found[part]
    if isinstance(found.get("chat"), dict):
        moved = {name: found["chat"].pop(name) for name in ("image_close", "stop_tokens") if name in found["chat"]}
        found = moved | found
    return found


def _small() -> ModelConfig:
    """SmolLM2-135M-Instruct inside. The denoiser reads layers of the lower half only, and reading adapts the upper half
    only, so neither training disturbs the other."""
    return ModelConfig(
        name="small",
        base="smollm2-135m-instruct",
        transformer=TransformerConfig(
            vocab_size=49_152,
            width=576,
            depth=30,
            heads=9,
            kv_heads=3,
            head_width=64,
            ffn_width=1536,
            rope_theta=100_000.0,
            max_context=8192,
        ),
        vision=VisionConfig(
            encoder="lite0",
            image_size=128,
            stride=32,
            feature_width=1280 + 80 + 112 + 192,
            hidden_width=1152,
            blocks=(7, 10, 14),
            words=1600,
            word_tokens=6,
        ),
        image_tokens=ImageTokensConfig(kind="patch", image_size=64, patch=8),
        denoiser=DenoiserConfig(
            width=320,
            depth=8,
            heads=5,
            ffn_width=1280,
            prefix_layers=(0, 2, 4, 6, 8, 10, 12, 14),
            prompt_width=384,
            layout_width=64,
        ),
        sampler=SamplerConfig(num_inference_steps=12, guidance_scale=1.0),
    )


def _micro() -> ModelConfig:
    """Trains in minutes on two CPU cores, with a byte tokenizer; every test uses it or smaller. As in `small`, the
    upper layers are left for reading."""
    return ModelConfig(
        name="micro",
        transformer=TransformerConfig(
            vocab_size=264, width=128, depth=6, heads=4, kv_heads=2, head_width=32, ffn_width=352, max_context=512
        ),
        vision=VisionConfig(encoder="patch", image_size=32, stride=8, feature_width=192, hidden_width=128),
        image_tokens=ImageTokensConfig(kind="patch", image_size=32, patch=8),
        denoiser=DenoiserConfig(
            width=128, depth=4, heads=4, ffn_width=352, prefix_layers=(0, 1, 2, 3), prompt_width=64, layout_width=32
        ),
        sampler=SamplerConfig(num_inference_steps=10),
    )


PRESETS = {"micro": _micro, "small": _small}
