"""All commands in one place."""

from typing import Annotated

import typer

from cutlayer.cli import audit, keys, plan, project, running, using
from cutlayer.cli.advise import advise
from cutlayer.cli.align import align
from cutlayer.cli.attack import attack
from cutlayer.cli.deal import deal
from cutlayer.cli.demo import demo
from cutlayer.cli.ping import ping

app = typer.Typer(
    name="cutlayer",
    help="Split learning: one network, cut into segments; each segment lives with one party.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys.app, name="keys")
plan.app.command()(advise)
app.add_typer(plan.app, name="plan")
app.add_typer(audit.app, name="audit")
app.command()(demo)
app.command(name="init")(project.init)
app.command()(deal)
app.command()(align)
app.command()(ping)
app.command()(attack)
app.command()(plan.accept)
app.command()(running.run)
app.command()(running.simulate)
app.command()(using.predict)
app.command()(using.export)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Split learning: one network, cut into segments; each segment lives with one party."""
