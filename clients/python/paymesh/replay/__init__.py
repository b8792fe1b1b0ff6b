"""Places the invoices of a shop's CSV export as orders.

`rows` cuts the file into rows, `invoices` turns rows into invoices or rejections, `plan` turns invoices into
requests with their keys: all pure. `run` sends the requests, `summary` adds everything up.
"""
