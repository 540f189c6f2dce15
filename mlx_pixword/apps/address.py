"""Addresses to listen on, and what is said where that fails."""

import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import NoReturn

from ..common.errors import PixWordError


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(listen: Callable[[], object], host: str, port: int) -> None:
    """Listen; a port that is taken or an address that is not here raises `PixWordError`."""
    try:
        listen()
    except OSError as error:
        refuse(error, host, port)


def refuse(error: OSError, host: str, port: int) -> NoReturn:
    """Say why an address cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        raise PixWordError(f"--port {port} on {host} is taken by another program; choose another") from error
    raise PixWordError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from error


def free_port(host: str, port: int) -> int:
    """A port that can be listened on, ``port`` itself unless that is 0; raises `PixWordError` if it is taken."""
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind(lambda: probe.bind((host, port)), host, port)
        return int(probe.getsockname()[1])


def family_of(host: str) -> socket.AddressFamily:
    """IPv6 for an address with colons, else IPv4."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
