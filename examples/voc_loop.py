"""A whole data set through GEM: images in batches, label maps, mean intersection over union.

    python examples/voc_loop.py VOCdevkit/VOC2012 --model ViT-B/16 --pretrained openai

The folder has the form of Pascal VOC: JPEGImages/*.jpg, SegmentationClass/*.png (palette pictures:
0 = background, 1, 2, ... = the classes in the order of --names, 255 = not counted) and
ImageSets/Segmentation/<split>.txt, one name a line. Scores are of pixels, at each picture's own
size: the counts of all pictures are added up before dividing.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import gem_lite as gem
from gem_lite.method.segment import label_maps
from gem_lite.pictures.transform import ImageTransform

NOT_COUNTED = 255
VOC_NAMES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "television monitor",
]


class VOCFolder(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image [3, h, w], as the transform makes it, and its mask [H, W] int64.

    The mask keeps the picture's own size. Raises FileNotFoundError for a folder of another form.
    """

    def __init__(self, root: Path, split: str, transform: ImageTransform) -> None:
        self.root = root
        self.transform = transform
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listing.is_file():
            raise FileNotFoundError(f"no {listing}; expected a folder in the form of Pascal VOC")
        self.names = listing.read_text().split()
        if not self.names:
            raise ValueError(f"{listing} names no picture")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        with Image.open(self.root / "JPEGImages" / f"{name}.jpg") as picture:
            image = self.transform(picture)
        path = self.root / "SegmentationClass" / f"{name}.png"
        with Image.open(path) as mask:
            if mask.mode not in ("P", "L"):
                raise ValueError(f"{path} has mode {mask.mode}; expected class numbers (P or L)")
            return image, torch.from_numpy(np.array(mask)).long()


def collate(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, list[Tensor]]:
    """Images have one size and are stacked; masks have their own."""
    images, masks = zip(*pairs, strict=True)
    return torch.stack(images), list(masks)


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """Pixels counted by (true class, found class): [classes, classes] int64.

    truth, found: [h, w] int64; pixels whose truth is no class (255) are left out.
    """
    counted = (truth >= 0) & (truth < classes)
    pairs = truth[counted] * classes + found[counted]
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def intersection_over_union(counts: Tensor) -> Tensor:
    """[classes] from [classes, classes]; NaN for a class that is neither there nor found."""
    hits = counts.diagonal().double()
    return hits / (counts.sum(dim=0) + counts.sum(dim=1) - hits)


@torch.inference_mode()
def evaluate(
    model: gem.GEMPredictor,
    loader: DataLoader[tuple[Tensor, list[Tensor]]],
    names: Sequence[str],
    *,
    background: bool,
    threshold: float,
    scale: float,
) -> Tensor:
    """Counts of a data set, as `confusion` gives them; class 0 is background.

    Without `background` every pixel gets one of the names, and those whose truth is background are
    not counted.
    """
    classes = len(names) + 1
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    for images, masks in loader:
        cosines = model(images, names, normalize=False)  # [b, names, h, w]
        for one, mask in zip(cosines, masks, strict=True):
            size = (mask.shape[0], mask.shape[1])
            own = F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)
            found = label_maps(own, scale=scale, threshold=threshold if background else None)
            truth = mask if background else mask.masked_fill(mask == 0, NOT_COUNTED)
            counts += confusion(truth, found.labels[0].cpu(), classes)
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("root", type=Path, help="folder in the form of Pascal VOC")
    parser.add_argument("--split", default="val", help="default: %(default)s")
    parser.add_argument("--model", default="ViT-B/16", help="default: %(default)s")
    parser.add_argument("--pretrained", default="openai", help="tag or file; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--names", nargs="+", default=VOC_NAMES, help="default: VOC's 20 classes")
    parser.add_argument("--no-background", action="store_true", help="count the named classes only")
    parser.add_argument("--threshold", type=float, default=0.5, help="below it is background")
    parser.add_argument("--scale", type=float, default=50.0, help="of the softmax over classes")
    parser.add_argument("--size", type=int, help="side of the square input; default: the model's")
    parser.add_argument("--batch-size", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    args = parser.parse_args(arguments)

    try:
        model, transform = gem.create_model_and_transforms(
            args.model, args.pretrained, device=args.device
        )
        if args.size is not None:
            size = (args.size, args.size)
            transform = gem.get_gem_img_transform(size, transform.mean, transform.std)
        loader = DataLoader(
            VOCFolder(args.root, args.split, transform),
            batch_size=args.batch_size,
            num_workers=args.workers,
            collate_fn=collate,
        )
        counts = evaluate(
            model,
            loader,
            args.names,
            background=not args.no_background,
            threshold=args.threshold,
            scale=args.scale,
        )
    except (ValueError, OSError) as error:
        print(f"voc_loop: {error}", file=sys.stderr)
        return 2
    scores = intersection_over_union(counts)
    for name, score in zip(["background", *args.names], scores.tolist(), strict=True):
        print(f"{name:20} {100 * score:6.2f}")
    print(f"{'mIoU':20} {100 * float(scores.nanmean()):6.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
