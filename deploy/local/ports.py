"""Ports of the loopback address: which are taken, which are free, which answer."""

import http.client
import secrets
import socket

from deploy.local.errors import LocalRunError
from deploy.local.mesh import LOOPBACK, Plan

# Below the range from which systems give ports to outgoing connections, which would come and go under us.
FREE_BASE_PORTS = range(10_000, 30_000, 10)
FREE_BASE_ATTEMPTS = 200


def free_base_port(layout: Plan) -> int:
    """A base port on which a mesh laid out like that finds all its ports free at this moment."""
    offsets = {port - layout.base_port for instance in layout.instances for port in instance.ports}
    offsets |= {layout.postgres_port - layout.base_port, layout.valkey_port - layout.base_port}
    for _ in range(FREE_BASE_ATTEMPTS):
        base_port = secrets.choice(FREE_BASE_PORTS)
        if all(port_is_free(base_port + offset) for offset in offsets):
            return base_port
    raise LocalRunError("no range of free ports was found for a mesh")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on that port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port nobody listens on at this moment; another process may still take it before we do."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers_http(address: str, path: str, timeout_seconds: float) -> bool:
    """Whether a GET of that path is answered with 200."""
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
