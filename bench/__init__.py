"""How fast is it? Drives a fresh mesh from a process of its own and says what it did, with all safety on.

Three rules keep the figures honest:

* What counts is in the database. After each phase the orders that are COMPLETED (the payments that are AUTHORIZED)
  are counted by SQL; a bench whose callers were told otherwise fails.
* Nothing is switched off. The server is asked for its settings first, and without fsync, synchronous commit and full
  page writes there is no report.
* Figures of two machines cannot be compared, ratios can: the same server's speed at plain inserts is measured in the
  same run.

`phases` says what is measured. `run` does it: for each phase it starts a load generator (`load`) and looks at the mesh
(`subject`) from outside meanwhile (`meters`). `report` puts it together, `cli` shows it.
"""
