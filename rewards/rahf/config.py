"""The sizes of RAHF, and its two published forms: the paper's and the first author's PyTorch port."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RahfConfig:
    """Sizes and form; the defaults are those of the port (ViT-L/16 at 384 pixels, T5-base). Widths are in channels.

    Attributes:
        heads: "port" or "paper": whose heads, see `rewards.rahf.heads`.
        heatmap_widths: Of a heatmap head: two convolutions, then four doublings (which undo patches of 16 pixels).
        score_widths: Of a score head's convolutions.
        score_hidden: Of its dense layers.
        reads_image: Whether the decoder attends to image and text (the paper), or to the text alone (the port).
        scores_read_rest: Whether a score also reads what else the network says, see `RahfNetwork.readings` (ours); only
            where each output has a head.
        mark_token: The id of the token that the mark of a misaligned word begins with; read where scores read the rest.
        prompted: One head of each kind for all outputs, told by a prefix of the prompt what to predict (the paper's
            "augmented prompt"); otherwise one head for each output.
        max_written: The most tokens that are written for the misaligned words.
    """

    image_size: int = 384
    patch_size: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_hidden: int = 4096
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_head_width: int = 64
    text_hidden: int = 3072
    vocabulary: int = 32128
    heads: str = "port"
    heatmap_widths: tuple[int, ...] = (768, 384, 768, 384, 384, 192)
    score_widths: tuple[int, ...] = (768, 384, 192, 96, 48, 12)
    score_hidden: tuple[int, ...] = (512, 128)
    reads_image: bool = False
    scores_read_rest: bool = False
    mark_token: int = 0
    prompted: bool = False
    max_written: int = 100

    @property
    def grid(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size


PORT = RahfConfig()
"""Of github.com/youweiliang/RichHF."""
PAPER = RahfConfig(
    image_size=512,
    vision_width=768,
    vision_layers=12,
    vision_heads=12,
    vision_hidden=3072,
    heads="paper",
    heatmap_widths=(384, 384, 768, 384, 384, 192),
    score_widths=(768, 384, 128, 64),
    score_hidden=(2048, 1024),
    reads_image=True,
    max_written=256,
)
"""Of arXiv 2312.10240: ViT-B/16 and T5-base. Its image size is not stated; maps of 512 pixels need one of 512."""
