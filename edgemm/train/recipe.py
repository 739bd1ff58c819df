"""What a training run is told, a frozen dataclass a kind; they share their parts by inheritance.

    Recipe      data, loop and optimizer: every kind
    Flow        flow matching on pictures                  Drawing    the same, with captions for prompts
    Answering   cross-entropy on answers, and LoRA         Reading    the same, and the projection learns
    Stage       what `edgemm train` starts from            Parts      and which parts of it learn

Files, `--set` and kinds by name are in recipe_file.py.  No torch here: `edgemm train --help` must answer at once.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import ClassVar

from edgemm.data.format import SPLITS
from edgemm.errors import UsageError

__all__ = [
    "CAPTION",
    "DESIGNS",
    "PARTS",
    "Answering",
    "AutoencodeRecipe",
    "DrawRecipe",
    "Drawing",
    "EditRecipe",
    "EyeRecipe",
    "Flow",
    "GraphRecipe",
    "JointRecipe",
    "Parts",
    "ReadRecipe",
    "Reading",
    "Recipe",
    "Stage",
]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PARTS = ("conditioner", "denoiser", "projection", "queries", "transformer")
DESIGNS = {
    "experts": ("mot", "dense", "connector"),
    "vision": ("single", "dual", "conv"),
    "image_tokens": ("patch", "ae", "vq"),
    "objective": ("flow", "ar"),
    "graphs": ("text", "rows"),
    "motion": ("none", "4", "1"),
    "mixture": (
        "none",
        "2-top-1",
        "4-top-1",
        "4-top-2",
        "8-top-2",
        "8-top-2-shared",
        "8-top-1-by-modality",
        "choice-8",
        "wide",
    ),
}
CHOICES = {**DESIGNS, "optimizer": ("adamw", "muon"), "precision": ("auto", "bf16", "fp32")}
CAPTION = "{caption}"  # where a picture's own caption goes in a recipe's
LARGEST = sys.float_info.max  # infinity is out of range too
MOST = 2**31 - 1  # of whatever is counted
RANGES: tuple[tuple[tuple[str, ...], float, float], ...] = (  # of whichever of them a kind has
    (("steps", "batch", "log_every", "save_every", "sample_every"), 1, MOST),
    (("lora_rank",), 1, 4096),  # as adapters are read
    (("noises", "views", "reply_tokens", "lora_alpha", "top_words", "trajectories"), 1, MOST),
    (("perceptual_weight", "adversarial_weight", "adversarial_start", "data_weight", "feature_weight"), 0, LARGEST),
    (("frames", "more_captions", "pictures", "warmup"), 0, MOST),
    (("vocabulary",), 0, 1 << 20),
    (("seed",), 0, 2**63 - 1),
    (("threads",), 0, 1024),
    (("align_steps", "word_steps", "replies", "lora_first_layer"), 0, MOST),
    (("learning_rate", "matrix_learning_rate", "weight_decay", "time_spread"), 0, LARGEST),
    (("reply_weight", "flow_weight", "guidance"), 0, LARGEST),
    (("transformer_layers", "denoiser_layers"), 0, MOST),
    (("reply_share", "caption_share", "label_share", "cut_share", "blend"), 0, 0.9),
    (("clip", "loss_floor"), 1e-6, LARGEST),
    (("temperature",), 0.01, LARGEST),
    (("drop_prompt", "decay", "ema", "on_policy", "other_prompts", "tell_share", "words_share"), 0, 1),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The data and the loop. Paths are relative to where the command runs."""

    kind: ClassVar[str] = ""  # what a recipe file says of itself
    verb: ClassVar[str] = ""  # the verb of the command line that takes it

    data: str  # dataset folder as `edgemm data` writes it
    output: str  # run folder: state, log, samples; output/checkpoint is the result
    steps: int = 1000
    batch: int = 64
    seed: int = 0
    optimizer: str = "adamw"  # "adamw" (arXiv:1711.05101); "muon": on matrices, AdamW on the rest (arXiv:2502.16982)
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.01  # muon's
    weight_decay: float = 0.01
    warmup: int = 100  # steps of linear warm-up
    decay: float = 0.3  # last share of the steps, in which the rate falls to a hundredth (cosine)
    clip: float = 1.0  # largest norm of the gradient
    ema: float = 0.999  # decay of the averaged weights; 0 leaves them out
    precision: str = "auto"  # autocast to "bf16", "fp32" without; auto is bf16 where this CPU multiplies it faster
    threads: int = 0  # torch threads; 0 leaves them alone
    log_every: int = 20
    save_every: int = 200
    sample_every: int = 1000
    groups: tuple[str, ...] = ()  # emoji groups to train on; none means all
    splits: tuple[str, ...] = ("train",)
    pictures: int = 0  # train on so many of them (or of the edits), spread evenly; 0 means all

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if "\0" in str(getattr(self, field.name)):
                raise UsageError(f"recipe: {field.name} holds a NUL character")
        if not self.output:  # the folder that one stands in
            raise UsageError("recipe: output is empty, expected a folder")
        for name, allowed in CHOICES.items():
            self._one_of(name, allowed)
        self._some_of("splits", SPLITS, least=1)
        for names, low, high in RANGES:
            for name in names:
                value = getattr(self, name, low)
                if not low <= value <= high:
                    expected = f"{low} or more" if value < low and high >= MOST else f"{low} to {high}"
                    raise UsageError(f"recipe: {name} is {value}, expected {expected}")

    def refuse(self, why: str, *names: str) -> None:
        """UsageError of lines that a recipe has and its training has no use for; the defaults are in nobody's way."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"recipe: {field.name} is {getattr(self, field.name)!r}, and {why}: leave the line out"
                )

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name, allowed[0]) not in allowed:
            raise UsageError(f"recipe: {name} is {getattr(self, name)!r}, expected one of: {', '.join(allowed)}")

    def _some_of(self, name: str, allowed: tuple[str, ...], least: int = 0) -> None:
        names = getattr(self, name)
        if len(names) < least or not set(names) <= set(allowed):
            found = ", ".join(names) or "empty"
            raise UsageError(f"recipe: {name} is {found}, expected some of: {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True)
class Flow(Recipe):
    """Drawing by flow matching (arXiv:2210.02747)."""

    noises: int = 1  # times that a batch shows each of its pictures, with other noise; its prompt is read once
    drop_prompt: float = 0.1  # share of samples that see the unconditional prompt (arXiv:2207.12598)
    time_mean: float = -0.8  # of the logit-normal time; lower trains more on noisy pictures
    time_spread: float = 1.0
    loss_floor: float = 0.1  # smallest 1 - t in the velocity loss
    compile: bool = False  # torch.compile the denoiser: worth a minute of start-up on long runs, needs a C++ compiler

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.noises:
            raise UsageError(f"recipe: batch is {self.batch}, expected a multiple of noises, {self.noises}")


@dataclass(frozen=True, kw_only=True)
class Drawing(Flow):
    """Pictures from captions."""

    caption: str = ""  # what pictures are said to be, such as "{caption}, noto style"; "" means their own captions
    more: tuple[str, ...] = ()  # further dataset folders, trained on whole beside `data`; one named twice counts twice
    more_captions: int = 0  # of each of their pictures the last so many captions, which tell most; 0 means all

    def __post_init__(self) -> None:
        super().__post_init__()
        check_caption(self.caption)


@dataclass(frozen=True, kw_only=True)
class Answering(Recipe):
    """Answers to questions about pictures, said by an adapter on the transformer."""

    views: int = 4  # changed views of each picture, computed once
    around: bool = (
        False  # views of clips, whose shapes leave at one edge and come in at the other, are moved around them
    )
    blend: float = 0.0  # largest share of another picture in what the eye saw: unseen pictures look like several words
    replies: int = 0  # own earlier replies to text that are kept up, so that the model goes on talking (samples.py)
    reply_tokens: int = 32  # longest of them
    reply_share: float = 0.125  # of a batch
    caption_share: float = 0.0  # of a batch: pictures that are described by their last caption, which tells most
    label_share: float = 0.5  # of the other questions: what it is
    cut_share: float = 0.0  # of a batch: clips of one thing are shown up to some frame alone, as streams are
    reply_weight: float = 0.5  # of the replies' loss beside that of the answers
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_first_layer: int = 15  # layers below stay as they are: the denoiser reads them

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = (self.reply_share if self.replies else 0.0, self.caption_share)
        if sum(shares) > 1:
            raise UsageError(f"recipe: reply_share {shares[0]} and caption_share {shares[1]} are more than a batch")


@dataclass(frozen=True, kw_only=True)
class Reading(Answering):
    """The same, and the projection that turns what the eye saw into image tokens."""

    align_steps: int = 0  # steps of pulling image tokens to their labels' embeddings, before the first step (align.py)
    word_steps: int = 0  # steps of teaching visual words their labels, before the first step; needs vision words
    train_projection: bool = True  # false keeps the aligned projection and trains the adapter alone
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "down_proj")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._some_of("lora_targets", PROJECTIONS, least=1)


@dataclass(frozen=True, kw_only=True)
class Stage(Recipe):
    """One stage of `edgemm train`."""

    verb: ClassVar[str] = "train"

    start: str = "small"  # preset, or checkpoint folder to go on from
    experts: str = "mot"  # designs of a new model (model/designs.py): "dense" has one set of weights for both;
    # "connector" draws what a frozen transformer makes of learned queries
    vision: str = "single"  # "dual": pixels beside EfficientNet-Lite0's features; "conv": taught by kind "eye"
    image_tokens: str = "patch"  # "ae": latents of an autoencoder; "vq": entries of a codebook
    frames: int = 0  # of clips that a model for still pictures is to draw; 0 leaves it as it is
    objective: str = "flow"  # "ar": the transformer says a picture's codes, of image_tokens "vq", one after the other
    graphs: str = "text"  # "rows": a row a node and a row an edge (model/graph_encoder.py)
    motion: str = "none"  # "4" or "1": so many tokens a frame of a clip between keyframes; taught by kind "eye"
    vocabulary: int = 0  # tokens at most of a `micro`'s tokenizer, learned from the data's texts; 0: single bytes
    mixture: str = "none"  # "8-top-2" and so on: experts that a learned router chooses among (model/feed_forward.py)


@dataclass(frozen=True, kw_only=True)
class Parts(Stage):
    """One that learns with more than one part of a model."""

    teaches: ClassVar[tuple[str, ...]] = PARTS

    train: tuple[str, ...] = ()  # of PARTS; none means the kind's own; "transformer" is all its weights

    def __post_init__(self) -> None:
        super().__post_init__()
        self._some_of("train", PARTS)
        if self.train and not set(self.train) & set(self.teaches):
            parts = f"teaches {', '.join(self.teaches)}" if self.teaches else "chooses its parts itself"
            raise UsageError(f"recipe: train is {', '.join(self.train)}, and kind {self.kind} {parts}")
        if "projection" in self.train and not getattr(self, "train_projection", True):
            raise UsageError("recipe: train names the projection, and train_projection is false: leave one of them out")

    @property
    def idle(self) -> tuple[str, ...]:
        """What `train` names and learns nothing."""
        return tuple(name for name in self.train if name not in self.teaches)


@dataclass(frozen=True, kw_only=True)
class DrawRecipe(Drawing, Parts):
    """The image expert over a frozen transformer."""

    kind: ClassVar[str] = "draw"
    teaches: ClassVar[tuple[str, ...]] = ("conditioner", "denoiser", "queries", "transformer")


@dataclass(frozen=True, kw_only=True)
class EditRecipe(Flow, Parts):
    """Drawing from a picture in the prefix."""

    kind: ClassVar[str] = "edit"


@dataclass(frozen=True, kw_only=True)
class EyeRecipe(Stage):
    """The eye of `vision = "conv"`: which words the captions of a picture have (train/tasks/eye.py); of clips, what
    reads `motion`."""

    kind: ClassVar[str] = "eye"


@dataclass(frozen=True, kw_only=True)
class ReadRecipe(Reading, Parts):
    """The projection, and LoRA on the transformer."""

    kind: ClassVar[str] = "read"
    teaches: ClassVar[tuple[str, ...]] = ("projection", "transformer")


@dataclass(frozen=True, kw_only=True)
class JointRecipe(Drawing, Reading, Parts):
    """Both losses: cross-entropy + flow_weight * flow."""

    kind: ClassVar[str] = "joint"

    flow_weight: float = 1.0  # of drawing's loss beside that of the answers
    draw_data: str = ""  # dataset folder of what is drawn; "" draws the pictures that are asked about


@dataclass(frozen=True, kw_only=True)
class GraphRecipe(Flow, Parts):
    """Answers about graphs and pictures of them, all parts of a model learning (train/tasks/graphs.py)."""

    kind: ClassVar[str] = "graph"
    teaches: ClassVar[tuple[str, ...]] = ()

    flow_weight: float = 1.0  # of drawing's loss beside that of the answers; 0: answers alone
    tell_share: float = 0.5  # of a batch's graphs, told edge by edge where others are asked one question
    words_share: float = 0.0  # of the steps, the first ones: what nodes show is told in words alone, which is faster
    edges: str = "told"  # "none" leaves them out, "shuffled" lets them lead anywhere: what is compared with

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("edges", ("told", "shuffled", "none"))
        self.refuse("all graphs of the splits are asked about", "groups", "pictures")


@dataclass(frozen=True, kw_only=True)
class AutoencodeRecipe(Stage):
    """An image tokenizer: the latents that image_tokens = "ae" draws, or the codes of "vq".

    Both terms are VQGAN's (arXiv:2012.09841), which weighs them 1 and 0.8.
    """

    kind: ClassVar[str] = "autoencode"

    perceptual_weight: float = 0.0  # of the distance that EfficientNet-Lite0 sees; 0 leaves it out
    adversarial_weight: float = 0.0  # of a judge that learns to tell the tokenizer's pictures; 0 leaves it out
    adversarial_start: int = 0  # step from which it is heard; it learns before: one that knows nothing pulls anywhere


def check_caption(caption: str) -> None:
    if caption and CAPTION not in caption:
        raise UsageError(f"recipe: caption is {caption!r}, expected {CAPTION} somewhere in it")
