"""Settings: `interlock.toml` in the project, overridden by `INTERLOCK_*` variables; read once, then frozen."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from interlock.base.errors import InvalidSpec
from interlock.base.files import read_text
from interlock.base.wording import in_words

SETTINGS_FILE = "interlock.toml"

_PREFIX = "INTERLOCK_"
_OTHER_VARIABLES = frozenset({"INTERLOCK_URL", "INTERLOCK_API_KEY", "INTERLOCK_DEBUG"})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    """Connection to PostgreSQL. Without a URL, a server is started in the project's data directory.

    Attributes:
        url: `postgresql://user:password@host/name`. If that user owns the schema or is a superuser, Interlock migrates with
            it and then connects as `interlock_app`, a role that cannot switch row-level security off.
        pool_size: connections of one process.
    """

    url: str | None = None
    pool_size: int = Field(default=8, ge=2, le=200)


class ProviderSettings(_Section):
    """A model provider of the worker that reads these settings.

    Attributes:
        base_url: its address, such as `https://host/v1`. The key is sent to this address only.
        dialect: protocol that it speaks.
        key: environment variable of the worker with its API key; None for a provider without keys.
    """

    base_url: str = Field(pattern=r"^https?://")
    dialect: Literal["openai", "anthropic"] = "openai"
    key: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")


def _provider_name(name: str) -> str:
    if name == "local" or not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", name):
        raise ValueError("a provider's name is lower-case letters, digits, _ and -, and not local")
    return name


class NetworkSettings(_Section):
    """Connections of Interlock itself: to providers, the webhook and the collector; not those of tools.

    Attributes:
        private: names, addresses and networks that may be reached although they are not public, such as `vllm.internal` or
            `10.1.0.0/16`. An address or `localhost` that is written in the setting's own URL need not be here.
    """

    private: tuple[str, ...] = ()


class ServerSettings(_Section):
    """The HTTP API.

    Attributes:
        followers: event streams of runs that one process serves at once; more are refused with 429.
        followers_per_org: the same, of one organisation.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=7420, ge=0, le=65535)
    followers: int = Field(default=500, ge=1, le=100_000)
    followers_per_org: int = Field(default=100, ge=1, le=100_000)


class LimitSettings(_Section):
    """Limits on input.

    Attributes:
        payload_bytes: largest request body and largest single value, in bytes; larger ones are refused (10 MiB).
    """

    payload_bytes: int = Field(default=10 * 1024 * 1024, ge=1024)


class WorkerSettings(_Section):
    """One worker process.

    Attributes:
        concurrency: runs driven concurrently.
        lease_seconds: time after which other workers take over the runs of a silent worker.
    """

    concurrency: int = Field(default=16, ge=1, le=1000)
    lease_seconds: float = Field(default=15.0, ge=1.0)


class TelemetrySettings(_Section):
    """Attributes:
    otlp_endpoint: base URL of an OTLP/HTTP collector; spans are stored in PostgreSQL in any case.
    log_level: of the JSON log.
    """

    otlp_endpoint: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class GuardSettings(_Section):
    """Attributes:
    on_injection: reaction to an input in which the scanner finds a prompt injection.
    """

    on_injection: Literal["flag", "block"] = "flag"


class EventSettings(_Section):
    """Attributes:
    webhook: URL that receives run and review events from the outbox, at least once each.
    """

    webhook: str | None = None


class SandboxSettings(_Section):
    """Attributes:
    warm: sandboxes started in advance for each recently used tool.
    """

    warm: int = Field(default=2, ge=0, le=64)


class BreakerSettings(_Section):
    """Circuit breakers of tools and providers.

    Attributes:
        failures: consecutive failures that open a breaker.
        window_seconds: time within which those failures must happen.
        open_seconds: time without calls.
        probes: trial calls admitted afterwards, for all workers together; all must succeed.
    """

    failures: int = Field(default=5, ge=1, le=1000)
    window_seconds: float = Field(default=60.0, gt=0, le=86400)
    open_seconds: float = Field(default=60.0, gt=0, le=86400)
    probes: int = Field(default=3, ge=1, le=100)


class TemporalSettings(_Section):
    """The server of the Temporal engine; used by workers with `engine = "temporal"`.

    Attributes:
        address: host:port of its frontend.
        tls: use TLS, and never an unencrypted connection.
        tls_ca: PEM file with the authority that signed the server's certificate; without one, the system's authorities.
        tls_cert, tls_key: PEM files of the client certificate (mTLS) and its key, without a password.
        tls_server_name: the name in the server's certificate, if it differs from the address's host.
            Files are named relative to the project.
        versioned: pins runs to the worker version on which they started; needs a server with worker deployments (1.29.1). New
            runs go to the build set by `temporal worker deployment set-current-version`; workers log their build.
        cached_runs: runs whose state a worker keeps between steps. With 0 each step replays its run's history; needed for a
            server that does not move such a run away from a worker that has ended (the test server).
        history_events, history_bytes: length at which a run's history is restarted (continue-as-new); the server's own
            limits are 51,200 events and 50 MiB.
    """

    address: str = "127.0.0.1:7233"
    namespace: str = "default"
    task_queue: str = "interlock"
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = Field(default=None, min_length=1)
    versioned: bool = True
    cached_runs: int = Field(default=1000, ge=0, le=100_000)
    history_events: int = Field(default=4000, ge=20, le=40_000)
    history_bytes: int = Field(default=2 * 1024 * 1024, ge=64 * 1024, le=40 * 1024 * 1024)


class ReviewSettings(_Section):
    """Reviews.

    Attributes:
        self_approval: True if a person may approve their own request: a run they started, or whose dead letter they
            requeued. None means no, except in `interlock dev` and in commands that open a project without a server, with a
            database on the same machine; `interlock demo` always allows it.
        approval_ttl: seconds for which an approval is valid.
    """

    self_approval: bool | None = None
    approval_ttl: int = Field(default=86400, ge=1, le=366 * 86400)


class BatchSettings(_Section):
    """Model calls that go through a batch API.

    Attributes:
        gather_seconds: time for which a call waits for others to be submitted with it.
        check_seconds, max_check_seconds: bounds of the interval between two status checks of a batch; the interval is a
            quarter of the batch's age.
    """

    gather_seconds: float = Field(default=30.0, gt=0, le=86400)
    check_seconds: float = Field(default=15.0, gt=0, le=86400)
    max_check_seconds: float = Field(default=900.0, gt=0, le=86400)


class Settings(BaseSettings):
    """Configuration. Unknown keys are refused.

    Attributes:
        models: alias → `PROVIDER:MODEL`, or `local:NAME` for weights on this host. The steps of a workflow name aliases.
        providers: address and key of each provider by name; `openai` and `anthropic` are known and can be replaced.
            Versions name providers only, so a developer who deploys one cannot have a key sent to another address.
        engine: engine of new runs, and of the runs that a worker drives; a run ends on the engine on which it started.
        data_dir: state of this installation, relative to the project.
        variables: values of `${name}` in definitions, for what differs between installations, such as a host and port.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    name: str = "interlock"
    engine: Literal["postgres", "temporal"] = "postgres"
    data_dir: Path = Path(".interlock")
    models: dict[str, str] = Field(default_factory=lambda: {"default": "local:smollm2-135m-instruct-q4_1"})
    providers: dict[Annotated[str, AfterValidator(_provider_name)], ProviderSettings] = Field(default_factory=dict)
    network: NetworkSettings = NetworkSettings()
    variables: dict[str, str] = Field(default_factory=dict)
    database: DatabaseSettings = DatabaseSettings()
    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    worker: WorkerSettings = WorkerSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    guard: GuardSettings = GuardSettings()
    events: EventSettings = EventSettings()
    sandbox: SandboxSettings = SandboxSettings()
    temporal: TemporalSettings = TemporalSettings()
    breaker: BreakerSettings = BreakerSettings()
    batch: BatchSettings = BatchSettings()
    review: ReviewSettings = ReviewSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment overrides the file, so a deployment can override the repository.
        return (env_settings, init_settings)


class _GivenSettings(Settings):
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  the library's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def given_settings(values: Mapping[str, Any]) -> Settings:
    """These settings and defaults, regardless of the environment: for a private installation, such as that of a chaos run."""
    return _GivenSettings(**values)


def on_own_machine(settings: Settings) -> Settings:
    """Settings of a process for one person, who may approve their own requests if the database is on the same host.

    What `review.self_approval` is set to stays.
    """
    url = settings.database.url
    local = url is None or urlsplit(url).hostname in {None, "localhost", "127.0.0.1", "::1"}
    if not local or settings.review.self_approval is not None:
        return settings
    return settings.model_copy(update={"review": settings.review.model_copy(update={"self_approval": True})})


def load_settings(project: Path) -> Settings:
    """Reads `interlock.toml` of a project directory (absent is fine) and the environment.

    Raises:
        InvalidSpec: the file is not TOML, or a key or value is not known; names file, key and correction.
    """
    path = project / SETTINGS_FILE
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(read_text(path))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSpec(f"{path}: not valid TOML: {error}") from error
        except OSError as error:
            raise InvalidSpec(f"{path}: cannot be read: {error.strerror}") from error
        for key in values:
            if key.startswith("_"):  # pydantic-settings would interpret it as one of its own options
                raise InvalidSpec(f'{path}: setting "{key}" is not accepted: remove it or check the spelling')
    try:
        settings = Settings(**values)
    except SettingsError as error:
        raise InvalidSpec(f"environment: {error}; write JSON, or set one key with INTERLOCK_SECTION__KEY") from error
    except ValidationError as error:
        raise InvalidSpec(_refused(path, error.errors()[0])) from error
    if not settings.data_dir.is_absolute():
        settings = settings.model_copy(update={"data_dir": (project / settings.data_dir).resolve()})
    named = {name: getattr(settings.temporal, name) for name in ("tls_ca", "tls_cert", "tls_key")}
    files = {name: (project / path).resolve() for name, path in named.items() if path is not None}
    return settings.model_copy(update={"temporal": settings.temporal.model_copy(update=files)}) if files else settings


def _refused(path: Path, fault: ErrorDetails) -> str:
    """The fault with its place: the variable if one sets the key, else the file."""
    key = ".".join(str(part) for part in fault["loc"])
    mend = "remove it or check the spelling" if fault["type"] == "extra_forbidden" else in_words(fault)
    given = {name.upper(): name for name in os.environ}
    for length in range(len(fault["loc"]), 0, -1):
        variable = _PREFIX + "__".join(str(part) for part in fault["loc"][:length]).upper()
        if variable in given:
            return f'environment variable {given[variable]}: setting "{key}" is not accepted: {mend}'
    return f'{path}: setting "{key}" is not accepted: {mend}'


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each `INTERLOCK_*` variable that sets nothing, such as a misspelt one."""
    keys = {f"{_PREFIX}{name}".upper() for name in Settings.model_fields}
    for variable in sorted(environment):
        name = variable.upper()
        if not name.startswith(_PREFIX) or name in _OTHER_VARIABLES or name.split("__")[0] in keys:
            continue
        first, separator, rest = name.partition("__")
        known = [one.removeprefix(_PREFIX) for one in sorted(keys | _OTHER_VARIABLES)]
        near = difflib.get_close_matches(first.removeprefix(_PREFIX), known, n=1)
        mend = (
            f"write {_PREFIX}{near[0]}{separator}{rest}" if near else "remove it; docs/operations.md lists the settings"
        )
        yield f"environment variable {variable} is not a setting and has no effect; {mend}"
