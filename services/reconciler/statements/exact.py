"""Amounts and dates as statements write them, exactly or not at all. Pure.

What cannot be read is a ValueError whose text is the second half of a sentence: the reader knows which field it is
about and makes a Refusal of both.
"""

from __future__ import annotations

import calendar
import re
from datetime import date
from functools import lru_cache

from services.kit.money import UnknownCurrency, exponent
from services.reconciler.domain.statement import BALANCE_MINOR_MAX

WITHDRAWN_DECIMALS = {
    "ATS": 2, "BEF": 0, "CYP": 2, "DEM": 2, "EEK": 2, "ESP": 0, "FIM": 2, "FRF": 2, "GRD": 0, "HRK": 2, "IEP": 2,
    "ITL": 0, "LTL": 2, "LUF": 0, "LVL": 2, "MTL": 2, "NLG": 2, "PTE": 0, "SIT": 2, "SKK": 2,
}  # fmt: skip
"""Currencies that became euros. ISO 4217's list of today, which kit's money knows, has none of them; archives do."""
QUOTED_LENGTH_MAX = 60
"""Characters of a file that an error repeats. A field of a gigabyte does not come back as a message of a gigabyte."""

_NUMBER = re.compile(r"([+-]?)(\d*)(?:[.,](\d*))?", re.ASCII)
_DIGITS_MAX = len(str(BALANCE_MINOR_MAX)) + 2
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_SIX_DIGITS = re.compile(r"\d{6}", re.ASCII)
_FEBRUARY = 2
_CENTURY_PIVOT = 80
"""SWIFT's rule for years of two digits: 80 to 99 are of the last century."""


def quoted(text: str) -> str:
    """What was found, for a message: short, and with everything that does not print spelled out."""
    return repr(text if len(text) <= QUOTED_LENGTH_MAX else f"{text[:QUOTED_LENGTH_MAX]}…")


@lru_cache(maxsize=512)
def decimals(currency: str) -> int:
    """Decimals of a currency, one of today or one that has become euros. Raises ValueError."""
    try:
        return exponent(currency)
    except UnknownCurrency:
        if currency in WITHDRAWN_DECIMALS:
            return WITHDRAWN_DECIMALS[currency]
        raise ValueError(f"{quoted(currency)} is no currency of ISO 4217") from None


def minor_units(text: str, places: int) -> int:
    """`minor_units("12.3", 2)` is 1230. The decimal mark is a point or a comma, and there is no other separator.
    Decimals beyond `places` have to be zeros: nothing is rounded. Raises ValueError."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not (match[2] or match[3]):
        raise ValueError(f"{quoted(text)} is not an amount")
    sign, whole, decimal_digits = match[1], match[2], match[3] or ""
    beyond = decimal_digits[places:]
    if beyond and beyond.strip("0"):
        raise ValueError(f"{quoted(text)} has more decimals than the {places} that its currency has")
    digits = (whole + decimal_digits[:places].ljust(places, "0")).lstrip("0") or "0"
    if len(digits) > _DIGITS_MAX:
        raise ValueError(f"{quoted(text)} is more than any account can hold")
    return -int(digits) if sign == "-" else int(digits)


@lru_cache(maxsize=4096)
def iso_date(text: str) -> date:
    """The day of "2026-11-26" or "2026-11-26T09:30:00+01:00", as the bank wrote it. Raises ValueError."""
    day = text.strip()[:10]
    if not _ISO_DATE.fullmatch(day):
        raise ValueError(f"{quoted(text)} is not a date like 2026-11-26")
    try:
        return date.fromisoformat(day)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not in the calendar") from None


@lru_cache(maxsize=4096)
def six_digit_date(text: str, *, thirty_day_months: bool = False) -> date:
    """The day of "261126". With `thirty_day_months`, the 29th and 30th of February are its last day: banks that count
    interest in months of thirty days write them. Raises ValueError."""
    if not _SIX_DIGITS.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not a date like 261126")
    year, month, day = int(text[:2]), int(text[2:4]), int(text[4:])
    year += 1900 if year >= _CENTURY_PIVOT else 2000
    if thirty_day_months and month == _FEBRUARY and day in {29, 30}:
        day = min(day, calendar.monthrange(year, month)[1])
    try:
        return date(year, month, day)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not in the calendar") from None


def currency_code(text: str) -> str:
    """The code itself, known to have decimals. Raises ValueError."""
    decimals(text)
    return text
