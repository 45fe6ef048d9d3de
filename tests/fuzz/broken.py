"""logpipe with a receiver that is broken on purpose: what a run must find."""

from logpipe.cli import main
from logpipe.collector.receivers import table
from logpipe.collector.receivers.protocol import Batch, Protocol, Request


def _careless(protocol: Protocol) -> Protocol:
    """Believes that every body is UTF-8, as no test with good bodies would notice."""

    def parse(request: Request) -> Batch:
        if "\ufffd" in request.body.decode(errors="replace"):
            raise KeyError("text")
        return protocol.parse(request)

    return protocol._replace(parse=parse)


if __name__ == "__main__":
    careless = _careless(table.PROTOCOLS["gelf"])
    table.PROTOCOLS = {**table.PROTOCOLS, "gelf": careless}
    main()
