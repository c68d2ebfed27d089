"""Settings: the file, the environment over it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings, given_settings, load_settings, on_own_machine, unknown_variables


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "interlock.toml"


def _refused(project: Path) -> str:
    with pytest.raises(InvalidSpec) as caught:
        load_settings(project)
    return caught.value.message.replace(f"{project}/", "")


def test_defaults_without_a_file(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.server.host == "127.0.0.1", "nobody outside reaches a server nobody configured"
    assert settings.limits.payload_bytes == 10 * 1024 * 1024
    assert settings.data_dir == tmp_path / ".interlock"


def test_the_file(tmp_path: Path, write: Path) -> None:
    write.write_text(
        'name = "shop"\ndata_dir = "/var/lib/interlock"\n[server]\nport = 1\n[models]\nfast = "openai:x"\n'
        '[variables]\nbank = "bank:443"\n'
    )
    settings = load_settings(tmp_path)
    assert (settings.name, settings.server.port, settings.models) == ("shop", 1, {"fast": "openai:x"})
    assert (settings.data_dir, settings.variables) == (Path("/var/lib/interlock"), {"bank": "bank:443"})
    assert settings.server.host == "127.0.0.1", "what the file leaves out keeps its default"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sever = 1", 'interlock.toml: setting "sever" is not accepted: remove it or check the spelling'),
        (
            "[server]\nprot = 1",
            'interlock.toml: setting "server.prot" is not accepted: remove it or check the spelling',
        ),
        (
            "[server]\nport = 'x'",
            'interlock.toml: setting "server.port" is not accepted: is "x" (a string); must be a whole number',
        ),
        (
            "[server]\nport = 70000",
            'interlock.toml: setting "server.port" is not accepted: is 70000; must be at most 65535',
        ),
        ("server = 5", 'interlock.toml: setting "server" is not accepted: is 5 (a number); must be an object'),
        ("server = 'pw'", 'interlock.toml: setting "server" is not accepted: is a string; must be an object'),
        (
            "[models]\nfast = 5",
            'interlock.toml: setting "models.fast" is not accepted: is 5 (a number); must be a string',
        ),
        (
            "[telemetry]\nlog_level = 'loud'",
            'interlock.toml: setting "telemetry.log_level" is not accepted: is "loud" (a string); must be \'debug\', ',
        ),
        (
            "[worker]\nlease_seconds = 0",
            'interlock.toml: setting "worker.lease_seconds" is not accepted: is 0; must be at least 1',
        ),
        # what pydantic-settings would take for options of its own
        ("_env_prefix = 'X'", 'interlock.toml: setting "_env_prefix" is not accepted: remove it or check the spelling'),
        ("_cli_parse_args = true", 'interlock.toml: setting "_cli_parse_args" is not accepted: remove it'),
        ("[server", "interlock.toml: not valid TOML: Expected ']'"),
        ("a = 1\na = 2", "interlock.toml: not valid TOML: Cannot overwrite a value"),
        ("a = ", "interlock.toml: not valid TOML: Invalid value"),
    ],
)
def test_what_is_refused(tmp_path: Path, write: Path, text: str, complaint: str) -> None:
    write.write_text(text)
    assert _refused(tmp_path).startswith(complaint)


def test_files_that_cannot_be_read(tmp_path: Path, write: Path) -> None:
    write.write_bytes(b"name = '\xff'")
    assert _refused(tmp_path).startswith("interlock.toml: not valid TOML: 'utf-8' codec")
    write.unlink()
    write.mkdir()
    assert _refused(tmp_path) == "interlock.toml: cannot be read: Is a directory"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("INTERLOCK_SERVER__PORT", "6", lambda settings: settings.server.port == 6),
        ("interlock_server__port", "6", lambda settings: settings.server.port == 6),
        ("INTERLOCK_SERVER", '{"port": 6}', lambda settings: settings.server.port == 6),
        ("INTERLOCK_NAME", "env", lambda settings: settings.name == "env"),
        ("INTERLOCK_MODELS", '{"big": "openai:y"}', lambda settings: settings.models.get("big") == "openai:y"),
        ("INTERLOCK_MODELS__BIG", "openai:y", lambda settings: settings.models.get("big") == "openai:y"),
        ("INTERLOCK_VARIABLES__BANK", "b:1", lambda settings: settings.variables["bank"] == "b:1"),
        ("INTERLOCK_DATABASE__URL", "postgresql://h/x", lambda settings: settings.database.url == "postgresql://h/x"),
    ],
)
def test_the_environment_beats_the_file(
    tmp_path: Path, write: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object
) -> None:
    write.write_text(
        'name = "file"\n[server]\nhost = "h"\nport = 5\n[models]\nfast = "openai:x"\n[variables]\nbank = "f:1"\n'
        '[database]\nurl = "postgresql://f/x"\n'
    )
    assert not read(load_settings(tmp_path))  # type: ignore[operator]
    monkeypatch.setenv(name, value)
    settings = load_settings(tmp_path)
    assert read(settings)  # type: ignore[operator]
    assert settings.server.host == "h", "and leaves the rest of the file alone"
    assert settings.models["fast"] == "openai:x"


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        (
            "INTERLOCK_SERVER__PORT",
            "many",
            'environment variable INTERLOCK_SERVER__PORT: setting "server.port" is not accepted: is "many" (a string); must be',
        ),
        (
            "interlock_server__prot",
            "1",
            'environment variable interlock_server__prot: setting "server.prot" is not accepted: remove it or check',
        ),
        ("INTERLOCK_MODELS", "{bad", 'error parsing value for field "models"'),
        ("INTERLOCK_MODELS", "[]", 'environment variable INTERLOCK_MODELS: setting "models" is not accepted'),
        (
            "INTERLOCK_SERVER",
            '{"port": "x"}',
            'environment variable INTERLOCK_SERVER: setting "server.port" is not accepted',
        ),
        ("INTERLOCK_SERVER", "5", 'setting "server" is not accepted'),
    ],
)
def test_a_wrong_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(name, value)
    assert complaint in _refused(tmp_path)


def test_the_file_is_blamed_for_what_stands_in_the_file(
    tmp_path: Path, write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.write_text("[server]\nport = 'x'")
    monkeypatch.setenv("INTERLOCK_SERVER__HOST", "h")
    assert _refused(tmp_path).startswith('interlock.toml: setting "server.port"')


def test_variables_that_set_nothing_are_named() -> None:
    environment = {
        "INTERLOCK_SERVR__PORT": "1",
        "interlock_colour": "1",
        "INTERLOCK_APIKEY": "k",
        **dict.fromkeys(
            ("INTERLOCK_SERVER__PORT", "interlock_data_dir", "INTERLOCK_URL", "INTERLOCK_API_KEY", "PATH"), "1"
        ),
    }
    assert list(unknown_variables(environment)) == [
        "environment variable INTERLOCK_APIKEY is not a setting and has no effect; write INTERLOCK_API_KEY",
        "environment variable INTERLOCK_SERVR__PORT is not a setting and has no effect; write INTERLOCK_SERVER__PORT",
        "environment variable interlock_colour is not a setting and has no effect; remove it; docs/operations.md lists"
        " the settings",
    ]


def test_given_settings_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data directory decides about the master key: a chaos run and its workers must have the same one."""
    monkeypatch.setenv("INTERLOCK_DATA_DIR", "/exported")
    monkeypatch.setenv("INTERLOCK_MODELS", '{"default": "openai:exported"}')
    monkeypatch.setenv("INTERLOCK_WORKER__CONCURRENCY", "3")
    settings = given_settings({"data_dir": "/private", "models": {"default": "openai:fake"}})
    assert settings.data_dir == Path("/private")
    assert settings.models == {"default": "openai:fake"}
    assert settings.worker.concurrency == 16


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.name = "other"
    with pytest.raises(ValidationError):
        settings.server.port = 1


@pytest.mark.parametrize(
    ("url", "given", "allowed"),
    [
        (None, {}, True),
        ("postgresql:///interlock?host=/run/pg", {}, True),
        ("postgresql://me@localhost/interlock", {}, True),
        ("postgresql://me@127.0.0.1:5432/interlock", {}, True),
        ("postgresql://me@db.example.com/interlock", {}, False),
        (None, {"self_approval": False}, False),
        ("postgresql://me@db.example.com/interlock", {"self_approval": True}, True),
    ],
)
def test_who_may_approve_on_their_own_machine(url: str | None, given: dict[str, bool], allowed: bool) -> None:
    settings = Settings.model_validate({"database": {"url": url}, "review": given})
    assert settings.review.self_approval is given.get("self_approval")
    assert bool(on_own_machine(settings).review.self_approval) is allowed
