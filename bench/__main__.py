"""`python -m bench` is the same as `paymesh bench`."""

import typer

from bench.cli import bench

typer.run(bench)
