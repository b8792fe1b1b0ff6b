"""Is history as it was written? Reads payment's database and its checkpoints, and names what was changed.

Four things are held against each other, each of which somebody might have laid hands on:

* `payments`: the events of each payment with each other (their chain, their numbers), and with the payment's row.
* `checkpoints`: the checkpoint files with their signatures, with each other, and with what the database has on record.
* `spool`: what the checkpoints have sealed with what the database has.

`verify` carries it out in one pass over either side, in bounded memory, and `report` is what it found. `proof` is about
one payment, for somebody who has neither the database nor the checkpoints.
"""
