"""Do the books agree? Reads every database of the mesh, and the bank's, and says which invariants hold.

Every service keeps its promises alone; this package is the one place that looks at all of them at once. It is an
operator's tool: it reads databases that are not its own, with their owners' roles, and nothing in the mesh knows it.
It never writes: every transaction is READ ONLY.

What is authoritative: the databases, nothing else. No process is asked, so a mesh that is down can be audited too.

How one moment is seen in databases that know no common moment:

* Each database is read in one snapshot (REPEATABLE READ), and callers' snapshots are opened before those of whom they
  call: edge, orchestrator, then inventory, shipping and reconciler, then payment, then fraud and bank. Whatever a
  caller had written down as settled when it was read was committed at the callee by then, so the callee's later
  snapshot must show it.
* Work under way is not judged. A saga that has not ended and a payment that waits for the processor may rightly differ
  from what others have in their books; they are counted as "in flight".
* The other direction (nothing at a callee that its caller does not know, nothing settled that has moved since) cannot
  be read off a snapshot that is older than the callee's. So a suspect is looked at again in the caller's database as it
  is now. An intent is committed before the call that it is for, hence: if the caller's row is the same as in the
  snapshot, or is missing still, nothing was under way and the suspect offends; if it has changed, it was in flight.

So an audit may run at any time, beside any load, and what it calls violated is violated. To leave nothing unjudged, let
the mesh come to rest (`--wait`).

How a million orders fit: a database's own sums are done by that database. What has to be compared row by row is
streamed through server-side cursors in the byte order of its key and merged, so that memory does not grow with the
books.

`invariants` is the list, `run.run_audit` checks it, `cli` shows it.
"""
