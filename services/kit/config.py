"""Configuration from the environment. Every service's `config.py` subclasses `ServiceConfig`; a variable is called
`PAYMESH_<SERVICE>_<FIELD>`. All mistakes are reported at once, each with the variable's name, and nothing starts."""

from __future__ import annotations

import sys
from collections.abc import Set as AbstractSet
from typing import Literal, NoReturn, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings

S = TypeVar("S", bound=BaseSettings)


class ServiceConfig(BaseSettings):
    """What every service needs to know."""

    listen: str = Field(pattern=r"^[^\s]+:\d+$")
    """Address of the gRPC server, "host:port"."""
    metrics_listen: str = Field(default="", pattern=r"^([^\s]+:\d+)?$")
    """Address of the Prometheus page, "host:port"; empty for none."""
    database_dsn: str = Field(min_length=1)
    """The service's own database, with the role that it works under."""
    migration_dsn: str = ""
    """The same database with the role that owns its tables, where that is another one: it brings the schema up to date
    and grants the working role what it needs, which for history is to read and to append. Where migrations are applied
    by somebody else, no process needs it. Empty: the working role owns the tables."""
    database_pool_size: int = Field(default=12, ge=4, le=200)
    """Connections at most. Sets in flight and background loops together use fewer, so that nobody waits for one."""
    concurrent_rpcs_max: int = Field(default=12_000, ge=1)
    """Calls in progress at most; what comes on top is shed with RESOURCE_EXHAUSTED. Above the 10,000 waiting callers
    that the mesh is tested with, below what fills the memory."""
    drain_seconds: float = Field(default=10.0, ge=0, le=300)
    """Time that calls in progress are given when the process is asked to stop."""
    connection_grace_seconds: float = Field(default=60.0, ge=1)
    """How long a call may outlive its connection's age of five minutes. Longer only where calls take longer."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class EventsConfig(ServiceConfig):
    """What a service needs that announces events, or listens to others'."""

    valkey_url: str = Field(default="", pattern=r"^((valkey|valkeys|redis|rediss|unix)://.+)?$")
    """The bus, for example "redis://:password@127.0.0.1:6379/0". Empty: there is none; events are given their positions
    all the same, and listeners ask for them twice a second."""
    events_keep_days: int = Field(default=0, ge=0, le=36_500)
    """How long announced events are kept for those who ask for them; 0: for ever. A listener that was away for longer
    needs a person."""


def load(config_type: type[S], service: str, part: str = "") -> S:
    """Read the configuration of `service`, or of one `part` of it that has settings of its own; on mistakes print them
    all and exit with code 2."""
    prefix = f"PAYMESH_{service.upper()}_{part.upper()}{'_' if part else ''}"
    try:
        return config_type(_env_prefix=prefix)
    except ValidationError as error:
        secrets = {name for name, field in config_type.model_fields.items() if field.annotation is SecretStr}
        _complain(service, prefix, error, secrets)


def cannot_run(service: str, why: str) -> NoReturn:
    """Complain about settings that are well formed and cannot be right, and exit with code 2."""
    print(f"{service}: {why}", file=sys.stderr)
    sys.exit(2)


def _complain(service: str, prefix: str, error: ValidationError, secrets: AbstractSet[str]) -> NoReturn:
    print(f"{service}: the configuration has {error.error_count()} mistake(s):", file=sys.stderr)
    for mistake in error.errors():
        variable = prefix + "_".join(str(part) for part in mistake["loc"]).upper()
        shown = mistake["type"] != "missing" and mistake["loc"][0] not in secrets
        given = f" (it is {mistake['input']!r})" if shown else ""
        print(f"  {variable}: {mistake['msg']}{given}", file=sys.stderr)
    sys.exit(2)
