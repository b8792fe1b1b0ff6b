"""The mesh as data: which processes there are, where they listen, what each must be told.

Everything here is pure; `supervisor` makes it run.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BASE_PORT = 7100
LOOPBACK = "127.0.0.1"
# 20 apart, because the first replica's 7110 would be the bank's.
REPLICA_STRIDE = 20
REPLICAS_MAX = 5
METRICS_OFFSET = 200
POSTGRES_OFFSET = 32
VALKEY_OFFSET = 79

SHARED_VARIABLES = ("PAYMESH_TRACE_FILE",)
"""Of ours, those that every process gets."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Service:
    """One kind of process."""

    name: str
    """Also the name of its database, its role and, upper case, of its variables."""
    module: str
    """Run as `python -m`."""
    port_offset: int
    """Its port is the base port plus this."""
    calls: tuple[str, ...] = ()
    """The services it calls; it is told where they are."""
    hears: tuple[str, ...] = ()
    """Those whose events it reacts to; it is told where they are, too, but they need not be there before it."""
    uses_valkey: bool = False
    seals: bool = False
    """Whether it keeps an audit trail (see `trail`), and so may not change its own history (`databases`)."""
    speaks_http: bool = False
    """Answers HTTP, and /healthz when it serves; the others answer gRPC and its health service."""
    short: tuple[str, ...] = ()
    """Settings that a user may also set without the service's name: PAYMESH_PROCESSOR for PAYMESH_PAYMENT_PROCESSOR."""
    secrets: tuple[str, ...] = ()
    """Settings that are passwords; each is made once and kept in the data folder."""
    settings: tuple[tuple[str, str], ...] = ()
    """Further settings that a mesh on one machine needs."""


BANK = Service(name="bank", module="sandbox.bank", port_offset=10)
INVENTORY = Service(
    name="inventory",
    module="services.inventory",
    port_offset=2,
    hears=("orchestrator", "payment"),
    uses_valkey=True,
)
SHIPPING = Service(
    name="shipping",
    module="services.shipping",
    port_offset=3,
    hears=("orchestrator", "payment"),
    uses_valkey=True,
)
FRAUD = Service(name="fraud", module="services.fraud", port_offset=4, uses_valkey=True)
PAYMENT = Service(
    name="payment",
    module="services.payment",
    port_offset=1,
    calls=("fraud", "bank"),
    hears=("orchestrator", "inventory", "shipping"),
    uses_valkey=True,
    seals=True,
    short=("PROCESSOR", "STRIPE_KEY", "STRIPE_URL"),
)
ORCHESTRATOR = Service(
    name="orchestrator",
    module="services.orchestrator",
    port_offset=0,
    calls=("inventory", "payment", "shipping"),
    uses_valkey=True,
)
RECONCILER = Service(
    name="reconciler", module="services.reconciler", port_offset=5, calls=("payment",), uses_valkey=True
)
EDGE_WEBHOOK_NETWORKS = "127.0.0.0/8,::1/128"
"""On this machine a shop that is being developed stands beside the mesh."""
EDGE = Service(
    name="edge",
    module="services.edge",
    port_offset=8,
    calls=("payment", "orchestrator", "bank"),
    uses_valkey=True,
    speaks_http=True,
    secrets=("KEY_SECRET", "VAULT_KEY"),
    settings=(("WEBHOOK_NETWORKS_ALLOWED", EDGE_WEBHOOK_NETWORKS),),
)
SERVICES = (BANK, INVENTORY, SHIPPING, FRAUD, PAYMENT, RECONCILER, ORCHESTRATOR, EDGE)
"""In the order in which they start: whoever is called comes before its callers."""


@dataclass(frozen=True)
class Instance:
    """One process of a service."""

    name: str
    """The service's name; replicas are `payment-2`, `payment-3` …"""
    service: Service
    port: int

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def metrics_address(self) -> str:
        return f"{LOOPBACK}:{self.port + METRICS_OFFSET}"

    @property
    def ports(self) -> tuple[int, int]:
        return self.port, self.port + METRICS_OFFSET


@dataclass(frozen=True)
class Plan:
    """All processes of one mesh."""

    instances: tuple[Instance, ...]
    """In the order in which they start."""
    base_port: int

    @property
    def services(self) -> tuple[Service, ...]:
        return tuple(dict.fromkeys(instance.service for instance in self.instances))

    @property
    def postgres_port(self) -> int:
        return self.base_port + POSTGRES_OFFSET

    @property
    def valkey_port(self) -> int:
        return self.base_port + VALKEY_OFFSET

    @property
    def targets(self) -> dict[str, str]:
        """The gRPC target of each service by name; one with replicas lists all their addresses."""
        return {service.name: self._target(service) for service in self.services}

    def of(self, service: Service) -> tuple[Instance, ...]:
        """The processes of one service."""
        return tuple(instance for instance in self.instances if instance.service == service)

    def _target(self, service: Service) -> str:
        addresses = [instance.address for instance in self.of(service)]
        return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"


def plan(
    services: tuple[Service, ...] = SERVICES,
    *,
    base_port: int = BASE_PORT,
    replicas: Mapping[str, int] | None = None,
) -> Plan:
    """Lay out the processes. `replicas` says how many of a service, by name; one where it says nothing."""
    instances = []
    for service in services:
        for number in range(1, (replicas or {}).get(service.name, 1) + 1):
            name = service.name if number == 1 else f"{service.name}-{number}"
            port = base_port + service.port_offset + REPLICA_STRIDE * (number - 1)
            instances.append(Instance(name, service, port))
    return Plan(tuple(instances), base_port)


def port_last(base_port: int) -> int:
    """The highest port a mesh on that base port can need."""
    return base_port + METRICS_OFFSET + REPLICA_STRIDE * REPLICAS_MAX


def environment_of(
    instance: Instance,
    layout: Plan,
    *,
    dsn: str,
    valkey_url: str | None,
    inherited: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of one process. `settings` are further variables of it, without their prefix.

    Variables that the user set for this service are kept, so that a knob can be turned and a target replaced;
    where it listens and which database it has is decided here. Variables of other services, which may hold
    their passwords, are left out.
    """
    prefix = f"PAYMESH_{instance.service.name.upper()}_"
    environment = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("PAYMESH_") or name.startswith(prefix) or name in SHARED_VARIABLES
    }
    for name in instance.service.short:
        if (value := inherited.get(f"PAYMESH_{name}")) is not None:
            environment.setdefault(f"{prefix}{name}", value)
    environment[f"{prefix}DATABASE_DSN"] = dsn
    environment[f"{prefix}LISTEN"] = instance.address
    environment[f"{prefix}METRICS_LISTEN"] = instance.metrics_address
    for callee in (
        *instance.service.calls,
        *(name for name in instance.service.hears if name in layout.targets),
    ):
        environment.setdefault(f"{prefix}{callee.upper()}_TARGET", layout.targets[callee])
    if instance.service.uses_valkey and valkey_url is not None:
        environment.setdefault(f"{prefix}VALKEY_URL", valkey_url)
    for name, value in (settings or {}).items():
        environment.setdefault(f"{prefix}{name}", value)
    environment["PYTHONPATH"] = _python_path(inherited.get("PYTHONPATH", ""))
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def secret_name(service: Service, setting: str) -> str:
    """What a secret of a service is called in the data folder."""
    return f"{service.name}_{setting.lower()}"


def command_of(service: Service) -> list[str]:
    """The command line that runs a process of the service, with the Python that runs us."""
    return [sys.executable, "-m", service.module]


def _python_path(inherited: str) -> str:
    """Absolute, because the processes run in the project's folder and not where the user stands."""
    parts = [str(Path(part).absolute()) for part in inherited.split(os.pathsep) if part]
    return os.pathsep.join([*parts, str(ROOT)])
