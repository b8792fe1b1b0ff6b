"""What is kept of a run."""

from __future__ import annotations

from google.protobuf.json_format import MessageToJson

from paymesh.reconciler.v1 import events_pb2
from services.reconciler.reconciliation import Report
from services.reconciler.service.messages import summary_message
from services.reconciler.store.connection import Connection
from services.reconciler.store.reports import insert_announcement, insert_run


def keep_run(connection: Connection, report: Report) -> None:
    """Record and announce a run, in its own transaction; of a dry run nothing is kept."""
    if not report.job.keep:
        return
    summary = summary_message(report)
    merchant_id = report.job.merchant_id
    insert_run(connection, merchant_id, report.run_id, report.job.until, MessageToJson(summary, indent=None))
    event = events_pb2.ReconciliationEnded(summary=summary)
    name = event.DESCRIPTOR.full_name
    insert_announcement(connection, merchant_id, report.run_id, name, event.SerializeToString())
