"""The audit trail: what makes a changed, deleted, reordered or cut-off event show.

* `chain`: the events of a payment are chained. Each row carries a hash over itself and the hash before it, made where
  the event is appended; the payment's row keeps the last one.
* `merkle`: a tree of hashes over many events, and the path that proves one of them to be in it.
* `checkpoint`: events of all payments, sealed: the tree's root, signed and chained to the checkpoint before it.
* `folder`: checkpoints as files outside of the database.
* `sealer`: the loop that seals what is not sealed yet.

The first three are pure. `audit.verify` reads it all back; it uses the same functions, and the tests check those
against oracles of their own.
"""
