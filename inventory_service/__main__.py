"""Run the service: ``python -m inventory_service``."""

import os
import signal
import sys

import uvicorn
from alembic.util import CommandError
from sqlalchemy import create_engine

from inventory_service.api import create_app
from inventory_service.database import Connector
from inventory_service.settings import SettingsError, listen_address

# The kernel ignores SIGTERM for a container's first process unless it is handled, and uvicorn does so late.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    host, port = listen_address(os.environ)
    connect = Connector(os.environ)
    engine = create_engine("postgresql+psycopg2://", creator=connect, pool_pre_ping=True, hide_parameters=True)
    app = create_app(engine)
except (SettingsError, CommandError) as error:
    sys.stderr.write(f"The service can't start: {error}\n")
    sys.exit(2)
# Kept alive for longer than a load balancer's 60 seconds, so that it never sends a request into a closing
# connection; given up before ECS kills, 30 seconds after SIGTERM.
uvicorn.run(app, host=host, port=port, access_log=False, timeout_keep_alive=75, timeout_graceful_shutdown=25)
