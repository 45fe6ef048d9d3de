"""python-logstash-async over HTTP, its events kept in a file until they are taken: URL COUNT."""

import logging
import sqlite3
import sys
import tempfile
import time
from urllib.parse import urlsplit

from logstash_async.constants import constants
from logstash_async.handler import AsynchronousLogstashHandler
from logstash_async.transport import HttpTransport


class Transport(HttpTransport):  # type: ignore[misc]
    """Its own path: the transport knows a host and a port alone."""

    @property
    def url(self) -> str:
        return f"{super().url.rstrip('/')}/ingest/json"


constants.QUEUE_CHECK_INTERVAL = 0.2
constants.QUEUED_EVENTS_FLUSH_INTERVAL = 0.2
where = urlsplit(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    transport = Transport(where.hostname, where.port, timeout=5.0, ssl_enable=False)
    handler = AsynchronousLogstashHandler(
        where.hostname, where.port, database_path=f"{folder}/events.db", transport=transport
    )
    log = logging.getLogger("sender")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    for number in range(int(sys.argv[2])):
        log.info("event %d", number)
        time.sleep(0.001)
    worker = AsynchronousLogstashHandler._worker_thread
    stored = sqlite3.connect(f"{folder}/events.db")
    # At exit it tries once and keeps the rest for the program's next run.
    while not worker._queue.empty() or stored.execute("SELECT 1 FROM event LIMIT 1").fetchone():
        handler.flush()
        time.sleep(0.1)
    logging.shutdown()
