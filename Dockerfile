# One image for two commands: the inventory service, and the migration runner with the migrations.
FROM python:3.13.7-slim-trixie AS base
# The official image comes without bytecode, and at run time none can be written: compiled here, a start takes a third.
RUN python -m compileall -q /usr/local/lib/python3.13

FROM base AS build
COPY requirements-image.txt .
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r requirements-image.txt

FROM base
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY alembic.ini .
COPY migrations migrations
COPY migration_runner migration_runner
COPY inventory_service inventory_service
# The manifest: at the target a run then ends without a look at the revision files.
RUN python -m compileall -q . && python -m migration_runner.revisions alembic.ini
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# For libpq: trust only the server that the RDS authorities have certified under the name that was connected to.
ENV PGSSLMODE=verify-full PGSSLROOTCERT=/app/migration_runner/rds-global-bundle.pem
# ECS gives the task's volume at /tmp the permissions that this folder has here; any other it would let only root write to.
VOLUME /tmp
USER 10001:10001
EXPOSE 8080
CMD ["python", "-m", "inventory_service"]
