"""The table of known weights: what each file is, and where it comes from."""

from dataclasses import dataclass
from typing import Literal

from ..method.config import OPENAI_MEAN, OPENAI_STD, QUICKGELU_SUFFIX, Activation
from .transfer import HUB

HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # whichever there is

Three = tuple[float, float, float]
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One row of the table. None in `mean`, `std` and `size`: the file's own header says."""

    name: str  # as available_models() lists it, with "-quickgelu" where upstream has it
    tag: str
    activation: Activation
    url: str | None  # of the published file; None: ships with the package
    sha256: str | None  # of the published file: 64 digits, or the first 8; None: not published
    licence: str  # of the weights
    source: str  # who publishes them
    hub: str | None = None  # repository on huggingface.co with the same weights for open_clip
    mean: Three | None = OPENAI_MEAN
    std: Three | None = OPENAI_STD
    size: int | None = 448  # side that pictures are resized to, GEM's default
    resize_mode: Literal["shortest", "squash"] = "shortest"  # in training and CLIP's own use
    aliases: tuple[str, ...] = ()  # other names of the tag

    @property
    def model(self) -> str:
        """The architecture, without the suffix: `ViT-B/16`."""
        return self.name.removesuffix(QUICKGELU_SUFFIX)

    @property
    def commercial(self) -> bool | None:
        """Whether the licence allows commercial use; None: read it, it is not clear."""
        return {"MIT": True, "CC-BY-NC-4.0": False}.get(self.licence)


TIMM = {  # repositories on the hub that hold the files of other servers again
    "ViT-B/32": "timm/vit_base_patch32_clip_224",
    "ViT-B/16": "timm/vit_base_patch16_clip_224",
    "ViT-B/16-plus-240": "timm/vit_base_patch16_plus_clip_240",
    "ViT-L/14": "timm/vit_large_patch14_clip_224",
    "ViT-L/14-336": "timm/vit_large_patch14_clip_336",
    "ViT-H/14": "timm/vit_huge_patch14_clip_224",
    "ViT-bigG/14": "timm/vit_gigantic_patch14_clip_224",
}


def _openai(name: str, file: str, sha256: str) -> Pretrained:
    return Pretrained(
        name=name,
        tag="openai",
        activation="quick_gelu",
        url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}",
        sha256=sha256,
        licence="not stated for the weights (code: MIT)",
        source="https://github.com/openai/CLIP",
        hub=f"{TIMM[name]}.openai",
    )


def _metaclip(
    name: str, tag: str, file: str, sha256: str, aliases: tuple[str, ...] = ()
) -> Pretrained:
    return Pretrained(
        name=name,
        tag=tag,
        activation="quick_gelu" if name.endswith(QUICKGELU_SUFFIX) else "gelu",
        url=f"https://dl.fbaipublicfiles.com/MMPT/metaclip/{file}",
        sha256=sha256,
        licence="CC-BY-NC-4.0",
        source="https://github.com/facebookresearch/MetaCLIP",
        hub=f"{TIMM[name.removesuffix(QUICKGELU_SUFFIX)]}.{tag.replace('fullcc', '2pt5b')}",
        aliases=aliases,
    )


def _laion(
    name: str, tag: str, file: str, activation: Activation = "gelu", *, in_timm: bool = True
) -> Pretrained:
    """A file of open_clip's release; its name ends in the first 8 digits of its SHA-256."""
    return Pretrained(
        name=name,
        tag=tag,
        activation=activation,
        url=f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{file}",
        sha256=file.rpartition("-")[2].partition(".")[0],
        licence="MIT",
        source="https://github.com/mlfoundations/open_clip",
        hub=f"{TIMM[name]}.{tag}" if in_timm else None,
    )


def _hub(
    name: str,
    tag: str,
    repository: str,
    *,
    mean: Three = OPENAI_MEAN,
    std: Three = OPENAI_STD,
    resize_mode: Literal["shortest", "squash"] = "shortest",
) -> Pretrained:
    return Pretrained(
        name=name,
        tag=tag,
        activation="quick_gelu" if name.endswith(QUICKGELU_SUFFIX) else "gelu",
        url=f"{HUB}/{repository}/resolve/main/{HUB_FILES[0]}",
        sha256=None,
        licence="MIT" if repository.startswith("laion/") else "Apple's (apple-sample-code-license)",
        source=f"{HUB}/{repository}",
        hub=repository,
        mean=mean,
        std=std,
        resize_mode=resize_mode,
    )


_FULLCC = ("metaclip_2_5b", "metaclip_2pt5b")

# fmt: off
PRETRAINED: tuple[Pretrained, ...] = (
    _openai("ViT-B/32", "ViT-B-32.pt",
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    # Upstream builds plain GELU for the next two, which their file names contradict.
    _laion("ViT-B/32", "laion400m_e31", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt",
           "quick_gelu"),
    _laion("ViT-B/32", "laion400m_e32", "vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
           "quick_gelu"),
    _laion("ViT-B/32", "laion2b_e16", "vit_b_32-laion2b_e16-af8dbd0c.pth"),
    _hub("ViT-B/32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    _metaclip("ViT-B/32-quickgelu", "metaclip_400m", "b32_400m.pt",
              "3c68642594a329afc1ec0fe489ee2b58ab19c9d0556ccf7c404a59baa0762d71"),
    _metaclip("ViT-B/32-quickgelu", "metaclip_fullcc", "b32_fullcc2.5b.pt",
              "885b7ec11fe07a9826e2e6812d70e5011918e32fe9b12136b49d5dded92b4386", _FULLCC),
    _hub("ViT-B/32", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
    _hub("ViT-B/32", "datacomp_m_s128m_b4k", "laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_clip_s128m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_laion_s128m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.M.laion-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_image_s128m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.M.image-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_text_s128m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.M.text-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_basic_s128m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.M.basic-s128M-b4K"),
    _hub("ViT-B/32", "commonpool_m_s128m_b4k", "laion/CLIP-ViT-B-32-CommonPool.M-s128M-b4K"),
    _hub("ViT-B/32", "datacomp_s_s13m_b4k", "laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_clip_s13m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.S.clip-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_laion_s13m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.S.laion-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_image_s13m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.S.image-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_text_s13m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.S.text-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_basic_s13m_b4k",
         "laion/CLIP-ViT-B-32-CommonPool.S.basic-s13M-b4K"),
    _hub("ViT-B/32", "commonpool_s_s13m_b4k", "laion/CLIP-ViT-B-32-CommonPool.S-s13M-b4K"),

    _hub("ViT-B/32-256", "datacomp_s34b_b86k", "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"),

    _openai("ViT-B/16", "ViT-B-16.pt",
            "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _laion("ViT-B/16", "laion400m_e31", "vit_b_16-laion400m_e31-00efa78f.pt"),
    _laion("ViT-B/16", "laion400m_e32", "vit_b_16-laion400m_e32-55e67d44.pt"),
    _hub("ViT-B/16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    _metaclip("ViT-B/16-quickgelu", "metaclip_400m", "b16_400m.pt",
              "68dfb5996c52a8f4fecb9bd16601e97e1895236645082778bd9cede8429a8d49"),
    _metaclip("ViT-B/16-quickgelu", "metaclip_fullcc", "b16_fullcc2.5b.pt",
              "512ea0fb9f2cf88d027e96e4674247a1a91a96af18abc2e2fcdb8008c551e04b", _FULLCC),
    _hub("ViT-B/16", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
    _hub("ViT-B/16", "datacomp_l_s1b_b8k", "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_clip_s1b_b8k", "laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_laion_s1b_b8k",
         "laion/CLIP-ViT-B-16-CommonPool.L.laion-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_image_s1b_b8k",
         "laion/CLIP-ViT-B-16-CommonPool.L.image-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_text_s1b_b8k", "laion/CLIP-ViT-B-16-CommonPool.L.text-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_basic_s1b_b8k",
         "laion/CLIP-ViT-B-16-CommonPool.L.basic-s1B-b8K"),
    _hub("ViT-B/16", "commonpool_l_s1b_b8k", "laion/CLIP-ViT-B-16-CommonPool.L-s1B-b8K"),
    _hub("ViT-B/16-quickgelu", "dfn2b", "apple/DFN2B-CLIP-ViT-B-16"),

    _laion("ViT-B/16-plus-240", "laion400m_e31", "vit_b_16_plus_240-laion400m_e31-8fb26589.pt"),
    # open_clip names the hub's e31 for e32, too.
    _laion("ViT-B/16-plus-240", "laion400m_e32", "vit_b_16_plus_240-laion400m_e32-699c4b84.pt",
           in_timm=False),

    _openai("ViT-L/14", "ViT-L-14.pt",
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _laion("ViT-L/14", "laion400m_e31", "vit_l_14-laion400m_e31-69988bb6.pt"),
    _laion("ViT-L/14", "laion400m_e32", "vit_l_14-laion400m_e32-3d133497.pt"),
    _hub("ViT-L/14", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
         mean=HALF, std=HALF),
    _metaclip("ViT-L/14-quickgelu", "metaclip_400m", "l14_400m.pt",
              "51c782959f920b030779e494517b8d545f56794df6b0a2796a4c310455a361be"),
    _metaclip("ViT-L/14-quickgelu", "metaclip_fullcc", "l14_fullcc2.5b.pt",
              "ce24750710544ee288ef0abdead2016730da1893a1d07447bda3a75e1c148f97", _FULLCC),
    _hub("ViT-L/14", "datacomp_xl_s13b_b90k", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
    _hub("ViT-L/14", "commonpool_xl_clip_s13b_b90k",
         "laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K"),
    _hub("ViT-L/14", "commonpool_xl_laion_s13b_b90k",
         "laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K"),
    _hub("ViT-L/14", "commonpool_xl_s13b_b90k", "laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K"),
    _hub("ViT-L/14-quickgelu", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14"),
    _hub("ViT-L/14", "dfn2b_s39b", "apple/DFN2B-CLIP-ViT-L-14-39B"),

    _openai("ViT-L/14-336", "ViT-L-14-336px.pt",
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),

    _metaclip("ViT-H/14-quickgelu", "metaclip_fullcc", "h14_fullcc2.5b.pt",
              "1286807d5cc8d9a0b12563b47474efb53b9522eb3d7eac5a9a5d39c3a776ad5c", _FULLCC),
    _metaclip("ViT-H/14", "metaclip_altogether", "h14_v1.2_altogether.pt",
              "c4ee0a62c58a38867df142d7be3b0aa1988d6ac49293971b177a03ead6092cc6",
              ("metaclip_v1_2_altogether",)),
    _metaclip("ViT-bigG/14-quickgelu", "metaclip_fullcc", "G14_fullcc2.5b.pt",
              "5fe2b83c7439e0caa2c855dec9a2eaa54f17f3ced288218564b640ca7953447f", _FULLCC),
    _hub("ViT-H/14", "laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    _hub("ViT-H/14-quickgelu", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14", resize_mode="squash"),
    _hub("ViT-H/14-378-quickgelu", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14-378", resize_mode="squash"),
    _hub("ViT-g/14", "laion2b_s12b_b42k", "laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
    _hub("ViT-g/14", "laion2b_s34b_b88k", "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
    _hub("ViT-bigG/14", "laion2b_s39b_b160k", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),

    Pretrained(
        name="tiny-emoji", tag="v2", activation="quick_gelu", url=None,
        sha256="70c0c1cb795c3e3ddd2dbd8afca9064f41cffdcc0b6667e49a70c164a854e8cf",
        licence="see weights/README.md", source="gem_lite", mean=None, std=None, size=None,
    ),
    Pretrained(
        name="tiny-emoji", tag="v1", activation="quick_gelu", url=None,
        sha256="f1a8851cc618a2e5c942f50e24f241efc76aaf97288bc2a2946b671732e750d3",
        licence="see weights/README.md", source="gem_lite", mean=None, std=None, size=None,
    ),
)
# fmt: on
