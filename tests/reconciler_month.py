"""A month of a shop, made up: payments with partial captures, refunds and fees; settlements that are paid out at once,
bookings one by one, some in parts and some without a reference; payouts. And the same month as a bank tells it that
errs in ways of which a list is kept.

Nothing here knows how the reconciler works: what is wrong is decided before any line is written, and told by name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta

from services.reconciler.domain.item import Item, ItemKind
from tests.reconciler import Booked, Section

FIRST_DAY = date(2026, 10, 1)
DAYS = 31
CURRENCIES = ("GBP", "EUR", "JPY", "KWD")
FEE_SHARE_PPM = 14_000
UNTIL = FIRST_DAY + timedelta(days=75)
"""When all is overdue that ever will be."""


@dataclass
class Expected:
    """A line as it should be, and the items that it stands for."""

    currency: str
    lines: list[Booked]
    names: list[str]
    """Under which a difference about it is known: of its items, of its batch, of its line."""
    errs: str = ""
    """What is wrong with it, if anything."""


@dataclass
class Month:
    """The month in both books."""

    items: list[Item] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    differences: dict[str, str] = field(default_factory=dict)
    """Kind by reference: all that is wrong."""
    held_back: list[Expected] = field(default_factory=list)
    """What the bank has left out and will tell later."""


ERRORS = (
    "MISSING_IN_BANK", "MISSING_IN_LEDGER", "AMOUNT", "CURRENCY", "DUPLICATE", "LATE"
)  # fmt: skip


def make_month(payments: int, differences: int, seed: int) -> Month:
    """A month with so many payments and so many differences."""
    draw = random.Random(seed)
    month = Month()
    expected = [*_captures_and_refunds(draw, month, payments), *_payouts(draw, month)]
    _err(draw, month, expected, differences)
    month.sections = list(_statements(draw, expected, month))
    return month


def _captures_and_refunds(draw: random.Random, month: Month, payments: int) -> list[Expected]:
    batches: dict[tuple[str, date], list[Item]] = {}
    expected: list[Expected] = []
    for number in range(payments):
        currency = draw.choice(CURRENCIES)
        start = draw.randrange(DAYS)
        version = 1
        left = 0
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            version += 2
            amount_minor = draw.randrange(100, 500_000)
            left += amount_minor
            day = FIRST_DAY + timedelta(days=min(DAYS - 1, start + draw.randrange(3)))
            fee_minor = amount_minor * FEE_SHARE_PPM // 1_000_000
            _add(
                draw,
                batches,
                expected,
                month,
                _item(number, version, "capture", amount_minor, fee_minor, currency, day),
            )
        while draw.random() < 0.12 and left > 100:
            version += 2
            amount_minor = draw.randrange(50, left)
            left -= amount_minor
            day = FIRST_DAY + timedelta(days=draw.randrange(start, DAYS))
            _add(
                draw,
                batches,
                expected,
                month,
                _item(number, version, "refund", -amount_minor, 0, currency, day),
            )
    for (currency, day), items in batches.items():
        name = f"batch_{currency}_{day:%m%d}"
        month.items += [item._replace(batch_reference=name, settlement_id=f"stl_{name}") for item in items]
        net_minor = sum(item.amount_minor - item.fee_minor for item in items)
        # The bank says "batch" where some have a field for it, and where others have one for their own reference.
        odd = day.day % 2 == 1
        line = Booked(
            amount_minor=net_minor,
            reference=f"stl_{name}",
            batch_reference=name if odd else "",
            counterpart_reference="" if odd else name,
            booking_date=day,
            value_date=_next(draw, day),
        )
        if net_minor:
            expected.append(Expected(currency, [line], [name, f"stl_{name}"]))
    return expected


def _item(
    number: int, version: int, kind: str, amount_minor: int, fee_minor: int, currency: str, day: date
) -> Item:
    key = f"pay_{number:07d}/{kind}/{version}"
    return Item(
        key, ItemKind(kind.upper()), f"pay_{number:07d}", "", f"bank_{number:07d}_{version}", "", amount_minor,
        fee_minor, currency, day, day,
    )  # fmt: skip


def _add(
    draw: random.Random,
    batches: dict[tuple[str, date], list[Item]],
    expected: list[Expected],
    month: Month,
    item: Item,
) -> None:
    """Half of it is settled in batches, the rest is booked one by one."""
    how = draw.random()
    if how < 0.5:
        batches.setdefault((item.currency, item.booked_on), []).append(item)
        return
    day = item.booked_on
    value_date = _next(draw, day)
    amount_minor = item.amount_minor

    def line(amount_minor: int, reference: str = "", theirs: str = "") -> Booked:
        return Booked(
            amount_minor=amount_minor, reference=reference, counterpart_reference=theirs, booking_date=day,
            value_date=value_date,
        )  # fmt: skip

    kept = item if how >= 0.8 and how < 0.9 else item._replace(fee_minor=0)
    month.items.append(kept)
    if how < 0.9:
        lines = [line(amount_minor - kept.fee_minor, item.item_id)]
    elif how < 0.96 or abs(amount_minor) < 10:
        lines = [line(amount_minor, theirs=item.bank_reference)]
    else:
        part = draw.randrange(1, abs(amount_minor)) * (1 if amount_minor > 0 else -1)
        lines = [line(part, item.item_id), line(amount_minor - part, item.item_id)]
    names = [item.item_id] if lines[0].reference else [item.item_id, item.bank_reference]
    expected.append(Expected(item.currency, lines, names))


def _payouts(draw: random.Random, month: Month) -> Iterator[Expected]:
    for currency in CURRENCIES:
        for number in range(DAYS):
            day = FIRST_DAY + timedelta(days=number)
            key = f"stl_{currency}_{day:%m%d}/payout"
            amount_minor = -draw.randrange(1_000, 9_000_000)
            month.items.append(
                Item(
                    key,
                    ItemKind.PAYOUT,
                    "",
                    "",
                    f"pout_{currency}_{day:%m%d}",
                    "",
                    amount_minor,
                    0,
                    currency,
                    day,
                    day,
                )
            )
            line = Booked(
                amount_minor=amount_minor, reference=key, counterpart_reference=f"pout_{currency}_{day:%m%d}",
                booking_date=day, value_date=_next(draw, day),
            )  # fmt: skip
            yield Expected(currency, [line], [key])


def _next(draw: random.Random, day: date) -> date:
    return day + timedelta(days=draw.choice((0, 1, 1, 2, 3)))


def _err(draw: random.Random, month: Month, expected: list[Expected], differences: int) -> None:
    """Spoil so many of them, every kind about as often."""
    whole = [one for one in expected if len(one.lines) == 1]
    for number, one in enumerate(draw.sample(whole, differences)):
        one.errs = ERRORS[number % len(ERRORS)]
        if one.errs == "MISSING_IN_LEDGER":
            # What is spoiled is something else: a line that nobody knows stands beside this one.
            month.differences[f"stranger-{number}"] = one.errs
            stranger = replace(
                one.lines[0], reference=f"stranger-{number}", counterpart_reference=f"x{number}", batch_reference="",
                amount_minor=draw.randrange(1, 10_000),
            )  # fmt: skip
            one.lines.append(stranger)
        elif one.errs == "MISSING_IN_BANK":
            month.differences[one.names[0]] = one.errs
        else:
            month.differences[one.lines[0].reference or one.lines[0].counterpart_reference] = one.errs


def _statements(draw: random.Random, expected: list[Expected], month: Month) -> Iterator[Section]:
    """One statement a currency and day, its lines in no order."""
    by_day: dict[tuple[str, date], list[Booked]] = {}

    def book(currency: str, line: Booked) -> None:
        by_day.setdefault((currency, line.booking_date), []).append(line)

    for one in expected:
        line, rest = one.lines[0], one.lines[1:]
        currency = one.currency
        if one.errs == "MISSING_IN_BANK":
            month.held_back.append(one)
            continue
        if one.errs == "AMOUNT":
            line = replace(
                line, amount_minor=line.amount_minor + draw.choice((-1, 1)) * draw.randrange(1, 90)
            )
        elif one.errs == "CURRENCY":
            currency = draw.choice([other for other in CURRENCIES if other != currency])
        elif one.errs == "DUPLICATE":
            rest = [line]
        elif one.errs == "LATE":
            days = timedelta(days=draw.randrange(9, 20))
            assert line.value_date is not None
            line = replace(line, booking_date=line.booking_date + days, value_date=line.value_date + days)
        for booked in (line, *rest):
            book(currency, booked)
    balances = dict.fromkeys(CURRENCIES, 0)
    for (currency, day), lines in sorted(by_day.items()):
        draw.shuffle(lines)
        yield Section(
            name=f"{day:%Y-%m-%d}", account=f"GB00{currency}", currency=currency, lines=lines,
            opening_minor=balances[currency],
        )  # fmt: skip
        balances[currency] += sum(line.amount_minor for line in lines)


def late_section(one: Expected) -> Section:
    """The bank tells at last what it had left out."""
    later = UNTIL - timedelta(days=1)
    lines = [replace(line, booking_date=later, value_date=later) for line in one.lines]
    return Section(name="late", account=f"GB00{one.currency}", currency=one.currency, lines=lines)
