"""Models named by a repository of the hub or a folder, and fine-tuned files of others."""

import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import (
    SMALL,
    hugging_face_config,
    state_of,
    write_hugging_face,
    write_open_clip,
)
from torch import Tensor, nn

import gem_lite
from gem_lite.checkpoints import hub, known, open_clip, transfer
from gem_lite.checkpoints.fetch import FetchError
from gem_lite.checkpoints.hub import named_folder
from gem_lite.checkpoints.known import fetch_source, known_row
from gem_lite.checkpoints.others import read_source
from gem_lite.method.config import ARCHITECTURES

STATE = state_of()
TOKEN = "hf_secretOfATest"


def model_cfg(**changes: Any) -> dict[str, Any]:
    """What open_clip_config.json says of the small model."""
    image, text = SMALL.image, SMALL.text
    vision_cfg = {
        "image_size": image.size,
        "patch_size": image.patch,
        "width": image.width,
        "layers": image.layers,
        "head_width": image.width // image.heads,
        "mlp_ratio": image.mlp_width / image.width,
    }
    text_cfg = {
        "context_length": text.context,
        "vocab_size": text.vocab,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": text.mlp_width / text.width,
    }
    vision_cfg |= changes.pop("vision_cfg", {})
    text_cfg |= changes.pop("text_cfg", {})
    content = {"embed_dim": SMALL.embed, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    return content | {"quick_gelu": True} | changes


@pytest.fixture(autouse=True)
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_clip, "VOCABULARY", SMALL.text.vocab)


def open_clip_folder(folder: Path, **changes: Any) -> Path:
    """A folder as open_clip pushes it to the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    write_open_clip(STATE, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1.0], "resize_mode": "shortest"}
    content = {"model_cfg": model_cfg(**changes), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder


def assert_loads(model: gem_lite.GEMPredictor) -> None:
    state = model.network.state_dict()
    assert set(state) == set(STATE)
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


# ------------------------------------------------------------------------ open_clip_config


def test_local_folder(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "a")
    assert named_folder(f"local-dir:{folder}") == folder
    model = gem_lite.create_gem_model("mine", folder)
    assert_loads(model)
    assert model.network.config == SMALL
    assert (model.header.mean, model.header.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))


def test_activation_that_is_absent_is_gelu(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, quick_gelu=None)
    content = json.loads((folder / "open_clip_config.json").read_text())
    del content["model_cfg"]["quick_gelu"]
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    assert gem_lite.create_gem_model("mine", folder).network.config.activation == "gelu"
    with pytest.raises(ValueError, match=r"open_clip_config\.json: gelu; the argument: quick_gelu"):
        gem_lite.create_gem_model("mine", folder, activation="quick_gelu")


def test_fields_without_effect_are_taken(tmp_path: Path) -> None:
    folder = open_clip_folder(
        tmp_path,
        vision_cfg={"patch_dropout": 0.5, "output_tokens": True, "image_size": [32, 32]},
        text_cfg={"eos_id": 49407},
        custom_text=True,
        init_logit_scale=2.6,
    )
    assert read_source(folder).config == SMALL


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vision_cfg": {"attentional_pool": True}}, "vision_cfg.attentional_pool is True"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type is 'avg'"),
        ({"vision_cfg": {"pool_type": "none"}}, "vision_cfg.pool_type is 'none'"),
        ({"vision_cfg": {"global_average_pool": True}}, "vision_cfg.global_average_pool"),
        ({"vision_cfg": {"reg_tokens": 4}}, "vision_cfg.reg_tokens is 4"),
        ({"vision_cfg": {"ls_init_value": 1e-5}}, "vision_cfg.ls_init_value is 1e-05"),
        ({"vision_cfg": {"no_ln_pre": True}}, "vision_cfg.no_ln_pre is True"),
        ({"vision_cfg": {"timm_model_name": "x"}}, "vision_cfg.timm_model_name is 'x'"),
        ({"vision_cfg": {"pos_embed_type": "sin_cos_2d"}}, "vision_cfg.pos_embed_type"),
        ({"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "vision_cfg.norm_kwargs"),
        ({"vision_cfg": {"unheard_of": 1}}, "vision_cfg.unheard_of is 1"),
        ({"text_cfg": {"hf_model_name": "roberta"}}, "text_cfg.hf_model_name is 'roberta'"),
        ({"text_cfg": {"hf_tokenizer_name": "t5"}}, "text_cfg.hf_tokenizer_name is 't5'"),
        ({"text_cfg": {"tokenizer_kwargs": {"clean": "x"}}}, "text_cfg.tokenizer_kwargs"),
        ({"text_cfg": {"pool_type": "last"}}, "text_cfg.pool_type is 'last'"),
        ({"text_cfg": {"embed_cls": True}}, "text_cfg.embed_cls is True"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask is True"),
        ({"text_cfg": {"proj_type": "none"}}, "text_cfg.proj_type is 'none'"),
        ({"text_cfg": {"proj_bias": True}}, "text_cfg.proj_bias is True"),
        ({"text_cfg": {"vocab_size": 32000}}, "text_cfg.vocab_size is 32000, that of another"),
        ({"multimodal_cfg": {"width": 3}}, "multimodal_cfg is"),
        ({"init_logit_bias": -10}, "init_logit_bias is -10"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, r"layers is \[3, 4, 6, 3\]"),
        ({"vision_cfg": {"image_size": [32, 64]}}, r"image_size is \[32, 64\]"),
        ({"vision_cfg": {"width": 2**40}}, "width is 1099511627776"),
        ({"vision_cfg": {"mlp_ratio": 1e308}}, r"mlp_ratio is 1e\+308"),
        ({"vision_cfg": {"head_width": 48, "width": 99}}, "width 99, heads 2"),
        ({"embed_dim": "48"}, "embed_dim is '48'"),
        ({"embed_dim": True}, "embed_dim is True"),
    ],
)
def test_what_cannot_be_run_exactly_is_refused_by_its_field(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    folder = open_clip_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{field}"):
        gem_lite.create_gem_model("mine", folder)


def test_config_of_another_model_than_the_weights(tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path, vision_cfg={"layers": 3})
    with pytest.raises(ValueError, match=r"missing visual\.transformer\.resblocks\.2\.ln_1\."):
        gem_lite.create_gem_model("mine", folder)


# ------------------------------------------------------------------------------- the hub


class Server(http.server.ThreadingHTTPServer):
    """Files by path; redirects; and what each request had for a token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.private = False
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.requests]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        self.server.requests.append((self.path, token))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        refused = self.server.private and token != f"Bearer {TOKEN}"
        content = None if refused else self.server.files.get(self.path)
        self.send_response(401 if refused else 404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """The hub, and another host to which it may redirect."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Server() as ours, Server() as other:
        threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,)) for server in (ours, other)
        ]
        for thread in threads:
            thread.start()
        for module in (hub, transfer):
            monkeypatch.setattr(module, "HUB", ours.url)
        plain = hub.download
        monkeypatch.setattr(
            hub, "download", lambda *a, **options: plain(*a, **options, allow_http=True)
        )
        yield ours, other
        for server in (ours, other):
            server.shutdown()
        for thread in threads:
            thread.join()


def serve(server: Server, folder: Path, repository: str = "org/model", at: str = "main") -> None:
    for path in folder.iterdir():
        server.files[f"/{repository}/resolve/{at}/{path.name}"] = path.read_bytes()


def load(folder: Path | None) -> gem_lite.GEMPredictor:
    assert folder is not None
    return gem_lite.create_gem_model("hf-hub:org/model", folder)


def test_open_clip_repository(servers: tuple[Server, Server], tmp_path: Path) -> None:
    serve(servers[0], open_clip_folder(tmp_path / "pushed"))
    folder = named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")
    assert folder == tmp_path / "cache" / "hub" / "org--model"
    assert_loads(load(folder))
    wanted = ["open_clip_config.json", "open_clip_model.safetensors"]
    assert servers[0].paths() == wanted
    assert {token for _, token in servers[0].requests} == {None}
    # Once fetched, it needs no network.
    assert named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache") == folder
    assert servers[0].paths() == wanted


def test_repository_without_safetensors(servers: tuple[Server, Server], tmp_path: Path) -> None:
    pushed = open_clip_folder(tmp_path / "pushed")
    (pushed / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": STATE}, pushed / "open_clip_pytorch_model.bin")
    serve(servers[0], pushed)
    assert_loads(load(named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")))
    assert servers[0].paths()[-2:] == ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


def test_hugging_face_repository(servers: tuple[Server, Server], tmp_path: Path) -> None:
    pushed = write_hugging_face(STATE, tmp_path / "pushed")
    (pushed / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    serve(servers[0], pushed, at="v1.0")
    folder = named_folder("hf-hub:org/model@v1.0", cache_dir=tmp_path / "cache")
    assert folder is not None and folder.name == "org--model--v1.0"
    assert_loads(load(folder))
    assert read_source(folder).mean == (0.1, 0.2, 0.3)
    wanted = ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert servers[0].paths() == ["open_clip_config.json", *wanted]


def test_nothing_usable(servers: tuple[Server, Server], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="org/model/resolve/main has neither open_clip_config"):
        named_folder("hf-hub:org/model", cache_dir=tmp_path)


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:org", "hf-hub:org/../x", "hf-hub:org/a/b", "hf-hub:../a",
             "hf-hub:org/a?b", "hf-hub:org/a@b/c", "hf-hub:org/a@..", "hf-hub:o/" + "a" * 500],
)  # fmt: skip
def test_names_of_no_repository(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not name a repository"):
        named_folder(name, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_names_and_folders() -> None:
    assert named_folder("ViT-B/16") is None
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        named_folder("local-dir:nowhere")


# ------------------------------------------------------------------------------ the token


def test_private_repository(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(servers[0], open_clip_folder(tmp_path / "pushed"))
    servers[0].private = True
    with pytest.raises(FetchError, match=r"HTTP 401 .*private or gated repository, set HF_TOKEN"):
        named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\n")
    assert_loads(load(named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")))
    assert servers[0].requests[-1][1] == f"Bearer {TOKEN}"


def test_token_does_not_leave_the_host(
    servers: tuple[Server, Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Large files lie elsewhere; a renamed repository lies on the hub, which may be private."""
    hub_server, other = servers
    serve(hub_server, open_clip_folder(tmp_path / "pushed"), "org/new")
    hub_server.private = True
    start = "/org/model/resolve/main/"
    weights = "open_clip_model.safetensors"
    renamed = f"{hub_server.url}/org/new/resolve/main/"
    hub_server.redirects[f"{start}open_clip_config.json"] = f"{renamed}open_clip_config.json"
    hub_server.redirects[f"{start}{weights}"] = f"{other.url}/lfs/{weights}?signature=1"
    other.files[f"/lfs/{weights}?signature=1"] = hub_server.files[
        f"/org/new/resolve/main/{weights}"
    ]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with caplog.at_level(logging.DEBUG):
        assert_loads(load(named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")))
    assert [token for _, token in other.requests] == [None]
    assert {token for _, token in hub_server.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_token_does_not_come_back_after_another_host(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose name begins with the hub's is not the hub."""
    hub_server, other = servers
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(transfer, "HUB", other.url[:-1])
    with pytest.raises(FetchError):
        named_folder("hf-hub:org/model", cache_dir=tmp_path / "cache")
    assert {token for _, token in hub_server.requests} == {None}


@pytest.mark.parametrize("token", ["two words", "a\r\nHost: x", "\u00fc"])
def test_a_token_that_is_none_is_not_shown(
    servers: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(FetchError, match="HF_TOKEN is not a token") as caught:
        named_folder("hf-hub:org/model", cache_dir=tmp_path)
    assert token not in str(caught.value) and servers[0].requests == []


def test_known_rows_are_fetched_as_pickles_where_there_are_no_safetensors(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    row = known_row("ViT-B/16", "dfn2b")
    base = "DFN2B-CLIP-ViT-B-16-open_clip_pytorch_model.bin"
    servers[0].files[f"/{base}"] = b"weights"
    path = fetch_source(row, cache_dir=tmp_path, mirror=servers[0].url)
    assert path == tmp_path / base and path.read_bytes() == b"weights"
    assert known.find_file(row, cache_dir=tmp_path) == path
    with pytest.raises(FetchError, match="HTTP 404"):
        fetch_source(known_row("ViT-L/14", "dfn2b"), cache_dir=tmp_path, mirror=servers[0].url)


# -------------------------------------------------------------------------- fine-tuned files


@pytest.fixture
def small_b32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SMALL)


def remote_clip(folder: Path) -> Path:
    """RemoteCLIP and GeoRSCLIP: a bare state dict of open_clip's names."""
    torch.save(STATE, folder / "RemoteCLIP-ViT-B-32.pt")
    return folder / "RemoteCLIP-ViT-B-32.pt"


def bio_clip(folder: Path) -> Path:
    """BioCLIP: open_clip's folder, with a pickle."""
    open_clip_folder(folder)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(STATE, folder / "open_clip_pytorch_model.bin")
    return folder


def tiny_clip(folder: Path) -> Path:
    """TinyCLIP: a Hugging Face folder whose towers are small."""
    return write_hugging_face(STATE, folder, config=hugging_face_config(SMALL, "quick_gelu"))


@pytest.mark.parametrize(
    ("make", "name"), [(remote_clip, "ViT-B/32"), (bio_clip, "mine"), (tiny_clip, "mine")]
)
def test_fine_tuned_files(
    tmp_path: Path, small_b32: None, make: Callable[[Path], Path], name: str
) -> None:
    path = make(tmp_path)
    if make is remote_clip:
        with pytest.raises(ValueError, match="does not say which activation"):
            gem_lite.create_gem_model(name, path)
    activation = "quick_gelu" if make is remote_clip else None
    assert_loads(gem_lite.create_gem_model(name, path, activation=activation))


def long_clip(folder: Path, **changes: Tensor) -> Path:
    generator = torch.Generator().manual_seed(3)
    state = {
        **STATE,
        "positional_embedding": torch.randn(40, 32, generator=generator),
        "positional_embedding_res": torch.randn(40, 32, generator=generator),
        **changes,
    }
    torch.save(state, folder / "longclip-B.pt")
    return folder / "longclip-B.pt"


def test_long_clip(tmp_path: Path, small_b32: None) -> None:
    """The first 20 positions are CLIP's, the others those that were trained on long texts."""
    path = long_clip(tmp_path)
    raw = torch.load(path)
    model = gem_lite.create_gem_model("ViT-B/32-quickgelu", path)
    positions = model.network.positional_embedding
    assert positions.shape == (40, 32) and model.network.config.text.context == 40
    assert torch.equal(positions[:20], raw["positional_embedding"][:20])
    assert torch.equal(positions[20:], raw["positional_embedding_res"][20:])
    words = ["catcatcat", "catcatdog"]  # letters are tokens: longer than the small model's 16
    embeddings = model.encode_text(words)
    assert not torch.allclose(embeddings[0, 0], embeddings[0, 1])
    gem_lite.save(model, tmp_path / "ours.safetensors")
    again = gem_lite.create_gem_model("ViT-B/32", tmp_path / "ours.safetensors")
    assert torch.equal(again.network.positional_embedding, positions)
    assert torch.equal(again.encode_text(words), embeddings)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("positional_embedding_res", torch.zeros(39, 32), r"positional_embedding differ in shape"),
        ("positional_embedding_res", torch.zeros(40, 31), r"positional_embedding differ in shape"),
        ("positional_embedding", torch.zeros(0), r"positional_embedding differ in shape"),
    ],
)
def test_long_clip_that_does_not_fit(
    tmp_path: Path, small_b32: None, name: str, tensor: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32-quickgelu", long_clip(tmp_path, **{name: tensor}))


def test_long_clip_without_the_first_positions(tmp_path: Path, small_b32: None) -> None:
    state = torch.load(long_clip(tmp_path))
    del state["positional_embedding"]
    torch.save({"state_dict": {k: nn.Parameter(v) for k, v in state.items()}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="lacks the whole part of positional_embedding"):
        gem_lite.create_gem_model("ViT-B/32-quickgelu", tmp_path / "a.pt")


@pytest.mark.parametrize("layout", ["open_clip", "hugging face"])
def test_tokenizer_of_a_folder(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if layout == "open_clip":
        open_clip_folder(folder)
    else:
        write_hugging_face(STATE, folder)
    tokenizer = gem_lite.get_tokenizer(f"local-dir:{folder}")
    assert tokenizer.vocab_size == SMALL.text.vocab
    assert tokenizer("a cat").shape == (1, SMALL.text.context)
