"""The paymesh client: generated stubs, `open_channel`, typed errors and the `paymesh` command.

The packages `paymesh.<service>.v1` are generated from `proto/`; everything else is written by hand.
Importing this package does nothing: import the module that you need.
"""
