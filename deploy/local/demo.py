"""The demonstration: a few hundred orders, several kinds of trouble, two processes killed, and the money right.

It runs on a mesh of its own, in a temporary folder and on free ports, and takes it away afterwards. Every order is
placed by an ordinary client that repeats a call with its key until it has an answer.
"""

import asyncio
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from audit.report import Report
from audit.run import run_audit
from deploy.local import mesh
from deploy.local.demo_orders import (
    BLOCKED_CUSTOMER,
    KINDS,
    MERCHANT,
    RARE_SKU,
    RARE_STOCK,
    SKUS,
    UNLUCKY_MERCHANT,
    Planned,
    planned_orders,
)
from deploy.local.errors import LocalRunError
from deploy.local.ports import free_base_port
from deploy.local.supervisor import Mesh
from paymesh.bank.v1 import bank_pb2, bank_pb2_grpc
from paymesh.channel import open_channel, with_key
from paymesh.cli.story import order_tree, state_name
from paymesh.errors import Kind as ErrorKind
from paymesh.errors import call_error
from paymesh.fraud.v1 import fraud_pb2, fraud_pb2_grpc
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import orchestrator_pb2_grpc

CALLERS = 24
ORDER_SECONDS_MAX = 90.0
"""How long one order is asked for again before the demonstration gives up on it."""
CALL_SECONDS = 10.0
REPEAT_SECONDS = 0.2
LOST_ANSWERS_PPM = 333_333
SETTLE_SECONDS = 60.0
STOCK = 100_000
VICTIMS = ((0.3, "orchestrator"), (0.65, "payment"))
"""Who is killed after which share of the orders."""


@dataclass(frozen=True)
class Ended:
    """An order that was placed, and what became of it."""

    planned: Planned
    order: pb.Order
    seconds: float
    calls: int

    @property
    def as_it_must(self) -> bool:
        """Whether it ended in a way that its kind allows."""
        kind, state = self.planned.kind, state_name(self.order.state)
        return state in kind.ends and (state == "COMPLETED" or self.order.reason.code.startswith(kind.why))


def main() -> int:
    """Run it. Returns the exit code: 0 only if every order ended as it must and every invariant holds."""
    console = Console(highlight=False)
    try:
        return asyncio.run(_demonstrate(console))
    except LocalRunError as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        return 130


async def _demonstrate(console: Console) -> int:
    base_port = free_base_port(mesh.plan())
    with tempfile.TemporaryDirectory(prefix="paymesh-demo-", ignore_cleanup_errors=True) as folder:
        console.print("[bold]1[/bold]  starting PostgreSQL, Valkey and six services …")
        running = Mesh(Path(folder), base_port=base_port)
        try:
            await running.start()
            console.print(
                "[bold]2[/bold]  seeding a catalogue, blocking a customer, arming the bank's faults …"
            )
            await _seed(running.targets)
            planned = planned_orders()
            console.print(f"[bold]3[/bold]  placing {len(planned)} orders while things break:")
            started = time.monotonic()
            ended = await _place_all(running, planned, console)
            seconds = time.monotonic() - started
            console.print("[bold]4[/bold]  asking for every order again with its key …")
            changed = await _repeat_all(running.targets["orchestrator"], ended)
            console.print(
                "[bold]5[/bold]  checking the invariants across all databases and the bank's own books …\n"
            )
            dsns = {service.name: running.dsn(service.name) for service in mesh.SERVICES}
            report = await run_audit(dsns, wait_seconds=SETTLE_SECONDS)
            await _tell_a_story(running.targets["orchestrator"], ended, console)
        finally:
            await running.stop()
    return _conclude(console, ended, changed, report, seconds)


async def _seed(targets: dict[str, str]) -> None:
    async with open_channel(targets["inventory"], caller="demo") as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        for merchant in (MERCHANT, UNLUCKY_MERCHANT):
            request = inventory_pb2.BatchCreateProductsRequest()
            for sku in (*SKUS, RARE_SKU):
                item = request.items.add(idempotency_key=f"demo/{merchant}/{sku}")
                item.request.merchant_id, item.request.sku, item.request.name = merchant, sku, sku
                item.request.initial_quantity = RARE_STOCK if sku == RARE_SKU else STOCK
            await stub.BatchCreateProducts(request)
    async with open_channel(targets["fraud"], caller="demo") as channel:
        entry = fraud_pb2.AddListEntryRequest(
            merchant_id=MERCHANT,
            kind=fraud_pb2.LIST_KIND_BLOCK,
            subject=fraud_pb2.LIST_SUBJECT_CUSTOMER,
            value=BLOCKED_CUSTOMER,
            note="demonstration",
        )
        await fraud_pb2_grpc.FraudServiceStub(channel).AddListEntry(entry, metadata=with_key("demo/block"))
    async with open_channel(targets["bank"], caller="demo") as channel:
        fault = bank_pb2.Fault(
            kind=bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER,
            target=bank_pb2.FAULT_TARGET_AUTHORIZE,
            probability_ppm=LOST_ANSWERS_PPM,
            merchant_id=UNLUCKY_MERCHANT,
        )
        await bank_pb2_grpc.FaultServiceStub(channel).InjectFault(bank_pb2.InjectFaultRequest(fault=fault))


async def _place_all(running: Mesh, planned: Sequence[Planned], console: Console) -> list[Ended]:
    """Place all orders with a few dozen callers; kill a process at the planned moments."""
    victims = {int(share * len(planned)): name for share, name in VICTIMS}
    todo = iter(planned)
    ended: list[Ended] = []
    columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("orders", total=len(planned))
        async with open_channel(running.targets["orchestrator"], caller="demo", attempts_max=1) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)

            async def caller() -> None:
                for one in todo:
                    ended.append(await _place(stub, one))
                    progress.advance(bar)
                    if name := victims.get(len(ended)):
                        progress.console.print(f"   [red]kill -9 {name}[/red] (process {running.pid(name)})")
                        running.kill(name, signal.SIGKILL)

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return ended


async def _place(stub: orchestrator_pb2_grpc.OrchestratorServiceStub, planned: Planned) -> Ended:
    """Ask until there is an answer, always with the same key."""
    started = time.monotonic()
    calls = 0
    while True:
        calls += 1
        try:
            response = await stub.PlaceOrder(
                planned.request, timeout=CALL_SECONDS, metadata=with_key(planned.key)
            )
            return Ended(planned, response.order, time.monotonic() - started, calls)
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            final = failure.kind in (ErrorKind.INVALID, ErrorKind.REFUSED, ErrorKind.NOT_FOUND)
            if final or time.monotonic() - started > ORDER_SECONDS_MAX:
                raise LocalRunError(f"order {planned.key} was not placed: {failure}") from error
            await asyncio.sleep(REPEAT_SECONDS)


async def _repeat_all(target: str, ended: Sequence[Ended]) -> int:
    """Send every request once more. Returns how many got another order than the first time."""
    async with open_channel(target, caller="demo") as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        again = await asyncio.gather(*(_place(stub, one.planned) for one in ended))
    return sum(first.order != second.order for first, second in zip(ended, again, strict=True))


async def _tell_a_story(target: str, ended: Sequence[Ended], console: Console) -> None:
    """The tree of one order that went furthest before it was undone."""
    undone = max(ended, key=lambda one: (one.order.reason.code == "COUNTRY_NOT_SERVED", one.seconds))
    async with open_channel(target, caller="demo") as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        request = pb.GetOrderRequest(merchant_id=undone.order.merchant_id, order_id=undone.order.order_id)
        response = await stub.GetOrder(request)
    console.print("[bold]The story of one order that was undone[/bold]")
    console.print(order_tree(response.order, response.saga))


def _conclude(console: Console, ended: Sequence[Ended], changed: int, report: Report, seconds: float) -> int:
    console.print()
    console.print(_outcomes(ended))
    console.print()
    for line in report.lines:
        mark = "[green]holds   [/green]" if line.ok else "[red]VIOLATED[/red]"
        console.print(f"  {mark} {line.number:>2}  {line.sentence}")
        for offence in line.first:
            console.print(f"               {offence}")
    repeats = "[green]holds   [/green]" if not changed else "[red]VIOLATED[/red]"
    console.print(
        f"  {repeats}  +  every key, sent again, returned the same order ({changed} of {len(ended)} did not)\n"
    )
    wrong = [one for one in ended if not one.as_it_must]
    for one in wrong[:10]:
        console.print(
            f"  [red]{one.planned.key} ended {state_name(one.order.state)} {one.order.reason.code}[/red]"
        )
    console.print(
        f"{len(ended)} orders in {seconds:.1f} s ({len(ended) / seconds:.0f} a second, crashes and takeovers included; "
        "`make bench` measures the speed)"
    )
    good = report.ok and report.settled and not changed and not wrong
    console.print(
        "[bold green]The money is right.[/bold green]" if good else "[bold red]Something is wrong.[/bold red]"
    )
    return 0 if good else 1


def _outcomes(ended: Sequence[Ended]) -> Table:
    """What became of each kind."""
    table = Table(title="What became of the orders", title_justify="left")
    for heading in ("kind", "orders", "placed", "undone", "reasons", "calls repeated"):
        table.add_column(heading, justify="left" if heading in ("kind", "reasons") else "right")
    for kind in KINDS:
        these = [one for one in ended if one.planned.kind is kind]
        states = Counter(state_name(one.order.state) for one in these)
        reasons = Counter(one.order.reason.code for one in these if one.order.reason.code)
        table.add_row(
            kind.name,
            str(len(these)),
            str(states["COMPLETED"]),
            str(states["COMPENSATED"]),
            ", ".join(f"{reason} {count}" for reason, count in reasons.items()),
            str(sum(one.calls - 1 for one in these)),
        )
    return table
