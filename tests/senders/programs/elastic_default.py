"""Elasticsearch's own client, by its bulk helper with nothing but its defaults: URL COUNT."""

import sys
import time
from collections.abc import Iterator
from typing import Any

from elasticsearch import Elasticsearch, helpers


def documents() -> Iterator[dict[str, Any]]:
    for number in range(int(sys.argv[2])):
        time.sleep(0.001)
        yield {"_index": "logs", "_source": {"message": f"event {number}"}}


client = Elasticsearch(f"{sys.argv[1]}/elasticsearch")
helpers.bulk(client, documents(), chunk_size=100)
