"""The container's health check: exit 0 when this container's service says that it is ready, and otherwise 1."""

import os
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

from inventory_service.settings import SettingsError, listen_address


def main() -> int:
    """Ask ``/ready`` where HOST and PORT say that the service listens, and print what it answers within 4 seconds."""
    try:
        host, port = listen_address(os.environ)
        if ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        with closing(HTTPConnection(host, port, timeout=4)) as connection:
            connection.request("GET", "/ready")
            response = connection.getresponse()
            status, answer = response.status, response.read().decode()
    except (SettingsError, OSError, HTTPException) as error:
        status, answer = 0, f"The service does not answer: {error}"
    sys.stdout.write(f"{answer}\n")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
