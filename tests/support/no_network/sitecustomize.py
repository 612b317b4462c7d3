"""Python runs this file at its start where its folder is on PYTHONPATH: what is not on this machine cannot be had."""

import socket

connect = socket.socket.connect


def local_only(self, address):
    if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
        raise RuntimeError(f"a tutorial asked the network for {address[0]}")
    return connect(self, address)


socket.socket.connect = local_only
