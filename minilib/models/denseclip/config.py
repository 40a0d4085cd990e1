"""What fixes the shape of a DenseCLIP, and its class names: plain values, checked
where they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from minilib.models.clip.config import CLIPConfig
from minilib.tokenizer import check_words, get_tokenizer

GUIDANCE = ("none", "prototypes", "template", "contexts", "pre", "post")
"""Where the K rows of the score map come from: nowhere; free vectors; a written prompt;
learned contexts (CoOp); contexts made from the image (pre-model prompting); learned
contexts, refined by the image (post-model prompting)."""


@dataclass(frozen=True)
class DenseCLIPConfig:
    """Everything that fixes the shape of a DenseCLIP."""

    clip: CLIPConfig
    """The two towers."""
    guidance: str = "post"
    """One of :data:`GUIDANCE`; the paper's model is "post"."""
    template: str = "a photo of a {}."
    """The written prompt of guidance "template"."""
    contexts: int = 8
    """Learned vectors N before a name."""
    decoder_width: int = 256
    """Channels of the context decoder."""
    decoder_layers: int = 3
    """Its layers: 3 in all released models (the paper says 6)."""
    decoder_heads: int = 4
    """Its attention heads."""
    dropout: float = 0.1
    """Dropout in the context decoder and before the classifier."""
    channels: int = 256
    """Channels of the feature pyramid and of the head."""
    tau: float = 0.07
    """Temperature of the score map's own loss; fixed."""
    concatenate: bool = True
    """Give the score map to the pyramid. False, an ablation, leaves it its own loss
    only: it then shapes the image tower and nothing else."""
    taps: tuple[int, ...] | None = None
    """ViT only: the four blocks that make the pyramid; by default the ends of the four
    quarters, for 12 blocks (3, 5, 7, 11) as released."""
    drop_path: float = 0.1
    """ViT only: stochastic depth of the last block."""
    double_class_embedding: bool = False
    """ViT only: as in the authors' code, see :class:`DenseViT`."""
    pad: bool = True
    """Fill images up to whole cells and crop the result. False, as in the
    authors' code, lets the strides drop the rest, so that the result is
    stretched over the image."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is unknown or out of range.
        """
        if self.guidance not in GUIDANCE:
            raise ValueError(
                f"unknown guidance {self.guidance!r}: use one of "
                f"{', '.join(map(repr, GUIDANCE))}"
            )
        if self.guidance == "template" and "{}" not in self.template:
            raise ValueError(
                f"template {self.template!r} has no place for the name: write {{}} "
                "where it goes"
            )
        if self.contexts < 1 or self.tau <= 0:
            raise ValueError(
                f"contexts={self.contexts}, tau={self.tau}: expected contexts >= 1 "
                "and tau > 0"
            )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width={self.decoder_width} is not divisible by "
                f"{self.decoder_heads} heads"
            )


def class_tokens(config: DenseCLIPConfig, names: Sequence[str] | Tensor) -> Tensor:
    """Return the ids (K, L) of K class names, as long as the longest needs; token
    ids pass unchanged.

    Raises:
        ValueError: no names, one that is empty or does not fit the text tower, or two
            that are the same tokens.
    """
    if isinstance(names, Tensor):
        return names
    text = config.clip.text
    template = config.template if config.guidance == "template" else "{}"
    room = (
        text.context
        if config.guidance == "template"
        else text.context - config.contexts
    )
    tokenizer = get_tokenizer(text.context, config.clip.vocabulary)
    if tokenizer.vocab_size != text.vocab_size:
        raise ValueError(
            f"the text tower has {text.vocab_size} ids but its tokenizer "
            f"{tokenizer.vocab_size}"
        )
    names = check_words(names, tokenizer, "class name")
    texts = [template.replace("{}", name) for name in names]
    lengths = [len(tokenizer.encode(t)) + 2 for t in texts]
    if max(lengths) > room:
        worst = texts[lengths.index(max(lengths))]
        raise ValueError(
            f"{worst!r} has {max(lengths)} tokens with start and end, but there is "
            f"room for {room}: shorten it"
        )
    return tokenizer(texts)[:, : max(lengths)]
