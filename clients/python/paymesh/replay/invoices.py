"""Turns the rows of an export into invoices to place and into rejections. Pure.

The rule: an invoice is an order when its number is neither a cancellation (C…) nor an adjustment (A…) and at
least one of its rows can be sold, which means a product, a quantity above zero and a price above zero whose
product is a whole number of minor units. Rows that cannot be sold are rejected one by one and the order is
placed with the others. Postage and other charges that are booked as products are products. The same product
in several rows of an invoice is added up. The invoice's date is not looked at.

Every row ends in exactly one of three places: a row of an invoice that is placed, a rejected row, or a good
row of an invoice that was rejected as a whole (its country is unknown, say). Every invoice ends in exactly
one of two: placed or rejected. `returns` then finds what cancellations take back, which is a fourth place
and a third one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from paymesh.amounts import (
    AMOUNT_MINOR_MAX,
    AmountError,
    currency_exponent,
    minor_units,
    parse_decimal,
)
from paymesh.replay.countries import CountryError, country_code
from paymesh.replay.rows import BrokenRow, Row, RowReading

TEXT_LENGTH_MAX = 64
"""Longest invoice number, product code and customer number that a request may carry."""

QUANTITY_MAX = 1_000_000
"""Most pieces of one product in an order."""

PRODUCTS_MAX = 1_000
"""Most different products in an order."""

CANCELLATION = "CANCELLATION"
"""Why rows and invoices with a number of C… are no order."""

_CANCELLATION = re.compile(r"[Cc][0-9]+")
_ADJUSTMENT = re.compile(r"[Aa][0-9]+")
_INVOICE_NUMBER = re.compile(r"[A-Za-z]?[0-9]+")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")


@dataclass(frozen=True, slots=True)
class SoldLine:
    """A row that can be sold."""

    line: int
    sku: str
    description: str
    quantity: int
    amount_minor: int
    """Quantity times unit price, in minor units."""
    customer_id: str
    country_name: str


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice that can be placed as an order."""

    number: str
    lines: tuple[SoldLine, ...]
    """Its rows that can be sold, in the order of the file."""
    quantities: Mapping[str, int]
    """Pieces by product, products ascending."""
    amount_minor: int
    currency: str
    customer_id: str
    """Empty when the export names none."""
    country: str
    """ISO 3166-1 alpha-2."""


@dataclass(frozen=True, slots=True)
class Return:
    """What one cancellation takes back from one order."""

    number: str
    """Of the cancellation."""
    original: str
    """Number of the invoice that had sold it."""
    lines: tuple[int, ...]
    """Numbers of its rows in the file."""
    quantities: Mapping[str, int]
    """Pieces by product, products ascending."""
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that cannot be sold."""

    line: int
    invoice: str
    """Empty when it cannot be told."""
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class RejectedInvoice:
    """An invoice that is not an order."""

    number: str
    reason: str
    detail: str
    good_lines: tuple[int, ...]
    """Line numbers of its rows that were not rejected themselves."""


@dataclass
class Export:
    """What an export file contains."""

    invoices: list[Invoice] = field(default_factory=list)
    """In the order in which they first appear."""
    rejected_rows: list[RejectedRow] = field(default_factory=list)
    """In the order of the file."""
    returns: list[Return] = field(default_factory=list)
    """In the order of the file, by their first rows; see `returns.match_returns`."""
    rejected_invoices: list[RejectedInvoice] = field(default_factory=list)


class RejectedError(Exception):
    """A row or an invoice is rejected: reason code and detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class _Gathered:
    """The rows of one invoice number while the file is read."""

    lines: list[SoldLine] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)


def read_invoices(
    reading: RowReading, currency: str, country_aliases: Mapping[str, str] | None = None
) -> Export:
    """Sort the rows of a file into invoices and rejections. AmountError when the currency is unknown.

    `country_aliases` maps names of countries in lower case to ISO codes, beyond those known.
    """
    exponent = currency_exponent(currency)
    export = Export()
    gathered: dict[str, _Gathered] = {}
    for row in reading.rows:
        number = _invoice_number(row, reading.columns)
        try:
            line = _read_line(row, reading.columns, exponent)
        except RejectedError as rejected:
            export.rejected_rows.append(RejectedRow(row.line, number, rejected.reason, rejected.detail))
            if number:
                gathered.setdefault(number, _Gathered()).reasons.add(rejected.reason)
        else:
            gathered.setdefault(number, _Gathered()).lines.append(line)
    for number, rows in gathered.items():
        try:
            export.invoices.append(_read_invoice(number, rows, currency, country_aliases))
        except RejectedError as rejected:
            good_lines = tuple(line.line for line in rows.lines)
            export.rejected_invoices.append(
                RejectedInvoice(number, rejected.reason, rejected.detail, good_lines)
            )
    return export


def _invoice_number(row: Row | BrokenRow, columns: tuple[str, ...]) -> str:
    """The invoice that a row belongs to; for a broken row only when it is beyond doubt."""
    at = columns.index("InvoiceNo")
    if at >= len(row.fields):
        return ""
    number = row.fields[at].strip()
    if isinstance(row, BrokenRow) and not _INVOICE_NUMBER.fullmatch(number):
        return ""
    return number


def _read_line(row: Row | BrokenRow, columns: tuple[str, ...], exponent: int) -> SoldLine:
    if isinstance(row, BrokenRow):
        raise RejectedError(row.reason, row.detail)
    value = dict(zip(columns, (text.strip() for text in row.fields), strict=True))
    number = value["InvoiceNo"]
    _check_text("INVOICE", number)
    if _CANCELLATION.fullmatch(number):
        raise RejectedError(CANCELLATION, "the number of the invoice begins with C")
    if _ADJUSTMENT.fullmatch(number):
        raise RejectedError("ADJUSTMENT", "the number of the invoice begins with A")
    _check_text("PRODUCT", value["StockCode"])
    if customer_id := value.get("CustomerID", ""):
        _check_text("CUSTOMER", customer_id)
    return _line_of(row, value, _read_quantity(value["Quantity"]), exponent)


def read_taken_back(row: Row | BrokenRow, columns: tuple[str, ...], exponent: int) -> SoldLine:
    """A row of a cancellation, with the pieces that come back above zero. RejectedError when it takes nothing back."""
    if isinstance(row, BrokenRow):
        raise RejectedError(row.reason, row.detail)
    value = dict(zip(columns, (text.strip() for text in row.fields), strict=True))
    _check_text("PRODUCT", value["StockCode"])
    _check_text("CUSTOMER", value.get("CustomerID", ""))
    text = value["Quantity"]
    if not text.startswith("-"):
        raise RejectedError("QUANTITY_NOT_NEGATIVE", f"{text[:40]!r} takes nothing back")
    return _line_of(row, value, _read_quantity(text[1:]), exponent)


def _line_of(row: Row, value: Mapping[str, str], quantity: int, exponent: int) -> SoldLine:
    return SoldLine(
        line=row.line,
        sku=value["StockCode"],
        description=value.get("Description", ""),
        quantity=quantity,
        amount_minor=_read_amount(value["UnitPrice"], quantity, exponent),
        customer_id=value.get("CustomerID", ""),
        country_name=value["Country"],
    )


def _check_text(what: str, text: str) -> None:
    """An identifier must be there, fit into a request and be free of characters that nobody can see."""
    if not text:
        raise RejectedError(f"{what}_MISSING", "the column is empty")
    if len(text) > TEXT_LENGTH_MAX:
        raise RejectedError(f"{what}_TOO_LONG", f"{len(text)} characters; {TEXT_LENGTH_MAX} is the most")
    if not text.isprintable():
        raise RejectedError(f"{what}_UNPRINTABLE", f"{text!r} has unprintable characters")


def _read_quantity(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise RejectedError("QUANTITY_NOT_A_NUMBER", f"{text[:40]!r} is not a whole number")
    quantity = int(text.partition(".")[0])
    if quantity < 0:
        raise RejectedError("QUANTITY_NEGATIVE", str(quantity))
    if quantity == 0:
        raise RejectedError("QUANTITY_ZERO", "0")
    if quantity > QUANTITY_MAX:
        raise RejectedError("QUANTITY_TOO_LARGE", f"{quantity:,} pieces; {QUANTITY_MAX:,} is the most")
    return quantity


def _read_amount(text: str, quantity: int, exponent: int) -> int:
    """Quantity times price in minor units, exactly. A price finer than the currency is fine as long as the
    product is a whole number of minor units: 8 x 0.125 is 1.00."""
    try:
        price: Decimal = parse_decimal(text)
    except AmountError as error:
        raise RejectedError("PRICE_NOT_A_NUMBER", str(error)) from None
    if price < 0:
        raise RejectedError("PRICE_NEGATIVE", text)
    if price == 0:
        raise RejectedError("PRICE_ZERO", text)
    try:
        amount_minor = minor_units(price, exponent, quantity)
    except AmountError as error:
        raise RejectedError("PRICE_TOO_FINE", str(error)) from None
    _check_amount(amount_minor)
    return amount_minor


def _check_amount(amount_minor: int) -> None:
    if amount_minor > AMOUNT_MINOR_MAX:
        detail = f"{amount_minor:,} minor units; {AMOUNT_MINOR_MAX:,} is the most"
        raise RejectedError("AMOUNT_TOO_LARGE", detail)


def _read_invoice(
    number: str, rows: _Gathered, currency: str, country_aliases: Mapping[str, str] | None
) -> Invoice:
    if not rows.lines:
        if len(rows.reasons) == 1:
            raise RejectedError(next(iter(rows.reasons)), "every row was rejected for this")
        raise RejectedError("NO_ROW_CAN_BE_SOLD", ", ".join(sorted(rows.reasons)))
    country = _only_one("COUNTRY", (line.country_name for line in rows.lines))
    customer_id = _only_one("CUSTOMER", (line.customer_id for line in rows.lines))
    try:
        code = country_code(country, country_aliases)
    except CountryError as error:
        raise RejectedError("COUNTRY_UNKNOWN", str(error)) from None
    quantities = dict.fromkeys(sorted({line.sku for line in rows.lines}), 0)
    for line in rows.lines:
        quantities[line.sku] += line.quantity
    if len(quantities) > PRODUCTS_MAX:
        detail = f"{len(quantities):,} products; {PRODUCTS_MAX:,} is the most"
        raise RejectedError("TOO_MANY_PRODUCTS", detail)
    most = max(quantities, key=lambda sku: quantities[sku])
    if quantities[most] > QUANTITY_MAX:
        detail = f"{quantities[most]:,} pieces of {most}; {QUANTITY_MAX:,} is the most"
        raise RejectedError("QUANTITY_TOO_LARGE", detail)
    amount_minor = sum(line.amount_minor for line in rows.lines)
    _check_amount(amount_minor)
    return Invoice(number, tuple(rows.lines), quantities, amount_minor, currency, customer_id, code)


def _only_one(what: str, values: Iterable[str]) -> str:
    """The one value that the rows of an invoice agree on; rows that leave it empty have no say."""
    named = sorted({value for value in values if value})
    if len(named) > 1:
        raise RejectedError(f"{what}_CONFLICT", f"the rows name {named[0]!r} and {named[1]!r}")
    return named[0] if named else ""
