"""The command line: what kvkeep can be told, and how it explains itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from engine import OPTIMAL
from service import __version__
from service.settings import Override, gibibytes
from service.simulate.options import ALL, DEFAULT_SIZES, Simulation, expand, parse_policy, parse_size

_OVERVIEW = """\
A KV-cache server for LLM inference: engines such as vLLM load the attention KV of prompts seen before
instead of computing it again."""

_OVERVIEW_EXAMPLES = """\
Without a command kvkeep serves: `kvkeep --port 0` is `kvkeep serve --port 0`.

examples:
  kvkeep                                      serve on loopback with 1 GiB of memory
  kvkeep --config kvkeep.yaml --l1-size-gb 8  serve as the file says, with 8 GiB
  kvkeep check-config kvkeep.yaml             is the file right, and if not, where
  kvkeep show-config --config kvkeep.yaml     every setting, and where its value comes from
  kvkeep simulate trace.jsonl                 what other policies and sizes would make of recorded requests
  kvkeep serve --help                         the flags
"""

_SERVE_EXAMPLES = """\
A flag wins over the file, the file over the default. config/default.yaml lists every setting.
The line `kvkeep ready tcp://HOST:PORT http://HOST:PORT` on standard output says that engines are served.

examples:
  kvkeep serve
  kvkeep serve --config kvkeep.yaml
  kvkeep serve --host 0.0.0.0 --port 5555 --l1-size-gb 64 --eviction-policy LRU
  kvkeep serve --port 0 --http-port 0         free ports, told by the ready line

A signal ends it in order: running transfers may end first (server.drain_timeout); a second signal ends that wait.
SIGHUP, or a change of the file, applies its settings that can change live. If another one differs, or the file is
wrong, nothing is applied, and the log says why.

exit codes: 0 stopped by a signal, 1 could not listen, or the engine failed or did not stop,
            2 configuration or API document refused
"""

_CHECK_EXAMPLES = """\
Prints `FILE: ok`, or one line for each problem: file, line, setting, value, and what is wrong with it.

example:
  kvkeep check-config kvkeep.yaml

exit codes: 0 the file is right, 2 it is not
"""

_SHOW_EXAMPLES = """\
Takes the flags of serve and prints what would be in force.

examples:
  kvkeep show-config
  kvkeep show-config --config kvkeep.yaml --port 6000
"""

_SIMULATE_EXAMPLES = """\
Every request of a trace is served by the server's own code for eviction, with a cache that is empty at first: its hit
is its longest prefix of blocks that is there, then all its blocks are stored. A table for each trace, or with --json a
line for each trace, policy and size, tells which part of all blocks was hit, and which of all bytes.

A trace has one JSON object a line, in the Mooncake format: timestamp (ms), input_length and output_length (tokens),
hash_ids (one id a block; equal ids mean equal prompts up to there), and block_size (512 tokens where it is absent). The
last block of a request has what is left of its input_length. Traces that end in .gz are decompressed.

examples:
  kvkeep simulate trace.jsonl
  kvkeep simulate trace.jsonl --policy lru hit_density --size 5% 20000
  kvkeep simulate monday.jsonl tuesday.jsonl --plot hits.png
  kvkeep simulate trace.jsonl --policy all --json > hits.jsonl

exit codes: 0 done, 2 an argument or a trace refused, or the picture cannot be made, 130 interrupted
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Arguments:
    """One parsed command line."""

    command: str
    """`serve`, `check-config`, `show-config` or `simulate`."""
    file: str | None
    """The configuration file, if one was named."""
    overrides: tuple[Override, ...]
    simulation: Simulation | None = None
    """What `simulate` is asked for."""


@dataclass(frozen=True, slots=True)
class _Flag:
    name: str
    section: str
    setting: str
    convert: type[int] | type[str] | None
    metavar: str
    help: str


_FLAGS = (
    _Flag("--host", "server", "host", str, "ADDRESS", "address of the data plane (server.host)"),
    _Flag("--port", "server", "port", int, "PORT", "port of the data plane, 0 for a free one (server.port)"),
    _Flag("--chunk-size", "server", "chunk_size", int, "TOKENS", "tokens per chunk (server.chunk_size)"),
    _Flag("--l1-size-gb", "l1", "size", None, "GIB", "memory for cached chunks in GiB, such as 0.5 or 64 (l1.size)"),
    _Flag(
        "--eviction-policy",
        "l1",
        "eviction_policy",
        str,
        "NAME",
        "who leaves when L1 is full, in any case, such as lru",
    ),
    _Flag("--http-host", "http", "host", str, "ADDRESS", "address of the HTTP API (http.host)"),
    _Flag("--http-port", "http", "port", int, "PORT", "port of the HTTP API, 0 for a free one (http.port)"),
)


def parse(argv: Sequence[str]) -> Arguments:
    """The command line's meaning. Prints and exits for --help, --version and what cannot be parsed."""
    names = vars(_parser().parse_args(_with_command(argv)))
    given = (
        Override(flag.name, flag.section, flag.setting, names[flag.name])
        for flag in _FLAGS
        if names.get(flag.name) is not None
    )
    simulation = _simulation(names) if names["command"] == "simulate" else None
    return Arguments(names["command"], names.get("file"), tuple(given), simulation)


def _simulation(names: Mapping[str, Any]) -> Simulation:
    return Simulation(
        traces=tuple(dict.fromkeys(names["traces"])),
        policies=expand(names["policies"] or [ALL]),
        sizes=tuple(dict.fromkeys(names["sizes"] or map(parse_size, DEFAULT_SIZES))),
        as_json=names["as_json"],
        plot=names["plot"],
    )


def _with_command(argv: Sequence[str]) -> list[str]:
    """The bare form means serve."""
    own = {"-h", "--help", "--version"}
    bare = not argv or (argv[0].startswith("-") and argv[0] not in own)
    return ["serve", *argv] if bare else list(argv)


def _parser() -> argparse.ArgumentParser:
    parser = _described(argparse.ArgumentParser, _OVERVIEW, _OVERVIEW_EXAMPLES, prog="kvkeep")
    parser.add_argument("--version", action="version", version=f"kvkeep {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    serve = _described(commands.add_parser, "Start the server.", _SERVE_EXAMPLES, name="serve", help="start the server")
    _add_flags(serve)
    title = "Check a configuration file without starting anything."
    checker = _described(commands.add_parser, title, _CHECK_EXAMPLES, name="check-config", help="check a file")
    checker.add_argument("file", metavar="FILE", help="the YAML file to check")
    title = "Print every setting with its effective value and where that comes from."
    _add_flags(_described(commands.add_parser, title, _SHOW_EXAMPLES, name="show-config", help="print the settings"))
    title = "Tell which part of recorded requests would have been in the cache, by eviction policy and size."
    simulate = _described(commands.add_parser, title, _SIMULATE_EXAMPLES, name="simulate", help="replay a trace")
    _add_simulation(simulate)
    return parser


def _described(
    make: Callable[..., argparse.ArgumentParser], description: str, epilog: str, **names: str
) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    return make(description=description, epilog=epilog, formatter_class=raw, allow_abbrev=False, **names)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", dest="file", metavar="FILE", help="the YAML file with the settings")
    for flag in _FLAGS:
        convert = flag.convert or _gibibytes
        parser.add_argument(flag.name, dest=flag.name, type=convert, metavar=flag.metavar, help=flag.help)


def _add_simulation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", metavar="TRACE", nargs="+", help="a file of requests")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    policy, size = _reasoned(parse_policy), _reasoned(parse_size)
    help = f"a policy of the server, {OPTIMAL} for the best that is possible, {ALL} for all of these ({ALL})"
    parser.add_argument("--policy", dest="policies", metavar="NAME", type=policy, help=help, **several)
    sizes = ", ".join(DEFAULT_SIZES).replace("%", "%%")
    help = f"size of the cache in blocks, or in %% of a trace's unique blocks ({sizes})"
    parser.add_argument("--size", dest="sizes", metavar="SIZE", type=size, help=help, **several)
    parser.add_argument("--json", dest="as_json", action="store_true", help="one JSON object a line, and no table")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the hit ratios too (needs kvkeep[plot])")


def _reasoned(convert: Callable[[str], T]) -> Callable[[str], T]:
    """Has argparse say what a ValueError says."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def _gibibytes(text: str) -> int:
    try:
        return gibibytes(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of GiB, such as 0.5 or 64") from None
