"""Finds the orders that cancellations take goods back from. Pure.

The rule: a row of a cancellation (an invoice whose number begins with C) takes goods back when it names a customer, a
product, a whole number of pieces below zero and a price above zero, and when an invoice of the same file

* is placed as an order, for the same customer,
* has sold, in rows that stand before this one, at least so many pieces of that product at exactly that price, not
  counting those that earlier rows have taken back already.

If there are several, the latest of them is taken: the one whose first such row stands last before this one. A row is
taken back from one order or not at all; it is never split. What one cancellation takes back from one order is one
return. The money is pieces times price, so all that is taken back of an order never exceeds what it was charged.

All other rows of cancellations stay rejected, each with the reason CANCELLATION and a detail that says why. A
cancellation of which at least one row is taken back is no rejected invoice any more.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from paymesh.amounts import currency_exponent
from paymesh.replay.invoices import (
    CANCELLATION,
    Export,
    Invoice,
    RejectedError,
    RejectedRow,
    Return,
    SoldLine,
    read_taken_back,
)
from paymesh.replay.rows import RowReading

_Wanted = tuple[str, str, Fraction]
"""(customer, product, price)."""


@dataclass
class _Shelf:
    """What one customer has bought of one product at one price: pieces that are still out, by invoice, in the order of
    the file."""

    out: dict[str, int] = field(default_factory=dict)

    def sell(self, number: str, pieces: int) -> None:
        """These have left."""
        self.out[number] = self.out.get(number, 0) + pieces

    def take_back(self, pieces: int) -> str | None:
        """The invoice that they come back from; None where no single one has so many out."""
        for number in reversed(self.out):
            if self.out[number] >= pieces:
                self.out[number] -= pieces
                return number
        return None


@dataclass
class _Gathered:
    """What one cancellation takes back from one order, while the file is read."""

    lines: list[int] = field(default_factory=list)
    quantities: dict[str, int] = field(default_factory=dict)
    amount_minor: int = 0


def match_returns(reading: RowReading, export: Export, currency: str) -> None:
    """Turn rejected rows of cancellations in `export` into returns, where their orders are known."""
    exponent = currency_exponent(currency)
    rows = {row.line: row for row in reading.rows}
    shelves: dict[_Wanted, _Shelf] = {}
    returns: dict[tuple[str, str], _Gathered] = {}
    kept: list[RejectedRow] = []
    sales = _sales(export.invoices)
    sale = next(sales, None)
    for rejected in export.rejected_rows:  # in the order of the file, as sales are
        while sale is not None and sale[1].line < rejected.line:
            invoice, line = sale
            shelves.setdefault(_wanted(invoice.customer_id, line), _Shelf()).sell(
                invoice.number, line.quantity
            )
            sale = next(sales, None)
        if rejected.reason != CANCELLATION:
            kept.append(rejected)
            continue
        try:
            line = read_taken_back(rows[rejected.line], reading.columns, exponent)
            original = _original(shelves, line)
        except RejectedError as why:
            kept.append(
                RejectedRow(rejected.line, rejected.invoice, CANCELLATION, f"{why.reason}: {why.detail}")
            )
            continue
        gathered = returns.setdefault((rejected.invoice, original), _Gathered())
        gathered.lines.append(line.line)
        gathered.quantities[line.sku] = gathered.quantities.get(line.sku, 0) + line.quantity
        gathered.amount_minor += line.amount_minor
    export.rejected_rows = kept
    export.returns = [
        Return(
            number,
            original,
            tuple(one.lines),
            dict(sorted(one.quantities.items())),
            one.amount_minor,
            currency,
        )
        for (number, original), one in returns.items()
    ]
    taken_back = {one.number for one in export.returns}
    export.rejected_invoices = [one for one in export.rejected_invoices if one.number not in taken_back]


def _sales(invoices: Iterable[Invoice]) -> Iterator[tuple[Invoice, SoldLine]]:
    """Every sold line with its invoice, in the order of the file; those of nobody cannot be found again."""
    sold = ((invoice, line) for invoice in invoices if invoice.customer_id for line in invoice.lines)
    return iter(sorted(sold, key=lambda one: one[1].line))


def _wanted(customer_id: str, line: SoldLine) -> _Wanted:
    return (customer_id, line.sku, Fraction(line.amount_minor, line.quantity))


def _original(shelves: Mapping[_Wanted, _Shelf], line: SoldLine) -> str:
    """The number of the invoice that a line was sold by."""
    shelf = shelves.get(_wanted(line.customer_id, line))
    original = shelf.take_back(line.quantity) if shelf is not None else None
    if original is None:
        raise RejectedError(
            "NO_ORDER_FOUND",
            f"no earlier order of customer {line.customer_id} has {line.quantity} of {line.sku} out at this price",
        )
    return original
