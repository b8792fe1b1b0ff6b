"""A month of history as files that stand for themselves: written from payment's database, and verified without it.

An archive is a folder, `2026-09`, about the payments that began in that month, with all that has happened to them:

* `events.parquet` and `entries.parquet`: the rows, in the order of their keys, as any program reads them.
* `checkpoints`: the checkpoints that sealed the events, as they are.
* `manifest.json`: what the month has, the hash of every file, signed.

The checkpoints prove every event, and name one that is missing; the ledger entries follow from the events. The manifest
shows that nothing was left out together with its checkpoint.

`month` says which payments a month has, `manifest` and `files` are the form, `export` writes, `verify` reads it all
back, and both have `sealed` in common.
"""
