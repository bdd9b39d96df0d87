"""The page under a crowd: how long one visitor waits beside idle, slow and busy clients.

    python benchmarks/load.py [--idle 1000] [--slow 100] [--busy 50] [--seconds 30]

Starts `gem-lite app` on a free port of 127.0.0.1 and ends it. All clients run here, none elsewhere;
at most 2,000 of them, for at most 120 s. Idle clients connect and say nothing, slow ones send a
body byte by byte, busy ones ask for maps one after the other; each comes back when it is dropped.
The visitor loads the page and asks for maps, first alone and then in the crowd.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAUSE = 0.5  # seconds before a dropped client comes back
MOST_CLIENTS, MOST_SECONDS = 2000, 120
QUESTION = {
    "model": "tiny-emoji v2",
    "example": "demo.png",
    "prompts": ["fish", "drum"],
    "background": ["background"],
}


class Crowd:
    """Clients of every kind, and what happened to them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dropped = 0
        self.answers: dict[int, int] = {}

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, float]:
        """Status and seconds of one request on a connection of its own; 0 = dropped."""
        start = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return 0, time.perf_counter() - start
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            writer.write(head.encode() + body)
            answer = await asyncio.wait_for(reader.read(-1), 120)
            status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        except (OSError, asyncio.TimeoutError):
            status = 0
        finally:
            writer.close()
        return status, time.perf_counter() - start

    async def idle(self) -> None:
        """Connects, and says nothing until it is dropped."""
        while True:
            await self._send(b"", pause=1000)

    async def slow(self) -> None:
        """Sends a body of which there is always more, a byte a second."""
        head = b"POST /api/maps HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: 20000000\r\n\r\n"
        while True:
            await self._send(head, pause=1)

    async def _send(self, head: bytes, pause: float) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(head)
            while True:
                try:
                    await asyncio.wait_for(reader.read(1 << 16), pause)
                    break  # an answer, or the end
                except asyncio.TimeoutError:
                    writer.write(b" ")
            writer.close()
        except OSError:
            pass
        self.dropped += 1
        await asyncio.sleep(PAUSE)

    async def busy(self, body: bytes) -> None:
        """Asks for maps, one after the other."""
        while True:
            status, _ = await self.ask("POST", "/api/maps", body)
            self.answers[status] = self.answers.get(status, 0) + 1
            if status != 200:
                await asyncio.sleep(PAUSE)

    async def visit(self, body: bytes, seconds: float) -> dict[str, Any]:
        """The visitor: page, then maps, until the time is up."""
        waits: dict[str, list[float]] = {"page": [], "maps": []}
        failed, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            for what, method, path, data in (
                ("page", "GET", "/page.js", b""),
                ("maps", "POST", "/api/maps", body),
            ):
                status, waited = await self.ask(method, path, data)
                failed += status != 200
                waits[what].append(waited)
            await asyncio.sleep(0.2)
        found: dict[str, Any] = {"requests": len(waits["page"]) * 2, "failed": failed}
        for what, each in waits.items():
            each.sort()
            found[f"{what}_median"] = round(each[len(each) // 2], 3)
            found[f"{what}_longest"] = round(each[-1], 3)
        return found


async def crowded(args: argparse.Namespace, port: int) -> dict[str, Any]:
    """The visitor alone, then in the crowd."""
    body = json.dumps(QUESTION).encode()
    crowd = Crowd(port)
    await crowd.ask("POST", "/api/maps", body)  # warms up
    alone = await crowd.visit(body, min(5, args.seconds))
    clients = [crowd.idle() for _ in range(args.idle)] + [crowd.slow() for _ in range(args.slow)]
    clients += [crowd.busy(body) for _ in range(args.busy)]
    tasks = [asyncio.ensure_future(client) for client in clients]
    await asyncio.sleep(2)
    inside = await crowd.visit(body, args.seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    after = await crowd.visit(body, min(5, args.seconds))
    answers = {str(status): count for status, count in sorted(crowd.answers.items())}
    return {
        "clients": {"idle": args.idle, "slow": args.slow, "busy": args.busy},
        "alone": alone,
        "in the crowd": inside,
        "afterwards": after,
        "answers to busy clients": answers,
        "times that idle and slow ones were dropped": crowd.dropped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for option, default in (("--idle", 1000), ("--slow", 100), ("--busy", 50)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--seconds", type=float, default=30)
    args = parser.parse_args()
    if not 0 <= args.idle + args.slow + args.busy <= MOST_CLIENTS:
        parser.error(f"at most {MOST_CLIENTS} clients")
    if not 0 < args.seconds <= MOST_SECONDS:
        parser.error(f"--seconds: more than 0, at most {MOST_SECONDS}")
    command = [sys.executable, "-m", "gem_lite", "app", "--port", "0", "--device", "cpu"]
    command += ["--model", "tiny-emoji", "--pretrained", "v2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline().split("/")[2].split(":")[1])
        try:
            result = asyncio.run(crowded(args, port))
            with open(f"/proc/{server.pid}/status") as status:
                peak = next(line for line in status if line.startswith("VmHWM"))
            result["server's peak memory, MB"] = int(peak.split()[1]) // 1024
        except FileNotFoundError:  # another system than Linux
            pass
        finally:
            server.terminate()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
