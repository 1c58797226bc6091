"""The effective settings: defaults, file, flags, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine import (
    GIB,
    MIB,
    EngineSettings,
    L2Settings,
    Liveness,
    PrefetchSettings,
    QuotaSettings,
    RecordingSettings,
    ScrubSettings,
    TenantQuota,
    l2_types,
)
from service import assets
from service.access import Policy
from service.commands import show_config
from service.problems import DEFAULT, ConfigError, Origin, dotted
from service.schema import check, is_secret, load_schema
from service.settings import HttpSettings, LogSettings, Override, Setting, Settings, load_settings

SCHEMA = load_schema(assets.schema_path())


@pytest.fixture
def load(tmp_path: Path):
    def load(text: str, *overrides: Override, environ: dict[str, str] | None = None) -> Settings:
        file = tmp_path / "f.yaml"
        file.write_text(text)
        try:
            return load_settings(SCHEMA, str(file), overrides, environ or {})
        except ConfigError as error:
            lines = [str(problem).replace(str(file), "f.yaml") for problem in error.problems]
            raise ConfigError([]) from Exception(*lines)

    return load


@pytest.fixture
def refuse(load):
    def refuse(text: str, *overrides: Override) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        assert caught.value.__cause__ is not None
        return list(caught.value.__cause__.args)

    return refuse


def origins(settings: Settings) -> dict[str, str]:
    return {".".join(str(part) for part in each.path): each.origin.label for each in settings.listing}


def test_without_a_file_everything_is_at_the_engines_own_defaults() -> None:
    settings = load_settings(SCHEMA, None, (), {})
    assert settings.engine == EngineSettings()
    assert settings.http == HttpSettings("127.0.0.1", 8080, 4)
    assert settings.log == LogSettings()
    assert {each.origin.label for each in settings.listing} == {"default"}


def test_every_setting_can_be_given_in_the_file(load, tmp_path: Path) -> None:
    settings = load(
        """
        server: {host: 0.0.0.0, port: 1, chunk_size: 16, hash_algorithm: blake3, worker_timeout: 1,
                 registration_grace: 2, session_ttl: 3, lease_ttl: 4, reservation_ttl: 5, transfer_max_age: 6.5,
                 flag_reconnects: false, drain_timeout: 0.5}
        http: {host: localhost, port: 2, threads: 3, tokens: [], allow_unauthenticated: true, open_probes: false,
               open_metrics: true}
        log: {level: debug, format: human}
        l1: {size: 1.5GiB, max_size: 2GiB, eviction_policy: LRU, huge_pages: try, verify: true,
             pin_budget: 1MiB}
        quotas: {default_limit: 1GiB, tenants: [{cache_salt: a, limit: 2MiB, reservation: 1MiB}]}
        advisor: {enabled: false}
        recording: {enabled: true, folder: traces, max_file_size: 2MiB, max_files: 3}
        l2: []
        """
    )
    liveness = Liveness(1, 2, 3, 4, 5, 6.5, False)
    quotas = QuotaSettings(GIB, (TenantQuota("a", 2 * MIB, MIB),))
    engine = EngineSettings(
        "0.0.0.0", 1, 16, "blake3", liveness, 3 * GIB // 2, 2 * GIB, "lru", (), 0.5, "try", MIB, quotas
    )
    recording = RecordingSettings(True, str(tmp_path / "traces"), 2 * MIB, 3)
    assert settings.engine == replace(engine, advisor_enabled=False, recording=recording, l1_verify=True)
    assert settings.http == HttpSettings("localhost", 2, 3, (), True, False, True)
    assert settings.http.policy == Policy((), True, False, True)
    assert settings.log == LogSettings("debug", "human")


def test_a_tier_is_what_its_entry_says_and_its_types_defaults(load, tmp_path: Path) -> None:
    disk, memory = load(
        """
        l2:
          - {type: filesystem, name: nvme, path: kv, capacity: 2GiB, store_policy: write_back, required: true,
             threads: 2, prefetch: {mode: wait, cap_ms: 100}, scrub: {enabled: true, rate: 1GiB}}
          - {type: memory}
        """
    ).engine.l2
    options = {"path": str(tmp_path / "kv"), "capacity": 2 * GIB, "keep_free": GIB, "fsync": False, "direct": False}
    assert {name: disk.options[name] for name in options} == options
    prefetch, scrub = PrefetchSettings("wait", cap_ms=100), ScrubSettings(True, 168, GIB)
    assert replace(disk, options={}) == L2Settings(
        "filesystem", "nvme", store_policy="write_back", prefetch=prefetch, required=True, threads=2, scrub=scrub
    )
    assert memory == L2Settings("memory", "memory", {"capacity": None})


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(load) -> None:
    settings = load(
        "server:\n  port: 1\n  chunk_size: ${CHUNK}\n",
        Override("--port", "server", "port", 2),
        Override("--l1-size-gb", "l1", "size", 2 * GIB),
        Override("--eviction-policy", "l1", "eviction_policy", "LrU"),
        environ={"CHUNK": "64"},
    )
    assert (settings.engine.port, settings.engine.chunk_size, settings.engine.l1_size) == (2, 64, 2 * GIB)
    assert settings.engine.eviction_policy == "lru"
    found = origins(settings)
    assert found["server.port"] == "flag --port"
    assert found["l1.size"] == "flag --l1-size-gb"
    assert found["server.chunk_size"].startswith("environment CHUNK (")
    assert found["server.host"] == "default"


def test_the_origin_of_a_value_in_the_file_is_its_line(load, tmp_path: Path) -> None:
    assert origins(load("http:\n\n  port: 9\n"))["http.port"] == f"{tmp_path}/f.yaml:3"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sever: {}", 'f.yaml:1: sever = {}: unknown key, did you mean "server"?'),
        ("server:\n  Port: 5", 'f.yaml:2: server.Port = 5: unknown key, did you mean "port"?'),
        (
            "http:\n  zzz: 5",
            "f.yaml:2: http.zzz = 5: unknown key, the keys here are host, port, threads, tokens, "
            "allow_unauthenticated, open_probes, open_metrics",
        ),
        ("server: {port: http}", "f.yaml:1: server.port = http: must be a whole number"),
        ("server: {port: 70000}", "f.yaml:1: server.port = 70000: must be at most 65535"),
        ("server: {port: -1}", "f.yaml:1: server.port = -1: must be at least 0"),
        ("server: {port: true}", "f.yaml:1: server.port = true: must be a whole number"),
        ("server: {chunk_size: 0}", "f.yaml:1: server.chunk_size = 0: must be at least 1"),
        ("server: {chunk_size: 256.0}", "f.yaml:1: server.chunk_size = 256.0: must be a whole number"),
        ("server: {hash_algorithm: sha256}", "f.yaml:1: server.hash_algorithm = sha256: is not one of blake3"),
        ("server: {lease_ttl: 0}", "f.yaml:1: server.lease_ttl = 0: must be more than 0"),
        ("server: {lease_ttl: .inf}", "f.yaml:1: server.lease_ttl = Infinity: must be a number"),
        ("server: {lease_ttl: .nan}", "f.yaml:1: server.lease_ttl = NaN: must be a number"),
        ("server: {flag_reconnects: 1}", "f.yaml:1: server.flag_reconnects = 1: must be true or false"),
        ("server: {host: ''}", 'f.yaml:1: server.host = "": must not be empty'),
        ("http: {threads: 65}", "f.yaml:1: http.threads = 65: must be at most 64"),
        (
            "l1: {eviction_policy: lrx}",
            "f.yaml:1: l1.eviction_policy = lrx: is not one of arc, fifo, hit_density, lru, s3fifo, did you mean "
            '"lru"?',
        ),
        ("l1:", "f.yaml:1: l1 = null: must be a mapping of keys"),
        (
                "l1: {size: 4}",
                "f.yaml:1: l1.size = 4: must be at least 1048576, or written like 4GiB, 512MiB, 1.5GiB, 4294967296",
            ),
        ("l1: {size: 4gb}", "f.yaml:1: l1.size = 4gb: must be written like 4GiB, 512MiB, 1.5GiB, 4294967296"),
        ("l1: {size: 1KiB}", "f.yaml:1: l1.size = 1KiB: must be at least 1MiB"),
        ("l1: {max_size: 512MiB}", "f.yaml:1: l1.max_size = 512MiB: must be at least l1.size"),
        ("l1: {size: 2GiB, max_size: 1GiB}", "f.yaml:1: l1.max_size = 1GiB: must be at least l1.size"),
        ("l1: {max_size: 1KiB}", "f.yaml:1: l1.max_size = 1KiB: must be at least 1MiB"),
        ("recording: {max_file_size: 1KiB}", "f.yaml:1: recording.max_file_size = 1KiB: must be at least 1MiB"),
        ("recording: {enabled: true}", "f.yaml:1: recording.enabled = true: needs recording.folder"),
        ("recording: {enabled: true, folder: }", "f.yaml:1: recording.enabled = true: needs recording.folder"),
        ("l1: {size: 1.5}", "f.yaml:1: l1.size = 1.5: must be a whole number or text"),
        ("l2: [{type: fs}]", f"f.yaml:1: l2[0].type = fs: is not one of {', '.join(l2_types())}"),
        ("l2: [{type: filesystem}]", "f.yaml:1: l2[0] = a mapping: needs the key path"),
        (
            "l2:\n  - type: filesystem\n    pth: /x\n    path: /x",
            'f.yaml:3: l2[0].pth = /x: unknown key, did you mean "path"?',
        ),
        (
            "l2: [{type: memory}, {type: memory}]",
            "f.yaml:1: l2[1].type = memory: l2[0] is called 'memory' too; give each a name of its own",
        ),
        (
            "l2: [{type: memory, prefetch: {mod: wait}}]",
            'f.yaml:1: l2[0].prefetch.mod = wait: unknown key, did you mean "mode"?',
        ),
        ("l2: [{type: memory, scrub: {rate: 1KiB}}]", "f.yaml:1: l2[0].scrub.rate = 1KiB: must be at least 1MiB"),
        (
            "l2: [{type: memory, scrub: {every_hours: 0}}]",
            "f.yaml:1: l2[0].scrub.every_hours = 0: must be at least 0.001",
        ),
        ("l2: [{path: /x}]", "f.yaml:1: l2[0] = a mapping: needs the key type"),
        (
            "l2: [{type: valkey}]",
            "f.yaml:1: l2[0].type = valkey: needs either url, for a single server, or nodes, for a cluster",
        ),
        (
            "l2: [{type: valkey, url: 'valkey://h', nodes: ['h:1']}]",
            "f.yaml:1: l2[0].type = valkey: needs either url, for a single server, or nodes, for a cluster",
        ),
        ("l2: [{type: valkey, nodes: ['h:1'], capacity: 1GiB}]", "f.yaml:1: l2[0].capacity = 1GiB: must be null"),
        ("l2: {}", "f.yaml:1: l2 = {}: must be a list"),
        ("[]", "f.yaml:1: []: must be a mapping of keys"),
        ("just text", "f.yaml:1: just text: must be a mapping of keys"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_file_line_path_and_value(refuse, text: str, problem: str) -> None:
    assert refuse(text) == [problem]


def test_a_client_library_that_is_not_installed_is_named_with_its_extra(
    refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.l2.find_spec", {"valkey": object()}.get)
    assert refuse("l2: [{type: s3, bucket: b-1}, {type: valkey, nodes: ['h:1']}, {type: memory}]") == [
        "f.yaml:1: l2[0].type = s3: needs the package obstore: pip install 'kvkeep[s3]'"
    ]


def test_all_problems_of_a_file_are_reported_at_once(refuse) -> None:
    text = """\
server:
  port: x
  port: 1
  hots: a
http:
  threads: ${N}
l1:
  size: 1B
  sise: 2
l2:
  - type: s3
"""
    assert sorted(refuse(text)) == [
        "f.yaml:11: l2[0] = a mapping: needs the key bucket",
        "f.yaml:2: server.port = x: must be a whole number",
        "f.yaml:3: server.port: is given twice, first at f.yaml:2",
        'f.yaml:4: server.hots = a: unknown key, did you mean "host"?',
        "f.yaml:6: http.threads: the environment variable N is not set",
        "f.yaml:8: l1.size = 1B: must be at least 1MiB",
        'f.yaml:9: l1.sise = 2: unknown key, did you mean "size"?',
    ]


def test_a_wrong_flag_is_named_as_such(refuse) -> None:
    assert refuse("", Override("--port", "server", "port", 99999)) == [
        "flag --port: server.port = 99999: must be at most 65535"
    ]


def test_a_flag_for_a_section_that_is_no_section_leaves_the_files_problem(refuse) -> None:
    assert refuse("server: 5", Override("--port", "server", "port", 1)) == [
        "f.yaml:1: server = 5: must be a mapping of keys"
    ]


def test_a_file_that_is_not_there_is_one_problem() -> None:
    with pytest.raises(ConfigError, match=r"^/not/there\.yaml: cannot be read: No such file or directory$"):
        load_settings(SCHEMA, "/not/there.yaml", (), {})


def test_the_smallest_l1_is_a_mebibyte(load) -> None:
    assert load("l1: {size: 1MiB}").engine.l1_size == MIB


SECRET = "geheim-7"
HIDDEN = [
    ("log: {format: '${S}'}", "f.yaml:1: log.format = ${S}: is not one of auto, human, json"),
    ("log: {level: 'x${S}'}", "f.yaml:1: log.level = x${S}: is not one of debug, info, warning, error"),
    ("server:\n  port: ${S}", "f.yaml:2: server.port = ${S}: must be a whole number"),
    ("server: {pasword: '${S}'}", "f.yaml:1: server.pasword = ${S}: unknown key, the keys here are host"),
    ("server: '${S}'", "f.yaml:1: server = ${S}: must be a mapping of keys"),
    ("l1: {size: '${S}'}", "f.yaml:1: l1.size = ${S}: must be written like"),
    ("l1: {size: '${SIZE}'}", "f.yaml:1: l1.size = ${SIZE}: must be at least 1MiB"),
    (
        "l1: {eviction_policy: '${S}'}",
        "f.yaml:1: l1.eviction_policy = ${S}: is not one of arc, fifo, hit_density, lru, s3fifo",
    ),
    ("l2: [{type: '${S}'}]", "f.yaml:1: l2[0].type = ${S}: is not one of filesystem,"),
    ("l2: ['${S}']", "f.yaml:1: l2[0] = ${S}: must be a mapping of keys"),
    ("${S}", "f.yaml:1: ${S}: must be a mapping of keys"),
    ("http:\n  port: ${INT}", "f.yaml:2: http.port: ${INT} cannot be read as the kind of value that it looks like"),
    ("http: {port: '${}', host: '${S}'}", "f.yaml:1: http.port: ${} does not name an environment variable"),
]


@pytest.mark.parametrize(("text", "problem"), HIDDEN)
def test_a_value_from_the_environment_is_named_by_its_variable(load, text: str, problem: str) -> None:
    environ = {"S": SECRET, "SIZE": "77B", "INT": "0b_"}
    with pytest.raises(ConfigError) as caught:
        load(text, environ=environ)
    told = caught.value.__cause__
    assert told is not None
    assert told.args[0].startswith(problem)
    assert [value for value in (SECRET, "77B", "0b_") if value in str(told.args)] == []


def test_no_rule_of_the_schema_quotes_a_value_that_is_not_to_be_shown(load) -> None:
    """Also those that no message here was written for: the library's own quote the value and what is around it."""
    rules = {"maxLength": 1, "const": "x", "not": {"type": "string"}, "oneOf": [{"const": 1}], "minLength": 99}
    for rule, argument in rules.items():
        schema = {"type": "object", "properties": {"a": {"type": "string", rule: argument}}}
        [problem] = check(schema, {"a": SECRET}, {("a",): Origin("environment S (f:1)", "f:1", "${S}")})
        assert str(problem).startswith("f:1: a = ${S}: must ")
    schema = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    [problem] = check(schema, {"a": [SECRET, SECRET]}, {("a",): Origin("f:1", "f:1")})
    assert str(problem) == "f:1: a = a list: must fit the rule uniqueItems: true"


def test_what_the_schema_calls_secret_is_not_shown(load) -> None:
    key = {"type": "string", "pattern": "^[a-z]+$", "examples": ["abc"], "x-secret": True}
    schema = {"properties": {"a": {"properties": {"key": key, "keys": {"items": key}}}}}
    problems = check(schema, {"a": {"key": SECRET, "keys": [SECRET]}}, {})
    assert [str(problem) for problem in problems] == [
        "a.key = ***: must be written like abc",
        "a.keys[0] = ***: must be written like abc",
    ]


def test_the_listing_masks_what_is_secret_or_from_the_environment(load) -> None:
    settings = load("http:\n  host: '${S}'\nserver:\n  host: x${S}\n  port: ${P}\n", environ={"S": SECRET, "P": "7"})
    shown = {dotted(each.path): each.masked_value for each in settings.listing}
    assert (shown["http.host"], shown["server.host"], shown["server.port"]) == ("***", "***", "***")
    assert (shown["http.port"], shown["http.tokens"], shown["l2"]) == (8080, [], [])
    assert SECRET not in "\n".join(show_config(SCHEMA, settings))
    assert Setting(("a",), SECRET, DEFAULT, is_secret=True).masked_value == "***"
    assert SECRET not in repr(settings.listing)


def test_a_secret_key_is_known_by_the_nearest_thing_that_is_marked() -> None:
    assert is_secret(SCHEMA, ("http", "tokens"))
    assert is_secret(SCHEMA, ("http", "tokens", 0, "whatever"))
    assert not is_secret(SCHEMA, ("http", "tokens", 0, "file"))
    assert not is_secret(SCHEMA, ("http", "host"))
