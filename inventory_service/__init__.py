"""The inventory service: parent items and child items over HTTP, on PostgreSQL."""
