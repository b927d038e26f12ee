"""Applies a folder of SQL files with psycopg2 and nothing more: what no migration tool in Python can go below."""

import os
from pathlib import Path

import psycopg2

connection = psycopg2.connect(os.environ["DATABASE_URL"])
cursor = connection.cursor()
cursor.execute("SELECT to_regclass('floor_version')")
if cursor.fetchone() == (None,):
    cursor.execute("CREATE TABLE floor_version (version text NOT NULL)")
    cursor.execute("INSERT INTO floor_version VALUES ('')")
cursor.execute("SELECT version FROM floor_version")
((current,),) = cursor.fetchall()
connection.commit()
for name in sorted(os.listdir("revisions")):  # noqa: PTH208  # as lean as can be
    if name > current:
        cursor.execute(Path("revisions", name).read_text())
        cursor.execute("UPDATE floor_version SET version = %s", (name,))
        connection.commit()
connection.close()
