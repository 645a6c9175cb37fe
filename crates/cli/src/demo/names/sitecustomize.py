"""Python runs this before any program, where its directory is in PYTHONPATH.

The system's resolver need not know names below `localhost` (RFC 6761 §6.3 asks for it); this stands for lines in /etc/hosts.
"""

import socket


def ours(host):
    return isinstance(host, str) and (host == "localhost" or host.endswith(".localhost"))


resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **named: resolve("127.0.0.1" if ours(host) else host, *rest, **named)
