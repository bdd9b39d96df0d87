"""The web page over HTTP: answers, limits, requests of other sites, several people at once."""

import asyncio
import base64
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_model

import gem_lite as gem
from gem_lite.pictures.opening import open_picture
from gem_lite.tools.app.engine import Engine
from gem_lite.tools.app.limits import Limits
from gem_lite.tools.app.question import read_question
from gem_lite.tools.app.server import FILES, HERE, allowed_host, configuration, create_app, serve

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra app")
LIMITS = Limits(upload_bytes=60_000, pixels=40_000, prompts=4, letters=30, waiting=20)


@pytest.fixture(scope="module")
def engine(weights: Path) -> Engine:
    return Engine("small", str(weights), limits=LIMITS)


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with running(engine) as address:
        yield address


@contextmanager
def running(engine: Engine) -> Iterator[str]:
    """The page at an address of its own while the block runs."""
    server = uvicorn.Server(configuration(create_app(engine), port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive()
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def ask(
    address: str, body: Any, method: str = "POST", path: str = "/api/maps", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of an answer."""
    connection = HTTPConnection(address, timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body=data if method == "POST" else None, headers=named)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content), {k.lower(): v for k, v in answer.getheaders()}


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return base64.b64encode(file.getvalue()).decode()


def noise(seed: int, h: int = 40, w: int = 60) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))


def request(**changes: Any) -> dict[str, Any]:
    return {
        "model": "small random",
        "picture": encoded(noise(0)),
        "prompts": ["cat", "remote control"],
        "background": ["floor"],
        "settings": {},
        **changes,
    }


def decoded(url: str) -> np.ndarray:
    kind, _, data = url.partition(",")
    assert kind.startswith("data:image/") and kind.endswith(";base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


# ---- answers


def scores(content: dict[str, Any]) -> dict[str, np.ndarray]:
    """Each method's scores: [words, grid h, grid w]."""
    words = len(content["prompts"]) + len(content["background"])
    shape = (words, content["grid"]["height"], content["grid"]["width"])
    return {
        each["name"]: np.frombuffer(base64.b64decode(each["scores"]), "<f4").reshape(shape)
        for each in content["methods"]
    }


def test_the_answer_is_the_librarys(address: str, engine: Engine) -> None:
    """Patch scores of words and background by every method, against calls of the model itself."""
    words = ["cat", "remote control", "floor"]
    path = engine._choices["small random"][1]
    for name in (method.name for method in gem.methods()):
        status, content, _ = ask(address, request(methods=[name, "clip"][: 1 + (name != "clip")]))
        try:
            model, transform = gem.create_model_and_transforms("small", path, method=name)
            with torch.no_grad():
                expected = model(transform(noise(0))[None], words, False, size="patches")[0]
                present = model.presence(transform(noise(0))[None], words[:2])[0]
        except ValueError as error:  # a method that needs more blocks than the small model has
            assert (status, content) == (422, {"error": str(error)})
        else:
            assert status == 200
            assert np.allclose(scores(content)[name], expected, rtol=1e-4, atol=1e-5), name
            assert content["methods"][0]["presence"] == pytest.approx(present.tolist(), abs=1e-4)
    content = ask(address, request())[1]
    assert list(scores(content)) == ["gem", "clip"]
    shown = decoded(content["picture"]).astype(int)
    assert np.abs(shown.mean() - np.asarray(noise(0)).mean()) < 3
    assert content["prompts"] == words[:2] and content["background"] == words[2:]
    assert content["size"] == {"width": 60, "height": 40} and content["seconds"] > 0


def test_settings_change_the_maps_and_defaults_do_not(address: str) -> None:
    first = scores(ask(address, request())[1])
    same = {"depth": 3, "iterations": 1, "temperature": "adaptive"}
    for settings, equal in (
        (same, True),
        ({"depth": 4}, False),
        ({"iterations": 3}, False),
        ({"temperature": 90}, False),
    ):
        other = scores(ask(address, request(settings=settings))[1])
        assert (other["gem"] == first["gem"]).all() == equal, settings
        assert (other["clip"] == first["clip"]).all()
    plain = scores(ask(address, request(settings={"depth": 1}))[1])
    assert (plain["gem"] == plain["clip"]).all()


def test_an_example_and_what_the_page_starts_with(address: str) -> None:
    about = ask(address, None, "GET", "/api/about")[1]
    small = about["models"][0]
    assert small == {
        "name": "small random", "layers": 3, "depth": 3, "iterations": 1, "temperature": None,
        "drawings": False,
    }  # fmt: skip
    assert {"tiny-emoji v1"} <= {model["name"] for model in about["models"] if model["drawings"]}
    assert [method["name"] for method in about["methods"]] == [each.name for each in gem.methods()]
    assert len(about["colours"]) == 256 and about["limits"]["prompts"] == 4
    names = ["demo-photo.jpg", "demo.png", "demo-2.png", "demo-3.png"]
    assert [example["name"] for example in about["examples"]] == names
    for example in about["examples"]:
        assert decoded(example["picture"]).shape[2] == 3
        assert example["drawing"] == (example["name"] != "demo-photo.jpg")
        status, content, _ = ask(
            address, request(picture=None, example=example["name"], prompts=example["prompts"])
        )
        assert status == 200 and content["prompts"] == example["prompts"]


def test_a_photograph_is_no_example_for_drawings(engine: Engine) -> None:
    drawings = Engine.__new__(Engine)
    drawings.limits, drawings._choices = LIMITS, {"tiny-emoji v1": ("tiny-emoji", "v1")}
    drawings._about = {name: engine._about[name] for name in drawings._choices}
    assert all(example["drawing"] for example in drawings.about()["examples"])


def test_another_model(address: str) -> None:
    status, content, _ = ask(address, request(model="tiny-emoji v1"))
    assert status == 200 and content["model"] == "tiny-emoji v1"
    assert content["methods"] != ask(address, request())[1]["methods"]


def test_words_are_tidied(address: str) -> None:
    content = ask(address, request(prompts=["  a   cat ", "", "a cat", "\u202edog", "🐈"]))[1]
    assert content["prompts"] == ["a cat", "\u202edog", "🐈"]


def test_a_phones_picture_stands_upright(address: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (60, 40), "blue")
    picture.paste("red", (0, 0, 10, 40))  # at the left, which is then the top
    content = ask(address, request(picture=encoded(picture, "JPEG", exif=exif)))[1]
    assert content["size"] == {"width": 40, "height": 60}
    shown = decoded(content["picture"]).astype(int)
    assert shown[3, 20, 0] > 200 and shown[50, 20, 2] > 200


# ---- what is refused

TEXT = base64.b64encode(b"This is no picture.").decode()
WRONG: dict[str, tuple[dict[str, Any], int, str]] = {
    "a text": ({"picture": TEXT}, 422, "the file"),
    "cut": ({"picture": encoded(noise(0))[:2000]}, 422, "cannot be read as a picture"),
    "no base64": ({"picture": "%%%"}, 422, "not base64"),
    "a number": ({"picture": 7}, 422, "not base64"),
    "many pixels": ({"picture": encoded(Image.new("1", (400, 400)))}, 422, "at most 0.04 million"),
    "too large": ({"picture": "A" * 80_004}, 422, "more than 0.06 MB"),
    "much too large": ({"picture": "A" * 300_000}, 413, "more than 0.06 MB"),
    "no picture": ({"picture": None}, 422, "choose a picture"),
    "a path": ({"picture": None, "example": "../README.md"}, 422, "choose a picture"),
    "no words": ({"prompts": []}, 422, "at least one word"),
    "blank words": ({"prompts": [" ", "\t"]}, 422, "at least one word"),
    "one string": ({"prompts": "cat"}, 422, "not a list of strings"),
    "numbers": ({"prompts": [1]}, 422, "not a list of strings"),
    "many words": ({"prompts": list("abcde")}, 422, "at most 4"),
    "a long word": ({"prompts": ["a" * 31]}, 422, "at most 30"),
    "background": ({"background": list("abcde")}, 422, "at most 4"),
    "model": ({"model": "../../etc/passwd"}, 422, "no model"),
    "depth": ({"settings": {"depth": 5}}, 422, "from 1 to 4"),
    "depth text": ({"settings": {"depth": "4"}}, 422, "from 1 to 4"),
    "iterations": ({"settings": {"iterations": 1000000}}, 422, "from 0 to 8"),
    "temperature": ({"settings": {"temperature": -1}}, 422, "above 0"),
    "temperature nan": ({"settings": {"temperature": float("nan")}}, 422, "above 0"),
    "methods": ({"methods": ["gem", "clip", "sclip"]}, 422, "one or two methods"),
    "method": ({"methods": [{"gem": 1}]}, 422, "one or two methods"),
    "settings": ({"settings": []}, 422, "settings are not a JSON object"),
}


@pytest.mark.parametrize(("changes", "status", "message"), WRONG.values(), ids=WRONG)
def test_wrong_requests(address: str, changes: dict[str, Any], status: int, message: str) -> None:
    found, content, _ = ask(address, request(**changes))
    assert (found, list(content)) == (status, ["error"]) and message in content["error"]
    assert ask(address, request())[0] == 200  # and the page goes on


def test_half_a_letter_in_a_word(address: str) -> None:
    """JSON can hold a lone surrogate, which no UTF-8 can."""
    status, content, _ = ask(address, request(prompts=["\ud800", "cat\udfff"]))
    assert status == 200 and content["prompts"][0] == "\ud800"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"\xff\xfe", 400), (b"[" * 90_000, 400), (b"[1]", 422)],
    ids=["empty", "open", "bytes", "deep", "list"],
)
def test_bodies_that_are_no_request(address: str, body: bytes, status: int) -> None:
    found, content, _ = ask(address, body)
    assert found == status and list(content) == ["error"]


def test_a_body_without_a_length_is_bounded(address: str) -> None:
    connection = HTTPConnection(address, timeout=120)
    pieces = (b"A" * 10_000 for _ in range(200))
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    try:
        connection.request("POST", "/api/maps", pieces, headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # refused while we were still sending
    finally:
        connection.close()


# ---- other sites


def test_other_sites_cannot_use_it(address: str) -> None:
    good = request()
    for headers, status in (
        ({}, 200),
        ({"Origin": f"http://{address}"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost:1234"}, 200),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "multipart/form-data"}, 415),
    ):
        assert ask(address, good, **headers)[0] == status, headers
    assert ask(address, None, "GET", "/api/about", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(address, None, "GET", "/api/about", Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:80", True), ("localhost", True), ("LOCALHOST:1", True), ("[::1]:80", True),
        ("192.168.0.7:7860", True), ("mine.example:1", True), ("evil.example", False),
        ("127.0.0.1.evil.example", False), ("", False), ("localhost.evil", False),
    ],
)  # fmt: skip
def test_hosts(host: str, expected: bool) -> None:
    assert allowed_host(host, ["Mine.example"]) is expected


def test_headers_and_files(address: str) -> None:
    for path, (name, kind) in FILES.items():
        with urllib.request.urlopen(f"http://{address}{path}", timeout=120) as answer:
            assert answer.read() == (HERE / name).read_bytes()
            assert answer.headers["content-type"] == kind
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"
    for path in ("/../engine.py", "/engine.py", "/%2e%2e/engine.py", "/api/maps"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{address}{path}", timeout=120)
        assert caught.value.code in (404, 405)


def test_the_page_names_no_other_server() -> None:
    for name, _ in FILES.values():
        text = (HERE / name).read_text(encoding="utf-8")
        without = text.replace("http://www.w3.org/2000/svg", "")  # a namespace, not an address
        assert "http:" not in without and "https:" not in without and "//cdn" not in without, name


# ---- several people


def test_people_do_not_mix(address: str) -> None:
    """Twelve at once, each with another picture and other words, get what each gets alone."""
    bodies = [
        request(picture=encoded(noise(seed)), prompts=[f"thing {seed}", "cat"])
        for seed in range(12)
    ]
    alone = [ask(address, body)[1] for body in bodies]
    together: list[Any] = [None] * len(bodies)

    def one(index: int) -> None:
        together[index] = ask(address, bodies[index])[1]

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one_alone, one_together in zip(alone, together, strict=True):
        assert {**one_alone, "seconds": 0} == {**one_together, "seconds": 0}
    assert len({json.dumps(each["methods"]) for each in alone}) == len(alone)


def test_a_crowd_is_turned_away(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at work, few waiting, and a clear answer for the rest."""
    from starlette.testclient import TestClient

    release, started = threading.Event(), threading.Semaphore(0)

    def slow(question: Any) -> dict[str, Any]:
        started.release()
        release.wait(20)
        return {}

    crowded = Engine.__new__(Engine)
    crowded.limits = Limits(waiting=1)
    monkeypatch.setattr(crowded, "answer", slow, raising=False)
    client = TestClient(create_app(crowded, names=["testserver"]), base_url="http://127.0.0.1")
    body = request()
    with client:
        threads = [
            threading.Thread(target=client.post, args=("/api/maps",), kwargs={"json": body})
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert started.acquire(timeout=10)
        time.sleep(0.3)  # for the other one to stand in the line
        answer = client.post("/api/maps", json=body)
        assert answer.status_code == 503 and "too many" in answer.json()["error"]
        release.set()
        for thread in threads:
            thread.join()
        assert client.post("/api/maps", json=body).status_code == 200


def test_a_fault_of_ours_is_no_page_of_code(
    engine: Engine, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(question: Any) -> None:
        raise MemoryError("secret")

    monkeypatch.setattr(engine, "answer", broken)
    status, content, _ = ask(address, request())
    assert status == 500 and "secret" not in content["error"]


def test_models_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    gem.save(small_model(), path)
    engine = Engine("small", str(path), limits=LIMITS)
    engine._choices |= {f"copy {i}": ("small", str(path)) for i in range(4)}
    question = read_question(request(), LIMITS)
    for name in ("copy 0", "copy 1", "copy 2", "small random"):
        assert engine.answer(question._replace(model=name))["model"] == "small random"
        assert len(engine._loaded) <= 2


def test_only_known_formats_are_opened(tmp_path: Path) -> None:
    """Pillow hands EPS to another program; here it is no picture."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(ValueError, match="is not a picture"):
        open_picture(path)


def test_what_is_written_is_sent_at_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay of small packets is off: asyncio sees to it, on sockets that it knows for TCP's."""
    delays: list[int] = []

    def answer(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        async def connect() -> None:
            served = await asyncio.start_server(note, sock=sockets[0])
            async with served:
                _, writer = await asyncio.open_connection(*sockets[0].getsockname())
                await noted.wait()
                writer.close()

        async def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            delays.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            noted.set()
            writer.close()

        noted = asyncio.Event()
        asyncio.run(connect())

    monkeypatch.setattr(uvicorn.Server, "run", answer)
    serve(create_app(engine), "127.0.0.1", 0, started=lambda address: None)
    assert delays == [1]
