"""OpenTelemetry's own SDK, by its exporter for protobuf over HTTP: URL COUNT."""

import logging
import sys
import time

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

provider = LoggerProvider(Resource.create({"service.name": "sender"}))
exporter = OTLPLogExporter(endpoint=f"{sys.argv[1]}/v1/logs", timeout=20)
provider.add_log_record_processor(
    BatchLogRecordProcessor(exporter, schedule_delay_millis=100, max_export_batch_size=100)
)
log = logging.getLogger("sender")
log.setLevel(logging.INFO)
log.addHandler(LoggingHandler(logger_provider=provider))
for number in range(int(sys.argv[2])):
    log.info("event %d", number)
    time.sleep(0.001)
provider.force_flush()
provider.shutdown()
