"""Every knob of the payment service."""

from __future__ import annotations

from pydantic import Field

from services.kit.config import EventsConfig


class PaymentConfig(EventsConfig):
    """Configuration of payment; environment variables PAYMESH_PAYMENT_…"""

    fraud_target: str = Field(min_length=1)
    """gRPC target of the fraud service."""
    processor: str = Field(default="bank", min_length=1, max_length=64)
    """Where new payments are authorized: a name of `clients.PROCESSORS`. Those that were begun elsewhere stay there."""
    bank_target: str = ""
    """gRPC target of the bank's gateway; empty where there is no bank."""
    orchestrator_target: str = ""
    """gRPC target of the orchestrator, whose events move choreographed orders here. Empty: it is not listened to."""
    inventory_target: str = ""
    """gRPC target of inventory, whose events move choreographed orders here. Empty: it is not listened to."""
    shipping_target: str = ""
    """gRPC target of shipping, whose events move choreographed orders here. Empty: it is not listened to."""
    fraud_seconds: float = Field(default=2.0, gt=0, le=30)
    """How long a fraud check may take. It answers within milliseconds or not at all."""
    bank_seconds: float = Field(default=5.0, gt=0, le=60)
    """How long the bank may take before its outcome counts as unknown."""
    intent_seconds: float = Field(default=15.0, gt=0, le=600)
    """An intent older than this was left behind by a process that died. Longer than a handler may take (10 s), so that
    the resolver does not meddle with work that is under way."""
    authorization_seconds: float = Field(default=604_800.0, gt=0, le=2_592_000)
    """How long an authorization lives: seven days, after which cards' banks drop holds by themselves. What was not
    captured by then is let go."""
    expire_poll_ms: int = Field(default=1_000, ge=10)
    """How often the runner looks for authorizations that have come to their end; a second is nothing to seven days."""
    resolve_first_ms: int = Field(default=200, ge=10)
    """First wait before an unknown outcome is asked for; doubles with every attempt."""
    resolve_max_ms: int = Field(default=30_000, ge=100)
    """Longest wait between two attempts to resolve one payment."""
    resolve_attempts_max: int = Field(default=8, ge=1)
    """After so many attempts an authorization that never became known is cancelled by its key: with the waits above,
    about a minute of trying."""
    resolve_poll_ms: int = Field(default=100, ge=10)
    """How often the resolver looks for work when it found none; ten times as rarely while nothing is due soon."""
    settle_after_seconds: float = Field(default=600.0, ge=0, le=86_400)
    """How long after the end of a day, UTC, its settlements are made: when the last captures of the day are known."""
    settle_look_seconds: float = Field(default=60.0, gt=0, le=3_600)
    """How often the runner gathers what was captured and looks whether a day has to be settled."""
    settle_poll_ms: int = Field(default=2_000, ge=10)
    """How often it looks for settlements to carry on when it found none."""
    settle_seconds: float = Field(default=15.0, gt=0, le=60)
    """How long the bank may take over a settlement before its outcome counts as unknown: ten thousand items take it a
    second."""
    settle_round_seconds: float = Field(default=60.0, gt=0, le=600)
    """Time to carry one settlement on at a go: ten thousand payments are told in some seconds. As long others leave it
    alone, so it is also how long one rests whose process was killed."""
    settle_clock_ahead_seconds: float = Field(default=0.0, ge=0, le=31_536_000)
    """How far the clock by which days end goes ahead of the real one: for tests and demonstrations, which have no time
    to wait for the night."""
    bench_without_history: str = ""
    """For benchmarks alone: no ledger and no chain of hashes. The secret in the description of a database that
    `paymesh bench` has made; with any other the process does not start."""
    seal_folder: str = ""
    """Where checkpoints of the audit trail are written: outside of the database, and shared by all payment processes.
    Empty: events are chained and not sealed."""
    seal_key_file: str = ""
    """The Ed25519 key that checkpoints are signed with, as PEM; readable by nobody else."""
    seal_seconds: float = Field(default=60.0, gt=0, le=86_400)
    """How long the sealer rests between two rounds, give or take half. What was not sealed yet can be changed without a
    trace by whoever owns the database; a checkpoint a minute is half a million files a year."""
    seal_settle_seconds: float = Field(default=5.0, ge=0, le=600)
    """How old an event must be to be sealed, besides that no older transaction is under way. A transaction that begins
    is seen by the server's statistics within milliseconds."""
    seal_look_back_seconds: float = Field(default=3_600.0, ge=10, le=2_592_000)
    """How far behind the last checkpoint the sealer looks, when it starts, for events that came late. Less far after a
    rush: it remembers so many."""
