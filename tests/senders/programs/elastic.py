"""Elasticsearch's own client, by its bulk helper, each document with an `_id`: URL COUNT."""

import sys
import time
from collections.abc import Iterator
from typing import Any

from elasticsearch import Elasticsearch, helpers


def documents() -> Iterator[dict[str, Any]]:
    for number in range(int(sys.argv[2])):
        time.sleep(0.001)
        yield {
            "_op_type": "create",
            "_index": "logs",
            "_id": f"sender-{number}",
            "_source": {"message": f"event {number}", "service.name": "sender"},
        }


client = Elasticsearch(f"{sys.argv[1]}/elasticsearch")
results = helpers.streaming_bulk(
    client, documents(), chunk_size=100, max_retries=20, initial_backoff=0.2, max_backoff=2,
    raise_on_error=False,
)  # fmt: skip
for taken, item in results:
    # A conflict: it was stored, and the answer to that was lost.
    assert taken or item["create"]["status"] == 409, item
