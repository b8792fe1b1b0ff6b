"""Every knob of the shipping service."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import field_validator
from pydantic_settings import NoDecode

from services.kit.config import EventsConfig

_CODE = re.compile(r"[A-Z]{2}")


class ShippingConfig(EventsConfig):
    """What shipping needs beyond what every service needs."""

    orchestrator_target: str = ""
    """gRPC target of the orchestrator, whose events move choreographed orders here. Empty: it is not listened to."""
    payment_target: str = ""
    """gRPC target of payment, whose events move choreographed orders here. Empty: it is not listened to."""
    unserved_countries: Annotated[frozenset[str], NoDecode] = frozenset({"AQ", "KP"})
    """Countries to which no carrier goes, as ISO 3166-1 alpha-2 codes with commas between them, for example
    "AQ,KP". Empty: every country is served. The default names two that hardly any carrier serves."""

    @field_validator("unserved_countries", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        codes = [code.strip() for code in value.split(",")] if value.strip() else []
        wrong = [code for code in codes if not _CODE.fullmatch(code)]
        if wrong:
            listed = ", ".join(repr(code) for code in wrong)
            raise ValueError(f"{listed}: not an ISO 3166-1 alpha-2 code such as 'AQ'")
        return frozenset(codes)
