"""`logpipe snippets` as a command."""

import click

from logpipe.cli.common import CONTEXT, fail, local_url, url_option


@click.command("snippets", context_settings=CONTEXT)
@click.argument("name", default="", metavar="[NAME]")
@url_option
@click.option("--token", metavar="TOKEN", default="", help="One of the collector's INGEST_TOKENS.")
def command(name: str, url: str | None, token: str) -> None:
    """Print a ready configuration of another sender; without NAME, which there are.

    \b
      logpipe snippets vector --url https://logs.example --token s3cret > vector.yaml
    """
    from logpipe.snippets import SNIPPETS, UnfitError, filled, listed

    if not name:
        click.echo(listed())
        return
    if name not in SNIPPETS:
        fail(f"there is no snippet {name}; there are:\n{listed()}", 2)
    try:
        click.echo(filled(name, _base(url), token), nl=False)
    except UnfitError as error:
        fail(f"{name}: {error}", 2)


def _base(url: str | None) -> str:
    from logpipe.client.connection import base_url

    try:
        return base_url(url or local_url())
    except ValueError as error:
        fail(f"--url {url}: {error}", 2)
