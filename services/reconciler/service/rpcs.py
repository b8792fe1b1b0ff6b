"""The service as the contract has it: runs here, cases in `cases`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from paymesh.reconciler.v1 import reconciler_pb2 as pb
from services.kit.checks import Checks, page_size
from services.kit.db import Database
from services.kit.errors import Invalid
from services.reconciler.config import ReconcilerConfig
from services.reconciler.reconciliation import Job, Report
from services.reconciler.runs import Runs
from services.reconciler.service.cases import CaseMethods, get_case, list_cases
from services.reconciler.service.messages import case_message, statement_message, summary_message
from services.reconciler.service.spool import Spool
from services.reconciler.store.statements import list_statements

NAME = "paymesh.reconciler.v1.ReconcilerService"
PROGRESS_SECONDS = 0.1
"""How often a caller is told where its run is."""
NUMBER_MAX = 2**63 - 1


class ReconcilerService:
    """See the contract, paymesh/reconciler/v1/reconciler.proto."""

    def __init__(self, database: Database, runs: Runs, config: ReconcilerConfig) -> None:
        self._database = database
        self._runs = runs
        self._config = config
        self._cases = CaseMethods(database, NAME)
        self.AssignCase = self._cases.assign.single
        self.ProposeResolution = self._cases.propose.single
        self.ApproveResolution = self._cases.approve.single
        self.RejectResolution = self._cases.reject.single

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        await self._cases.drain()

    async def Reconcile(
        self, requests: AsyncIterator[pb.ReconcileRequest], context: Any
    ) -> AsyncIterator[pb.ReconcileResponse]:
        spool = Spool(self._config.spool_folder, self._config.file_bytes_max)
        try:
            job = await spool.receive(requests)
            async for response in self._run(job):
                yield response
        finally:
            spool.close()

    async def _run(self, job: Job) -> AsyncIterator[pb.ReconcileResponse]:
        latest: list[pb.ReconcileResponse] = []

        def tell(phase: str, done: int, total: int, name: str) -> None:
            # From the run's thread: only the newest is worth telling.
            progress = pb.ReconcileResponse.Progress(phase=phase, done=done, total=total, name=name)
            latest[:] = [pb.ReconcileResponse(progress=progress)]

        run = asyncio.create_task(self._runs.run(job, tell))
        try:
            while not run.done():
                await asyncio.wait([run], timeout=PROGRESS_SECONDS)
                if latest:
                    yield latest.pop()
        finally:
            if not run.done():
                run.cancel()
                await asyncio.wait([run])
        for response in _answers(run.result()):
            yield response

    async def GetCase(self, request: pb.GetCaseRequest, context: Any) -> pb.GetCaseResponse:
        return await get_case(self._database, request)

    async def ListCases(self, request: pb.ListCasesRequest, context: Any) -> pb.ListCasesResponse:
        return await list_cases(self._database, request)

    async def ListStatements(
        self, request: pb.ListStatementsRequest, context: Any
    ) -> pb.ListStatementsResponse:
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.done()
        size = page_size(request.page_size)
        token = request.page_token
        if token and not (token.isascii() and token.isdigit() and len(token) <= 18):
            raise Invalid.field("page_token", "is not a token of this method")
        before = int(token) if token else NUMBER_MAX
        page = await list_statements(self._database, request.merchant_id, before, size + 1)
        return pb.ListStatementsResponse(
            statements=[statement_message(row) for row in page[:size]],
            next_page_token=str(page[size - 1].statement_no) if len(page) > size else "",
        )


def _answers(report: Report) -> list[pb.ReconcileResponse]:
    """The differences, then the summary."""
    answers = [
        pb.ReconcileResponse(
            difference=pb.ReconcileResponse.Difference(case=case_message(case), is_new=is_new)
        )
        for case, is_new in report.differences
    ]
    return [*answers, pb.ReconcileResponse(done=summary_message(report))]
