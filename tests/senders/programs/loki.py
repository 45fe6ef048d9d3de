"""python-logging-loki, an event a request: URL COUNT. Prints the numbers that it could not send."""

import logging
import sys
import time

import logging_loki


class Handler(logging_loki.LokiHandler):  # type: ignore[misc]
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        print(record.getMessage().removeprefix("event "))
        self.emitter.close()


log = logging.getLogger("sender")
log.setLevel(logging.INFO)
log.addHandler(Handler(url=f"{sys.argv[1]}/loki/api/v1/push", tags={"app": "sender"}, version="1"))
for number in range(int(sys.argv[2])):
    log.info("event %d", number)
    time.sleep(0.001)
