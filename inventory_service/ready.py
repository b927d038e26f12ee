"""The container's health check: exit 0 when this container's service says that it is ready, and otherwise 1."""

import os
import sys
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from inventory_service.settings import SettingsError, listen_address

try:
    with closing(HTTPConnection(*listen_address(os.environ), timeout=4)) as connection:
        connection.request("GET", "/ready")
        response = connection.getresponse()
        sys.stdout.write(f"{response.read().decode()}\n")
        sys.exit(response.status != 200)
except (SettingsError, OSError, HTTPException) as error:
    sys.stdout.write(f"The service does not answer: {error}\n")
    sys.exit(1)
