"""`gem-lite app`: the web page."""

import argparse
import socket
import webbrowser

from .console import say, tell
from .model import PRECISIONS, add_device_argument, chosen_device, chosen_model

HELP = "a web page to try it, on this machine"
EXAMPLES = """\
gem-lite app
gem-lite app --port 0 --open
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite app`."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 = the whole network"
        " (default: %(default)s, this machine only)",
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="0 = any free (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.add_argument(
        "--allow-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="further host names under which the page may be reached",
    )
    parser.add_argument(
        "--max-upload",
        type=float,
        default=20.0,
        metavar="MB",
        help="largest file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=float,
        default=40.0,
        metavar="MILLIONS",
        help="largest picture (default: %(default)s)",
    )
    parser.add_argument("--model", help="the first one in the menu; default: the best one here")
    parser.add_argument("--pretrained", help="tag or weight file")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C."""
    from ..app.engine import Engine
    from ..app.limits import Limits
    from ..app.server import create_app, serve

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; expected 0 to 65535")
    for option, value in (("--max-upload", args.max_upload), ("--max-pixels", args.max_pixels)):
        if not 0 < value < 1000:
            raise ValueError(f"{option} is {value:g}; expected a number above 0, below 1000")
    limits = Limits(upload_bytes=round(1e6 * args.max_upload), pixels=round(1e6 * args.max_pixels))
    names = [*args.allow_name, args.host]
    if args.host not in ("127.0.0.1", "localhost", "::1"):
        tell(f"listening on {args.host}: everybody who reaches this machine can use the page")
        names.append(socket.gethostname())
    engine = Engine(
        *chosen_model(args),
        device=chosen_device(args.device),
        precision=args.precision,
        limits=limits,
    )

    def started(address: str) -> None:
        say(f"{address} (Ctrl-C ends it)")
        if args.open:
            webbrowser.open(address)

    serve(create_app(engine, names=names), args.host, args.port, started=started)
