"""Every format's writer, by its name."""

from __future__ import annotations

from collections.abc import Callable

from sandbox.bank.statements.bai2 import Bai2Writer
from sandbox.bank.statements.camt import CamtWriter
from sandbox.bank.statements.csv_rows import CsvWriter
from sandbox.bank.statements.mt940 import Mt940Writer
from sandbox.bank.statements.statement import Writer

WRITERS: dict[str, Callable[[], Writer]] = {
    "camt053": CamtWriter,
    "mt940": Mt940Writer,
    "bai2": Bai2Writer,
    "csv": CsvWriter,
}
