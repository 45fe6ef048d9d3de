"""splunk-handler: URL COUNT."""

import logging
import sys
import time
from urllib.parse import urlsplit

from splunk_handler import SplunkHandler

where = urlsplit(sys.argv[1])
handler = SplunkHandler(
    host=where.hostname, port=where.port, token="any", index="main", protocol="http", verify=False,
    source="sender", flush_interval=0.1, retry_count=10, retry_backoff=0.2, timeout=5,
)  # fmt: skip
log = logging.getLogger("sender")
log.setLevel(logging.INFO)
log.addHandler(handler)
for number in range(int(sys.argv[2])):
    log.info("event %d", number)
    time.sleep(0.001)
while handler.queue or handler.processing_payload:  # at exit it sends once, without its retries
    time.sleep(0.1)
logging.shutdown()
