"""The network of RAHF: a ViT and a T5 that look at image and prompt together, heads, and a decoder (arXiv 2312.10240).

Departures from the first author's code, whose numbers come out all the same:

1. Padding is masked. There a score depends on the longest prompt of its batch; here every score, map and word is that
   of a batch of one, in any batch.
2. T5's norms compute in the precision of their input, where transformers rounds to float32.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5LayerNorm

from rewards.rahf.config import RahfConfig
from rewards.rahf.heads import (
    HEAT_READ,
    MARKS_READ,
    make_heatmap_head,
    make_score_head,
    read_chances,
    read_heat,
)

SCORES = ("plausibility", "alignment", "aesthetics", "overall")
HEATMAPS = ("implausibility", "misalignment")
ANY = "any"
"""The name of the only head of its kind, in a network that is told by the prompt what to predict."""

PAD, END = 0, 1
NORM_EPS, VIT_NORM_EPS = 1e-6, 1e-12
TIED = {f"t5.{name}.weight": "t5.shared.weight" for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")}
"""T5 has one table of tokens; these are its other names."""


@dataclass(frozen=True)
class Fused:
    """Image and text after they attended to each other.

    Attributes:
        features: Of the patches, as a map for the heads.
        memory: What the decoder attends to: the tokens of the text, behind those of the image where it reads them.
        mask: Which of these are no padding.
    """

    features: Float[Tensor, "batch width grid grid"]
    memory: Float[Tensor, "batch tokens width"]
    mask: Bool[Tensor, "batch tokens"]


@final
class RahfNetwork(nn.Module):
    """See, fuse with the text, then predict from the fused image tokens and write from the fused text tokens."""

    def __init__(self, config: RahfConfig) -> None:
        super().__init__()
        if config.prompted and config.scores_read_rest:
            raise ValueError("scores_read_rest needs all maps in one pass: set it, or prompted, to false.")
        self.config = config
        self._recompute = False
        self.vit = ViTModel(_vit_config(config), add_pooling_layer=False)
        self.projection = nn.Linear(config.vision_width, config.text_width)
        self.t5 = T5ForConditionalGeneration(_t5_config(config))
        _keep_precision(self.t5)
        self.score_heads = nn.ModuleDict({name: _score_head(config) for name in _names(SCORES, config)})
        self.heatmap_heads = nn.ModuleDict({name: _heatmap_head(config) for name in _names(HEATMAPS, config)})
        if config.scores_read_rest:
            self.readouts = nn.Linear(_readings(config), len(SCORES)).requires_grad_(False)
            forget_readouts(self)

    def enable_gradient_checkpointing(self) -> None:
        """While it trains, compute activations anew for the backward pass instead of keeping them: less memory."""
        for part in (self.vit, self.t5):
            # transformers 5.17 has the old name only, later ones warn of it
            enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
            enable()
        self._recompute = True

    def see(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch seen width"]:
        """Image tokens in the width of the text, [CLS] first."""
        return self.projection(self.vit(pixels).last_hidden_state)

    def fuse(
        self,
        seen: Float[Tensor, "batch seen width"],
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        decoder_sees_image: bool | None = None,
    ) -> Fused:
        """Let image and text tokens attend to each other, all but the padding of the text.

        The decoder attends to the image as the configuration says, unless `decoder_sees_image` says otherwise.
        """
        tokens = torch.cat([seen, self.t5.shared(ids)], dim=1)
        attended = torch.cat([mask.new_ones(seen.shape[:2]), mask], dim=1)
        fused = self.t5.encoder(inputs_embeds=tokens, attention_mask=attended.long()).last_hidden_state
        patches = fused[:, 1 : seen.shape[1]].transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))
        sees = self.config.reads_image if decoder_sees_image is None else decoder_sees_image
        start = 0 if sees else seen.shape[1]
        return Fused(patches, fused[:, start:], attended[:, start:])

    def score(
        self,
        features: Float[Tensor, "batch width grid grid"],
        name: str,
    ) -> Float[Tensor, " batch"]:
        """One of `SCORES`, in [0, 1], as its head alone gives it."""
        return self.score_heads[ANY if self.config.prompted else name](features)

    def readings(
        self, fused: Fused, maps: Float[Tensor, "batch 2 size size"], ids: Int[Tensor, "batch tokens"]
    ) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, "batch read"]]:
        """The logits of all scores as the heads alone give them, and what the readouts read (ours, not the paper's).

        These are the features' mean, how hot each map is, the logits, and the chances of marked words. Maps learn from
        every pixel and marks from every word, so that on few images they generalise where a head over all positions
        overfits.

        Arguments:
            fused: With the bare prompts.
            maps: Those of `HEATMAPS`.
            ids: The prompts, with their end.
        """
        heads = [self.score_heads[name] for name in SCORES]
        logits = torch.stack([head.logits(fused.features) for head in heads], dim=1)  # pyright: ignore[reportCallIssue]
        marks = read_chances(self.write_logits(fused, ids).softmax(-1)[..., self.config.mark_token], ids != PAD)
        return logits, torch.cat([fused.features.mean((2, 3)), read_heat(maps), logits, marks], dim=1)

    def read_scores(
        self, fused: Fused, maps: Float[Tensor, "batch 2 size size"], ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch 4"]:
        """All of `SCORES`, in [0, 1], as heads and readouts together give them; see `readings`."""
        logits, read = self.readings(fused, maps, ids)
        return (logits + self.readouts(read)).sigmoid()

    def heatmap(self, features: Float[Tensor, "batch width grid grid"], name: str) -> Float[Tensor, "batch size size"]:
        """One of `HEATMAPS`, in [0, 1]."""
        head = self.heatmap_heads[ANY if self.config.prompted else name]
        if not (self._recompute and self.training):
            return head(features)
        drawn = checkpoint(head, features, use_reentrant=False)
        assert isinstance(drawn, Tensor)
        return drawn

    def write_logits(self, fused: Fused, ids: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocabulary"]:
        """Logits of every token of a text, each given those before it (teacher forcing)."""
        before = torch.cat([torch.full_like(ids[:, :1], PAD), ids[:, :-1]], dim=1)
        output = self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused.memory),  # pyright: ignore[reportArgumentType]
            attention_mask=fused.mask.long(),
            decoder_input_ids=before,
            use_cache=False,
        )
        return output.logits

    def next_token(
        self, fused: Fused, written: Int[Tensor, "batch new"], cache: Any = None
    ) -> tuple[Float[Tensor, "batch vocabulary"], Any]:
        """Logits of the token after those written, and the cache for the next call, which then takes only new ones."""
        output = self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=fused.memory),  # pyright: ignore[reportArgumentType]
            attention_mask=fused.mask.long(),
            decoder_input_ids=written,
            past_key_values=cache,
            use_cache=True,
        )
        return output.logits[:, -1], output.past_key_values

    @torch.no_grad()
    def write(self, fused: Fused) -> list[list[int]]:
        """The likeliest token at each step, up to the end of the text or `max_written`."""
        last, cache = torch.full((len(fused.mask), 1), PAD, device=fused.mask.device), None
        ended = fused.mask.new_zeros(len(fused.mask))
        written: list[Tensor] = []
        while len(written) < self.config.max_written and not ended.all():
            logits, cache = self.next_token(fused, last, cache)
            last = logits.argmax(-1, keepdim=True)
            ended |= last[:, 0] == END
            written.append(last)
        return [row[: row.index(END)] if END in row else row for row in torch.cat(written, dim=1).tolist()]


def forget_readouts(network: RahfNetwork) -> None:
    """Let the readouts read nothing, until they are fitted."""
    nn.init.zeros_(network.readouts.weight)
    nn.init.zeros_(network.readouts.bias)


def _readings(config: RahfConfig) -> int:
    """How much `RahfNetwork.readings` reads."""
    return config.text_width + HEAT_READ * len(HEATMAPS) + len(SCORES) + MARKS_READ


def _names(names: tuple[str, ...], config: RahfConfig) -> tuple[str, ...]:
    return (ANY,) if config.prompted else names


def _score_head(config: RahfConfig) -> nn.Module:
    return make_score_head(config.heads, config.text_width, config.grid**2, config.score_widths, config.score_hidden)


def _heatmap_head(config: RahfConfig) -> nn.Module:
    return make_heatmap_head(config.heads, config.text_width, config.heatmap_widths)


def _keep_precision(t5: nn.Module) -> None:
    """Replace norms that round to float32 by torch's, which compute in float32 or wider and have the same weights."""
    for parent in list(t5.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, T5LayerNorm):
                setattr(parent, name, nn.RMSNorm(child.weight.shape[0], eps=NORM_EPS))


def _vit_config(config: RahfConfig) -> ViTConfig:
    return ViTConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        intermediate_size=config.vision_hidden,
        layer_norm_eps=VIT_NORM_EPS,
        # The other implementation computes its softmax in float32.
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )


def _t5_config(config: RahfConfig) -> T5Config:
    return T5Config(
        vocab_size=config.vocabulary,
        d_model=config.text_width,
        d_kv=config.text_head_width,
        d_ff=config.text_hidden,
        num_layers=config.text_layers,
        num_heads=config.text_heads,
        layer_norm_epsilon=NORM_EPS,
        dropout_rate=0.0,  # its randomness would come from no generator of a batch
        decoder_start_token_id=PAD,  # pyright: ignore[reportCallIssue]
        pad_token_id=PAD,
        eos_token_id=END,
    )
