"""``workbench COMMAND``: what can be asked, and the exit code of each way it can end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from workbench.cli.commands import COMMANDS, run_all
from workbench.cli.serve import DEFAULT_PORT, serve

EXIT_CODES = """exit codes:
  0  done
  1  a job failed; the message says what to do next
  2  the command, a project or a file of it is not as it must be
  3  done, but the target was missed or the exported files disagree
  4  another job is at work in the project
  130  interrupted; what was finished is kept"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="workbench",
        description="Make a neural network small without losing its accuracy.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="open the workbench in the browser"))
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.add_argument(
            "project",
            nargs="+",
            help="project folder, or the name of an example, a .pt2 or .onnx file, a folder of "
            "transformers, package.module:factory (their project is runs/NAME)",
        )
        one.add_argument(
            "--project",
            dest="folder",
            metavar="FOLDER",
            help="keep all in this folder instead of runs/NAME",
        )
        one.add_argument(
            "--arguments", metavar="JSON", default="", help='of the factory, as {"width": 32}'
        )
        one.add_argument(
            "--weights",
            metavar="FILE",
            default="",
            help="of the factory's model: .safetensors, or a state dict",
        )
        one.add_argument(
            "--data",
            help="an .npz file, or a folder of pictures with a sub-folder for each class; a "
            "project keeps it",
        )
        one.add_argument("--train-data", metavar="DATA", help="data to train with, as --data")
        _add_pictures(one)
        one.add_argument("--metric", help="top1, top5, psnr, cosine or package.module:function")
        one.add_argument(
            "--json", action="store_true", help="one line of JSON a project instead of words"
        )
        _allow_code(one)
        for option in command.options:
            option.add_to(one)
    for one in commands.choices.values():
        one.set_defaults(parser=one)
    return top


def _add_serve(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--port", type=_port, default=None, help=f"default {DEFAULT_PORT}, or a free one if taken"
    )
    one.add_argument("--address", default="127.0.0.1", help="default: this machine only")
    one.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="further name that browsers reach the server by (may be repeated)",
    )
    one.add_argument("--password", help="ask for this password; or set WORKBENCH_PASSWORD")
    one.add_argument("--home", help="folder of the projects (also: WORKBENCH_HOME)")
    _allow_code(one)
    one.add_argument("--no-browser", action="store_true", help="do not open the page")


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; allowed: 1 to 65535")
    return int(text)


def _add_pictures(one: argparse.ArgumentParser) -> None:
    """How a folder of pictures is read."""
    for name, words in (
        ("resize", "of the shorter side of each picture"),
        ("crop", "side of the square cut out of the middle"),
    ):
        one.add_argument(f"--{name}", type=int, default=0, metavar="PIXELS", help=words)
    for name in ("mean", "std"):
        one.add_argument(
            f"--{name}",
            help="of the channels, as 0.485,0.456,0.406; or none (default: ImageNet's for 3 "
            "channels)",
        )


def _allow_code(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--allow-code",
        action="store_true",
        help="load Python code that a project or a page names (also: WORKBENCH_ALLOW_CODE=1)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Source: chapter 70 section 6."""
    given, unknown = parser().parse_known_args(arguments)
    if unknown:  # said with the options of this command, not with the list of commands
        given.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if given.allow_code:
        os.environ["WORKBENCH_ALLOW_CODE"] = "1"
    if given.command != "serve":
        # Results would come in the locale's language, between English lines.
        os.environ["WORKBENCH_LANGUAGE"] = "en"
        return run_all(given)
    if given.home:
        os.environ["WORKBENCH_HOME"] = given.home
    return serve(
        port=given.port,
        address=given.address,
        origins=given.allow_origin,
        password=given.password or os.environ.get("WORKBENCH_PASSWORD"),
        browser=not given.no_browser,
    )


if __name__ == "__main__":
    sys.exit(main())
