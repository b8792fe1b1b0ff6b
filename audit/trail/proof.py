"""A proof that a payment's events were written as they are told: for somebody who has neither the database nor the
checkpoints, only the public key.

It holds the payment's events, which chain to each other, and for each the path from it to the root of a checkpoint,
whose header is signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.report import AuditError
from audit.snapshot import open_snapshot
from audit.trail.payments import History, StoredEvent
from services.payment.trail.chain import GENESIS
from services.payment.trail.checkpoint import Entry, NoCheckpoint, faults_of, read_header
from services.payment.trail.folder import CheckpointFolder
from services.payment.trail.merkle import leaf_hash, paths_of, root_by_path

FORMAT = "paymesh proof 1"

_EVENTS = """
SELECT version, type, data::text, (extract(epoch FROM recorded_at) * 1000000)::bigint, hash
FROM payment_events WHERE merchant_id = %(merchant)s AND payment_id = %(payment)s ORDER BY version
"""


async def prove(dsn: str, folder: Path, merchant_id: str, payment_id: str) -> dict[str, Any]:
    """The proof for one payment, as JSON. Events that are not sealed yet are left out. Raises AuditError when there
    is nothing to prove, or the events are not those that were sealed."""
    async with open_snapshot("payment", dsn) as snapshot:
        rows = await snapshot.fetch(_EVENTS, {"merchant": merchant_id, "payment": payment_id})
    return _prove(folder, merchant_id, payment_id, [StoredEvent(*row) for row in rows])


def prove_from_archive(folder: Path, merchant_id: str, payment_id: str) -> dict[str, Any]:
    """The same from the archives in a folder, without a database. Raises AuditError."""
    from audit.archive.files import (  # pyarrow: only who has an archive waits for it
        CHECKPOINTS,
        EVENTS,
        find_events,
    )
    from audit.archive.verify import archives_in

    events: list[StoredEvent] = []
    for archive in archives_in(folder):
        events = [StoredEvent(*row) for row in find_events(archive / EVENTS, merchant_id, payment_id)]
        if events:
            return _prove(archive / CHECKPOINTS, merchant_id, payment_id, events)
    return _prove(folder, merchant_id, payment_id, events)


def _prove(folder: Path, merchant_id: str, payment_id: str, events: list[StoredEvent]) -> dict[str, Any]:
    if not events:
        raise AuditError(f"merchant {merchant_id} has no payment {payment_id}")
    hashes = History(merchant_id, payment_id, None, events).hashes()
    wanted = {
        Entry(event.recorded_us, merchant_id, payment_id, event.version, hashed.hex()): event
        for event, hashed in zip(events, hashes, strict=True)
    }
    checkpoints, found = _find(CheckpointFolder(folder), wanted)
    told = []
    for entry, event in wanted.items():
        if entry not in found:
            break
        told.append(
            {
                "version": event.version,
                "type": event.type,
                "data": event.data_json,
                "recorded_us": event.recorded_us,
                **found[entry],
            }
        )
    if not told:
        raise AuditError(f"no event of {payment_id} is sealed yet, or none is what was sealed: see `verify`")
    return {
        "format": FORMAT,
        "merchant_id": merchant_id,
        "payment_id": payment_id,
        "events": told,
        "events_unsealed": len(events) - len(told),
        "checkpoints": checkpoints,
    }


def _find(
    folder: CheckpointFolder, wanted: Mapping[Entry, StoredEvent]
) -> tuple[dict[str, str], dict[Entry, dict[str, Any]]]:
    """The headers of the checkpoints that have wanted entries, and where in them these are."""
    lines = {entry.line(): entry for entry in wanted}
    times = [entry.recorded_us for entry in wanted]
    headers: dict[str, str] = {}
    found: dict[Entry, dict[str, Any]] = {}
    try:
        for number in folder.numbers():
            header = folder.header(number)
            if not any(header.since_us <= time <= header.through[0] for time in times):
                continue
            there = list(folder.lines(number))
            places = {place: lines[line] for place, line in enumerate(there) if line in lines}
            paths = paths_of([leaf_hash(line) for line in there], places) if places else {}
            for place, entry in places.items():
                path = [one.hex() for one in paths[place]]
                found[entry] = {"checkpoint": number, "place": place, "path": path}
                headers[str(number)] = header.line().decode()
    except FileNotFoundError as error:
        raise AuditError(f"there are no checkpoints in {folder.path}") from error
    except NoCheckpoint as error:
        raise AuditError(f"a checkpoint in {folder.path} {error}") from error
    return headers, found


def check(proof: Any, keys: Mapping[str, Ed25519PublicKey]) -> list[str]:
    """What is wrong with a proof, as sentences; nothing when it proves what it says."""
    try:
        if proof["format"] != FORMAT:
            return [f"this is no {FORMAT}"]
        return _check(proof, keys)
    except (KeyError, TypeError, ValueError, AttributeError, NoCheckpoint) as error:
        return [f"this is no whole {FORMAT}: {type(error).__name__} {error}"]


def _check(proof: Any, keys: Mapping[str, Ed25519PublicKey]) -> list[str]:
    faults: list[str] = []
    headers = {}
    for number, line in proof["checkpoints"].items():
        headers[number] = header = read_header(line.encode())
        faults += [f"checkpoint {number} {what}" for what in faults_of(header, None, keys)]
        if str(header.number) != number:
            faults.append(f"checkpoint {number} is checkpoint {header.number}")
    previous = GENESIS
    if not proof["events"]:
        faults.append("there are no events")
    for version, told in enumerate(proof["events"], start=1):
        event = StoredEvent(told["version"], told["type"], told["data"], told["recorded_us"], None)
        if event.version != version:
            faults.append(f"event {event.version} stands where event {version} was due")
        previous = event.hash_behind(previous, proof["merchant_id"], proof["payment_id"], event.version)
        entry = Entry(
            event.recorded_us, proof["merchant_id"], proof["payment_id"], event.version, previous.hex()
        )
        header = headers[str(told["checkpoint"])]
        path = [bytes.fromhex(one) for one in told["path"]]
        root = root_by_path(leaf_hash(entry.line()), told["place"], header.events, path)
        if root is None or root.hex() != header.root:
            faults.append(f"event {event.version} is not what checkpoint {header.number} has sealed")
    return faults
