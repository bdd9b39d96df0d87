"""Train the small CLIP on emoji collages with contrastive losses: no boxes, no masks.

    python train.py --cache CACHE --out RUN --weights ../../weights/tiny-emoji-v1.safetensors \\
        --collages 300000
    python train.py --cache CACHE --out RUN --collages 520000 --patch-loss 0    # from nothing

Resumes from RUN/checkpoint.pt when that exists. README.md beside this file has the recipe and the
figures it gave.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pictures

from gem_lite.checkpoints.ours import load
from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD, ImageConfig, ModelConfig, TextConfig
from gem_lite.method.image import resample_positions
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork, end_of_text, initialize
from gem_lite.tokenizer import Tokenizer
from gem_lite.tools.quality.scenes import Sprites, background, caption, compose, scenes

CONFIG = ModelConfig(
    embed=192,
    activation="quick_gelu",
    image=ImageConfig(size=128, patch=16, width=192, layers=8, heads=3, mlp_width=768),
    text=TextConfig(context=77, vocab=8192, width=128, layers=3, heads=2, mlp_width=512),
)


class Stage(NamedTuple):
    """A part of the curriculum."""

    until: float  # part of the budget at which it ends
    size: int  # side of the pictures
    things: tuple[int, int]  # fewest and most things in one
    kept: float  # part of the patches that the network sees


# A thing on a 64-pixel picture is as large as one of four on a 128-pixel picture, at a quarter of
# the price; so the names are learned there, and how to find several things comes after. Leaving
# out half of the patches at random, as FLIP does (arXiv 2212.00794), halves the price once more.
STAGES = (
    Stage(0.25, 64, (1, 1), 1.0),
    Stage(0.42, 96, (1, 3), 1.0),
    Stage(0.80, 128, (1, 4), 0.5),
    Stage(1.00, 128, (1, 4), 1.0),
)
# Going on from a trained file: half of the patches for most of the time, then all of them, on
# pictures that grow, since things are found where patches are small beside them.
LATER_STAGES = (
    Stage(0.40, 128, (1, 4), 0.5),
    Stage(0.65, 160, (1, 4), 0.5),
    Stage(0.85, 160, (1, 4), 1.0),
    Stage(1.00, 192, (1, 4), 1.0),
)
# GEM's maps take part in the second loss under these settings; the file's own are chosen later.
GEM = GEMConfig(blocks=5, inv_temp=16.0)
# Inverse temperature of the smooth maximum over the patches. The larger, the fewer patches count.
SHARPNESS = 20.0
# Pictures of nothing, called so: without them no loss tells the network what an empty patch is, and
# it looks like any thing. They also give the word to ask for what is no thing.
EMPTY = 0.06
EMPTY_WORD, EMPTY_SYNONYMS = "background", ["nothing", "pattern", "plain background"]


class Batch(NamedTuple):
    """Pictures, and captions that are each true of some of them."""

    images: np.ndarray  # uint8 [b, size, size, 3]
    captions: list[str]  # different ones
    true: np.ndarray  # bool [b, captions]
    alone: list[int]  # for each name that some caption says alone, one such caption
    ground: int | None  # which of these says "background"


_sprites: Sprites
_synonyms: dict[str, list[str]]


def _start_worker(cache: Path) -> None:
    global _sprites, _synonyms
    _sprites = pictures.trained(cache)
    _synonyms = {name: concept["synonyms"] for name, concept in pictures.concepts().items()}
    _synonyms[EMPTY_WORD] = EMPTY_SYNONYMS


def make_batch(seeds: tuple[int, ...], size: int, things: tuple[int, int], count: int) -> Batch:
    """One batch; it depends on these arguments alone."""
    rng = np.random.default_rng(seeds)
    concepts = {name: index for index, name in enumerate((*_sprites.concepts, EMPTY_WORD))}
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    shown = np.zeros((count, len(concepts)), dtype=np.float32)
    said: dict[str, tuple[str, ...]] = {}
    for index in range(count):
        names: tuple[str, ...] = (EMPTY_WORD,)
        if rng.random() < EMPTY:
            images[index] = background(rng, size)
        else:
            scene = compose(_sprites, rng, size=size, things=things)
            images[index], names = scene.image, scene.names
        shown[index, [concepts[name] for name in names]] = 1
        said[caption(names, rng, _synonyms)] = names
        if len(names) > 1:  # a second caption that names only a part
            part = rng.permutation(names)[: 1 if rng.random() < 0.7 else 2].tolist()
            said[caption(part, rng, _synonyms)] = tuple(part)
    named = np.zeros((len(said), len(concepts)), dtype=np.float32)
    for index, names in enumerate(said.values()):
        named[index, [concepts[name] for name in names]] = 1
    true = shown @ named.T == named.sum(axis=1)
    # The last caption of a single name stands for all that say the same in other words.
    alone = {names[0]: index for index, names in enumerate(said.values()) if len(names) == 1}
    ground = list(alone).index(EMPTY_WORD) if EMPTY_WORD in alone else None
    return Batch(images, list(said), true, list(alone.values()), ground)


def contrastive_loss(logits: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric loss; a caption that is true of a picture is never its negative.

    logits: [b, p] scaled cosines; true: [b, p]. Every true pair competes with the false ones of
    its row, then with those of its column. With one true caption a row it is CLIP's own loss.
    """

    def one_way(logits: Tensor, true: Tensor) -> Tensor:
        against = logits.masked_fill(true, -torch.inf).logsumexp(dim=1, keepdim=True)
        losses = F.softplus(against - logits) * true
        return (losses.sum(dim=1) / true.sum(dim=1).clamp(min=1)).mean()

    return (one_way(logits, true) + one_way(logits.T, true.T)) / 2


def patch_loss(patches: Tensor, text: Tensor, true: Tensor) -> Tensor:
    """The same loss between captions and the patch that fits each best: no one says where it is.

    A picture's score for a caption is the smooth maximum of its patches' cosines (multiple instance
    learning): logsumexp over patches of SHARPNESS x cosine.
    patches: [b, n, e], any norm; text: [p, e], unit norm; true: bool [b, p].
    """
    cosines = F.normalize(patches.float(), dim=-1) @ text.T  # [b, n, p]
    return contrastive_loss((SHARPNESS * cosines).logsumexp(dim=1), true)


def embed(network: GEMNetwork, images: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """CLIP's image embedding [b, e], and GEM's of the patches [b, n, e].

    kept: a random part of the patches that is seen at all, another for each image.
    """
    visual = network.visual
    x = visual.conv1(images)
    grid = (x.shape[-2], x.shape[-1])
    positions = resample_positions(visual.positional_embedding, visual.native_grid, grid)
    x = x.flatten(2).transpose(1, 2) + positions[1:]  # [b, n, d]
    if kept < 1:
        chosen = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
        chosen = chosen[:, : round(kept * x.shape[1]), None]
        x = x.gather(1, chosen.expand(-1, -1, x.shape[2]))
    token = (visual.class_embedding + positions[0]).expand(len(x), 1, -1)
    clip = visual.ln_pre(torch.cat([token, x], dim=1))
    for block in visual.transformer.resblocks[: visual.plain_blocks]:
        clip = block(clip)
    gem = clip
    for block in visual.transformer.resblocks[visual.plain_blocks :]:
        clip, gem = block(clip, gem)
    return visual.ln_post(clip[:, 0]) @ visual.proj, visual.ln_post(gem[:, 1:]) @ visual.proj


class PlainAttention(TorchFunctionMode):
    """While on, attention is two products and a softmax.

    On a CPU the backward pass of PyTorch's fused attention takes half of a step's time.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return plain_attention(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T) v; q, k, v: [b, h, n, c] -> the same. scale: None = 1/sqrt(c)."""
    scores = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT  # [b, h, n, n]
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def name_tokens(tokenizer: Tokenizer, names: Sequence[str]) -> Tensor:
    """One prompt for each name, int64 [names, 16]."""
    return tokenizer([f"a photo of a {name}." for name in names])[:, :16]


def text_embeddings(network: GEMNetwork, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Embeddings of captions around the mean of the names' prompts, unit norm: [p, n] -> [p, e].

    Without this all texts come to share a direction, which the loss hardly minds, but every map
    then shows that direction before its own word. `export.py` moves the mean into a bias.
    """
    with torch.no_grad():
        centre = network.encode_text(prompts).float().mean(dim=0)
    return F.normalize(network.encode_text(tokens).float() - centre, dim=-1)


def fold_centre(network: GEMNetwork, prompts: Tensor) -> None:
    """Move the mean of the prompts' embeddings into ln_final's bias, so that it becomes zero."""
    with torch.no_grad(), capture(network.ln_final) as outputs:
        network.encode_text(prompts)
        before = end_of_text(outputs[0], prompts)  # [p, d]
        network.ln_final.bias -= before.mean(dim=0)


@contextmanager
def capture(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What the module returns, while the block runs."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def normalised(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 [b, h, w, 3] -> float32 [b, 3, h, w], normalised with CLIP's mean and std."""
    mean = torch.tensor(OPENAI_MEAN, device=device) * 255
    std = torch.tensor(OPENAI_STD, device=device) * 255
    pixels = torch.as_tensor(images).to(device).float()
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()


def optimizers(network: GEMNetwork, lr: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices, others, vectors = [], [], []
    for name, parameter in network.named_parameters():
        if muon and parameter.ndim == 2 and "resblocks" in name:
            matrices.append(parameter)
        elif parameter.ndim >= 2:
            others.append(parameter)
        else:
            vectors.append(parameter)
    groups = [
        {"params": others, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    ]
    if matrices:
        made.append(
            torch.optim.Muon(
                matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw", ns_steps=5
            )
        )
    return made


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 2 %, then a cosine down to a hundredth."""
    if progress < 0.02:
        return peak * max(progress, 1e-4) / 0.02
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class InlineExecutor(Executor):
    """Runs a job at once, in this process."""

    def submit(self, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(*args, **kwargs))
        return done


class Validation:
    """A quick look at fixed pictures while training; the figures that count come later."""

    def __init__(self, drawings: Sprites, tokenizer: Tokenizer, device: torch.device) -> None:
        self.device = device
        self.concepts = drawings.concepts
        self.prompts = name_tokens(tokenizer, self.concepts).to(device)
        self.singles, self.scenes = {}, {}
        for kind, styles in (
            ("trained", pictures.TRAINED_STYLES),
            ("unseen", pictures.UNSEEN_STYLES),
        ):
            chosen = drawings.select(styles=list(styles))
            self.singles[kind] = list(
                scenes(chosen, seed=901, count=316, things=(1, 1), jitter=0.0)
            )
            self.scenes[kind] = list(scenes(chosen, seed=902, count=80, jitter=0.0))

    @torch.no_grad()
    def __call__(self, network: GEMNetwork) -> dict[str, float]:
        found: dict[str, float] = {}
        text = text_embeddings(network, self.prompts, self.prompts)
        of = {name: index for index, name in enumerate(self.concepts)}
        for kind, singles in self.singles.items():
            images = normalised(np.stack([scene.image for scene in singles]), self.device)
            embeddings = network.encode_image(images).clip[:, 0]
            best = (embeddings @ text.T).argmax(dim=1).tolist()
            hits = [of[scene.names[0]] == i for scene, i in zip(singles, best, strict=True)]
            found[f"top1_{kind}"] = float(np.mean(hits))
        blocks = network.config.image.layers
        for inv_temp in (8.0, 16.0):
            with torch.device("meta"):
                probe = GEMNetwork(network.config, GEMConfig(blocks=blocks, inv_temp=inv_temp))
            probe.load_state_dict(network.state_dict(), assign=True)
            for kind, collages in self.scenes.items():
                features = probe.encode_image(
                    normalised(np.stack([scene.image for scene in collages]), self.device)
                )
                for stream in ("gem", "clip"):
                    if stream == "clip" and inv_temp != 8.0:
                        continue
                    dense = F.normalize(getattr(features, stream)[:, 1:], dim=-1)
                    points, own = [], []
                    for scene, patches in zip(collages, dense, strict=True):
                        prompts = text[[of[name] for name in scene.names]]
                        maps = (patches @ prompts.T).T.unflatten(1, features.grid)
                        maps = F.interpolate(maps[None], scene.mask.shape, mode="bilinear")[0]
                        for index in range(len(scene.names)):
                            on = torch.from_numpy(scene.mask == index + 1)
                            points.append(bool(on.flatten()[maps[index].argmax()]))
                            own.append(int(maps[:, on].mean(dim=1).argmax()) == index)
                    tag = f"{stream}{inv_temp:g}_{kind}"
                    found[f"point_{tag}"] = float(np.mean(points))
                    found[f"own_{tag}"] = float(np.mean(own))
        return {key: round(value, 3) for key, value in found.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder of fetched pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and log")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="train for this long")
    budget.add_argument("--collages", type=int, help="train on the worth of so many collages")
    parser.add_argument("--weights", type=Path, help="a weight file to go on from")
    parser.add_argument("--patch-loss", type=float, default=1.0, help="weight of that loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--adamw", action="store_true", help="AdamW alone, without Muon")
    parser.add_argument("--compile", action="store_true", help="torch.compile the image tower")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make pictures")
    parser.add_argument("--validate-every", type=float, default=5.0, help="minutes")
    return parser.parse_args()


def averaged(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over the processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def main() -> None:
    args = arguments()
    # Started by torchrun, every process trains on batches of its own and gradients are averaged.
    # On a CPU, one process per core with one thread each is faster than one process with many.
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        distributed.init_process_group("gloo" if args.device == "cpu" else "nccl")
    args.out.mkdir(parents=True, exist_ok=True)
    log_file = (args.out / "log.jsonl").open("a", buffering=1)

    def log(**entry: object) -> None:
        if rank:
            return
        print(" ".join(f"{key}={value}" for key, value in entry.items()), flush=True)
        log_file.write(json.dumps(entry) + "\n")

    drawings = pictures.sprites(args.cache)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    network = GEMNetwork(CONFIG, GEM if args.patch_loss else GEMConfig(blocks=0))
    initialize(network)
    if args.weights:
        started, header = load(args.weights)
        if header.config != CONFIG:
            raise ValueError(f"{args.weights} holds {header.config}; expected {CONFIG}")
        network.load_state_dict(started.state_dict())  # float16 there, float32 here
    stages = LATER_STAGES if args.weights else STAGES
    network.to(device)
    tokenizer = Tokenizer(vocab_size=CONFIG.text.vocab)
    validation = Validation(drawings, tokenizer, device)
    steppers = optimizers(network, args.lr, muon=not args.adamw)

    step, elapsed, spent, samples = 0, 0.0, 0.0, 0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        for stepper, stored in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(stored)
        step, elapsed, spent = state["step"], state["elapsed"], state["spent"]
        samples = state["samples"]
        log(resumed_at=step, elapsed=round(elapsed))

    def save() -> None:
        if rank:
            return
        state = {
            "network": network.state_dict(),
            "optimizers": [stepper.state_dict() for stepper in steppers],
            "step": step,
            "elapsed": elapsed,
            "spent": spent,
            "samples": samples,
        }
        torch.save(state, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)

    def progress() -> float:
        if args.minutes:
            return elapsed / (60 * args.minutes)
        return spent / args.collages

    embedding = torch.compile(embed, dynamic=False) if args.compile else embed

    pool: Executor
    if args.workers:
        pool = ProcessPoolExecutor(args.workers, initializer=_start_worker, initargs=(args.cache,))
    else:
        pool = InlineExecutor()
        _start_worker(args.cache)
    ahead: deque[tuple[Stage, Future[Batch]]] = deque()
    asked = step
    losses: list[Tensor] = []
    patch_losses: list[Tensor] = []
    last_log = last_save = last_validation = elapsed
    logged_samples = samples
    clock = time.monotonic()
    while progress() < 1:
        while len(ahead) < (args.workers + 2 if args.workers else 1):
            stage = next(each for each in stages if progress() < each.until)
            seeds = (args.seed, asked, rank)
            job = pool.submit(make_batch, seeds, stage.size, stage.things, args.batch // ranks)
            ahead.append((stage, job))
            asked += 1
        stage, job = ahead.popleft()
        batch = job.result()
        tokens = tokenizer(batch.captions)
        tokens = tokens[:, : int((tokens > 0).sum(dim=1).max())].to(device)
        pixels = normalised(batch.images, device)
        torch.manual_seed(hash((args.seed, step, rank)))
        attention = PlainAttention() if device.type == "cpu" else nullcontext()
        with torch.autocast(device.type, torch.bfloat16), attention:
            image, patches = embedding(network, pixels, stage.kept)
            text = text_embeddings(network, tokens, validation.prompts)
        true = torch.from_numpy(batch.true).to(device)
        logits = network.logit_scale.exp() * F.normalize(image.float(), dim=-1) @ text.T
        loss = contrastive_loss(logits, true)
        losses.append(loss.detach())
        if args.patch_loss:
            shown = true[:, batch.alone]  # [b, names]
            if batch.ground is not None:
                shown[:, batch.ground] = True  # some ground is seen in every picture
            second = patch_loss(patches, text[batch.alone], shown)
            patch_losses.append(second.detach())
            loss = loss + args.patch_loss * second
        loss.backward()
        # The clocks of the processes differ: the first one's time decides where they all are.
        now = time.monotonic()
        shared = torch.tensor([elapsed + now - clock], dtype=torch.float64)
        clock = now
        if ranks > 1:
            distributed.broadcast(shared, src=0)
            averaged([parameter.grad for parameter in network.parameters()])
        elapsed = float(shared)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate(progress(), args.lr)
            stepper.step()
            stepper.zero_grad()
        with torch.no_grad():
            network.logit_scale.clamp_(max=math.log(100))

        step += 1
        samples += args.batch
        spent += args.batch * stage.kept * (stage.size / CONFIG.image.size) ** 2
        if elapsed - last_log > 20:
            log(
                step=step,
                minutes=round(elapsed / 60, 1),
                progress=round(progress(), 3),
                size=stage.size,
                kept=stage.kept,
                samples=samples,
                per_s=round((samples - logged_samples) / (elapsed - last_log)),
                loss=round(float(torch.stack(losses).mean()), 3),
                patch_loss=round(float(torch.stack(patch_losses or losses).mean()), 3),
                scale=round(float(network.logit_scale.detach().exp()), 1),
            )
            losses, patch_losses, last_log, logged_samples = [], [], elapsed, samples
        if elapsed - last_save > 180:
            save()
            last_save = elapsed
        if elapsed - last_validation > 60 * args.validate_every:
            if not rank:
                log(step=step, minutes=round(elapsed / 60, 1), **validation(network))
            last_validation = elapsed
    pool.shutdown(cancel_futures=True)
    save()
    if not rank:
        log(step=step, minutes=round(elapsed / 60, 1), samples=samples, **validation(network))


if __name__ == "__main__":
    main()
