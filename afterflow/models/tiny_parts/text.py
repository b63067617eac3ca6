"""Two tiny CLIP text encoders, trained by us as CLIPs: pictures against prompts.

CLIP (2103.00020) with the edited prompts of NegCLIP (2210.01936) as further negatives:
    1  embed B pictures, their B prompts, and B prompts in which one fact was changed
    2  each picture picks its prompt out of all 2B, each prompt its picture out of B
    3  minimise the mean of both cross-entropies
The two encoders share the picture tower and nothing else; the tower is thrown away afterwards.

SD3 reads hidden_states[-2] and the pooled projection. For spelling, a state has to say which character it is
and where it stands. A contrastive loss alone need not keep that, but the residual stream does when token and
position embeddings start as large as what the layers add; CLIP's own 0.02 would drown. See `probe_spelling`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from ..vae import to_pixels
from .fit import Fit
from .tokenizer import BOS_ID, EOS_ID, MAX_LENGTH, PAD_ID, make_tokenizer

WIDTHS = (64, 96)
PROJECTION = 64
EMBEDDING_STD = 0.5


@dataclass(frozen=True)
class CaptionedImages:
    """N pictures with their prompts, and prompts in which one fact is changed."""

    images: np.ndarray
    """Pictures, uint8 (N, S, S, 3)."""
    prompts: list[str]
    """The prompt of every picture."""
    edited: list[str]
    """The same, one fact away.  Equal to the prompt where there is nothing to edit."""


def make_text_encoder(width: int) -> CLIPTextModelWithProjection:
    """An untrained encoder: ids (B, 16) → hidden states (B, 16, width) and pooled (B, 64)."""
    config = CLIPTextConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=PROJECTION,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    encoder = CLIPTextModelWithProjection(config)
    embeddings = encoder.text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=EMBEDDING_STD)
    nn.init.normal_(embeddings.position_embedding.weight, std=EMBEDDING_STD)
    return encoder


class PictureTower(nn.Module):
    """A convolutional network with one head for each text encoder.  It ends flat, because positions matter."""

    def __init__(self) -> None:
        super().__init__()
        layers = []
        for a, b in ((3, 32), (32, 64), (64, 96)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
            layers += [nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 256), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(256, PROJECTION) for _ in WIDTHS)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Embed pictures (B, 3, 32, 32) once for each text encoder: two tensors (B, 64)."""
        features = self.trunk(x)
        return [head(features) for head in self.heads]


def token_ids(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, 16) of B prompts, padded and truncated as SD3's pipeline does."""
    return tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of pictures against prompts and back: logits and same (B, 2B) → scalar.

    `same` marks prompts that say what the picture's own prompt says.  They are no negatives.
    """
    target = torch.arange(len(logits))
    twins = same.clone()
    twins[target, target] = False
    logits = logits.masked_fill(twins, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, : len(target)].T, target)) / 2


def similarity(picture: Tensor, text: Tensor) -> Tensor:
    """Cosines of pictures and texts: (B, D), (C, D) → (B, C)."""
    return F.normalize(picture, dim=-1) @ F.normalize(text, dim=-1).T


class Towers(nn.Module):
    """Everything that the contrastive loss trains."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList(make_text_encoder(width) for width in WIDTHS)
        self.picture = PictureTower()
        self.log_scale = nn.Parameter(torch.full((len(WIDTHS),), 10.0).log())

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """Contrastive loss of pictures (B, 3, 32, 32) and the ids (2, B, 16) of their prompts and edited prompts."""
        texts = ids.flatten(0, 1)
        same = (ids[0][:, None] == texts[None]).all(-1)
        scales, pictures = self.log_scale.exp().clamp(max=100), self.picture(x)
        losses = [
            contrastive_loss(scale * similarity(picture, encoder(texts).text_embeds), same)
            for scale, picture, encoder in zip(scales, pictures, self.text)
        ]
        return torch.stack(losses).sum()


def train_text_encoders(
    pairs: CaptionedImages, steps: int, generator: torch.Generator
) -> tuple[list[CLIPTextModelWithProjection], PictureTower]:
    """Return the two encoders and the picture tower they were trained against."""
    tokenizer, towers = make_tokenizer(), Towers().train()
    ids = torch.stack([token_ids(tokenizer, pairs.prompts), token_ids(tokenizer, pairs.edited)])
    x = to_pixels(pairs.images)
    Fit("text", steps, batch=64, peak=1.5e-3)(
        towers, lambda rows: towers.loss(x[rows], ids[:, rows]), len(x), generator
    )
    towers.eval()
    return [text for text in towers.text if isinstance(text, CLIPTextModelWithProjection)], towers.picture


@torch.no_grad()
def hidden_states(encoder: CLIPTextModelWithProjection, ids: Tensor) -> Tensor:
    """Hidden states that SD3 reads: (B, 16) → (B, 16, width)."""
    return encoder(ids, output_hidden_states=True).hidden_states[-2]


@torch.no_grad()
def edit_accuracy(encoder: CLIPTextModelWithProjection, picture: Tensor, pairs: CaptionedImages) -> float:
    """Share of pictures (N, 64) that are nearer to their prompt than to the edited one; chance is 0.5."""
    tokenizer = make_tokenizer()
    original, edited = (
        F.cosine_similarity(picture, encoder(token_ids(tokenizer, prompts)).text_embeds)
        for prompts in (pairs.prompts, pairs.edited)
    )
    differ = torch.tensor([a != b for a, b in zip(pairs.prompts, pairs.edited)])
    return (original > edited)[differ].float().mean().item()


def fit_linear(x: Tensor, label: Tensor) -> Tensor:
    """Fit ridge regression onto one-hot labels: (N, D), (N,) → weights (D + 1, classes)."""
    x, y = F.pad(x, (0, 1), value=1.0).double(), F.one_hot(label).double()
    return torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(x.shape[1]), x.T @ y)


def linear_accuracy(x: Tensor, label: Tensor) -> float:
    """Accuracy of a linear classifier that is fitted to the first half of the rows and tested on the second."""
    cut = len(x) // 2
    weights = fit_linear(x[:cut], label[:cut])
    predicted = (F.pad(x[cut:], (0, 1), value=1.0).double() @ weights).argmax(-1)
    return (predicted == label[cut:]).float().mean().item()


@torch.no_grad()
def probe_spelling(encoder: CLIPTextModelWithProjection, strings: Sequence[str]) -> dict[str, float]:
    """Held-out accuracy of linear classifiers of strings of one length.

    `character` and `place` predict a character and its position from its state in hidden_states[-2].
    `pooled_character` predicts every character from the pooled projection, which has to hold the whole string.
    """
    tokenizer, length = make_tokenizer(), len(strings[0])
    ids = token_ids(tokenizer, [f'a sign that says "{text}"' for text in strings])
    start = token_ids(tokenizer, ['a sign that says "'])[0].tolist().index(EOS_ID)
    characters = ids[:, start : start + length]
    states = hidden_states(encoder, ids)[:, start : start + length].flatten(0, 1)
    positions = torch.arange(length).repeat(len(strings))
    pooled = encoder(ids).text_embeds
    return {
        "character": linear_accuracy(states, characters.flatten()),
        "place": linear_accuracy(states, positions),
        "pooled_character": float(np.mean([linear_accuracy(pooled, column) for column in characters.T])),
    }
