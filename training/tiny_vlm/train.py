"""Train the tiny LLaVA that ships in `clasp_kernels/assets/tiny_vlm`.

    python training/tiny_vlm/train.py --out clasp_kernels/assets/tiny_vlm

Auxiliary objectives make the model learn within hours on a CPU. Heads on the patch tokens that feed
the projector predict what each patch shows; fine detail (glyphs, patterns) is also read after the
third vision layer, where it is learned sooner. Heads on the CLS token predict the
content of the whole picture: the language loss never reaches the CLS token, so its attention (the
salience) would otherwise be meaningless. The heads are discarded after training.

In most steps, and nearly all of the last `--sparse-steps`, the language model sees only some of
the visual tokens. A large model tolerates missing tokens, but a tiny one that was only trained on
all 144 does not, so it could not show the effect of pruning. The tokens left out are random and do
not depend on CLASP's selection.

`--init-from` starts from the weights of an earlier model of the same architecture; rows of the
vocabulary are matched by the text of their tokens, and new tokens start at random.

The run is resumable: it continues from `--work`/checkpoint.pt with the same batches. The learning
rate has a warm-up, a plateau, and a linear decay over the last `--decay` steps.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from model import WIDTH, build_model, build_processor, build_tokenizer
from packing import CHANNELS, IGNORE, MAX_MARKS, SURROUNDINGS, Batch, PackedPictures
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from clasp_kernels.integrations.vllm import save_for_vllm

WARMUP = 100
LOSSES = ("language", "patches", "cls")


DETAIL = ("glyph", "pattern")  # what heads also read after vision layer DETAIL_LAYER
DETAIL_LAYER = 3


class AuxiliaryHeads(nn.Module):
    """Heads that predict the content of each patch, and of the picture from the CLS token."""

    def __init__(self) -> None:
        super().__init__()
        self.scene_sizes = [len(SURROUNDINGS), 1 + MAX_MARKS]
        self.last = nn.ModuleDict({name: self._head(name) for name in CHANNELS})
        self.detail = nn.ModuleDict({name: self._head(name) for name in DETAIL})
        self.cls_norm = nn.LayerNorm(WIDTH)
        presence = sum(len(values) for values in CHANNELS.values())
        self.scene = nn.Linear(WIDTH, presence + sum(self.scene_sizes))

    @staticmethod
    def _head(channel: str) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1 + len(CHANNELS[channel])))

    def forward(
        self, layers: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        labels = dict(zip(CHANNELS, batch.patch_labels.unbind(1), strict=True))
        patches = torch.zeros(())
        for heads, vision in ((self.last, layers[-1]), (self.detail, layers[DETAIL_LAYER])):
            for name, head in heads.items():
                logits = head(vision[:, 1:]).float()
                weight = torch.ones(logits.shape[-1])
                weight[0] = 0.25  # most patches are empty
                target = labels[name].flatten()
                patches = patches + F.cross_entropy(logits.flatten(0, 1), target, weight)
        logits = self.scene(self.cls_norm(layers[-1][:, 0])).float()
        presence, *classes = logits.split(
            [logits.shape[-1] - sum(self.scene_sizes), *self.scene_sizes], -1
        )
        cls = 2 * F.binary_cross_entropy_with_logits(presence, batch.scene_presence)
        for values, target in zip(classes, batch.scene_labels.unbind(1), strict=True):
            cls = cls + 0.3 * F.cross_entropy(values, target)
        return patches, cls


def losses(
    model: LlavaForConditionalGeneration, heads: AuxiliaryHeads, batch: Batch, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    tower = model.model.vision_tower(batch.pixel_values, output_hidden_states=True)
    patches, cls = heads(tower.hidden_states, batch)
    vision = tower.hidden_states[model.config.vision_feature_layer][:, 1:]
    kept = batch.kept[..., None].expand(-1, -1, vision.shape[-1])
    visual = model.model.multi_modal_projector(vision.gather(1, kept))
    embeds = model.get_input_embeddings()(batch.input_ids)
    place = (batch.input_ids == model.config.image_token_id)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(place, visual.to(embeds.dtype))
    bias = torch.zeros(batch.attention_mask.shape, dtype=dtype)
    bias.masked_fill_(~batch.attention_mask, torch.finfo(dtype).min)
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=bias,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    asked = batch.labels != IGNORE
    logits = model.lm_head(hidden[asked]).float()
    language = F.cross_entropy(logits, batch.labels[asked])
    return {"language": language, "patches": patches, "cls": cls}


def start_from(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Copy the weights of an earlier model; rows of the vocabulary by the text of their tokens."""
    earlier = LlavaForConditionalGeneration.from_pretrained(folder)
    known = AutoTokenizer.from_pretrained(folder).get_vocab()
    weights = model.state_dict()
    for name, value in earlier.state_dict().items():
        if value.shape == weights[name].shape:
            weights[name].copy_(value)
    rows = model.get_input_embeddings().weight.data
    source = earlier.get_input_embeddings().weight.data
    for token, row in tokenizer.get_vocab().items():
        if token in known:
            rows[row] = source[known[token]]


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Return warm-up, plateau and linear decay."""
    left = (arguments.steps - step) / arguments.decay
    return arguments.lr * min(1.0, (step + 1) / WARMUP, left)


def _batches(data: PackedPictures) -> Iterator[Batch]:
    yield from torch.utils.data.DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=4)


def plot_losses(log: Path, out: Path, sparse_from: int, batch_size: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with log.open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, color in zip(LOSSES, ("#0072B2", "#E69F00", "#009E73"), strict=True):
        axes.plot(steps, [float(row[name]) for row in rows], label=name, color=color, lw=1.2)
    axes.axvline(sparse_from, color="0.6", lw=1, ls="--")
    axes.annotate("most batches\nsparse", (sparse_from, 2.0), xytext=(6, 0), color="0.4",
                  textcoords="offset points", fontsize=8)  # fmt: skip
    axes.set(
        xlabel=f"step ({batch_size} pictures, up to 8 questions each)", ylabel="loss", yscale="log"
    )
    axes.set_title("Training the tiny LLaVA")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(out, dpi=130)


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    model, heads = build_model(tokenizer), AuxiliaryHeads()
    model.set_attn_implementation("sdpa")
    if arguments.init_from:
        start_from(model, tokenizer, arguments.init_from)
    parameters = [*model.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, betas=(0.9, 0.98), fused=True)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = work / "checkpoint.pt", work / "losses.csv"
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        rows = log.read_text().splitlines()  # a killed run may have logged past its checkpoint
        kept = [row for row in rows[1:] if int(row.split(",")[0]) <= start]
        log.write_text("\n".join([rows[0], *kept]) + "\n")
    else:
        log.write_text("step,lr,seconds," + ",".join(LOSSES) + "\n")

    def save(step: int) -> None:
        state = {
            "model": model.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    end, sparse_from = arguments.steps, arguments.steps - arguments.sparse_steps
    dtype = getattr(torch, arguments.dtype)
    data = PackedPictures(
        tokenizer, range(start, end), arguments.batch_size, arguments.seed, sparse_from
    )
    model.train()
    bar = tqdm(total=end, initial=start, unit="step", mininterval=5)
    mean, since, began = dict.fromkeys(LOSSES, 0.0), 0, time.monotonic()
    for step, batch in zip(data.steps, _batches(data), strict=True):
        rate = learning_rate(step, arguments)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            parts = losses(model, heads, batch, dtype)
        sum(parts.values(), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name in LOSSES:
            mean[name] += parts[name].item()
        since += 1
        bar.update()
        if (step + 1) % 20 == 0 or step + 1 == end:
            mean = {name: value / since for name, value in mean.items()}
            bar.set_postfix({name: f"{value:.3f}" for name, value in mean.items()})
            values = ",".join(f"{mean[name]:.5f}" for name in LOSSES)
            with log.open("a") as file:
                file.write(f"{step + 1},{rate:.6f},{time.monotonic() - began:.1f},{values}\n")
            mean, since = dict.fromkeys(LOSSES, 0.0), 0
        if (step + 1) % 200 == 0 or step + 1 == end:
            save(step + 1)
            save_for_vllm(model, build_processor(tokenizer), work / "latest")
    bar.close()
    if arguments.out:
        save_for_vllm(model, build_processor(tokenizer), arguments.out)
    plot_losses(log, work / "loss.png", sparse_from, arguments.batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the trained model and processor")
    parser.add_argument("--work", type=Path, default=Path("out/tiny_vlm"))
    parser.add_argument("--init-from", type=Path, help="folder of an earlier model to start from")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="bfloat16 is faster only where the CPU has instructions for it",
    )
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--decay", type=int, default=1500)
    parser.add_argument("--sparse-steps", type=int, default=900)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
