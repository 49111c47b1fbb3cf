"""`cutlayer keys`: each party makes its own key and a request; the authority only signs."""

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.errors import CredentialError
from cutlayer.keys import authority as authorities
from cutlayer.keys import certificates

app = typer.Typer(help="Keys and certificates: request, sign, demo.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="The party's folder of keys.")]
AuthorityFolder = Annotated[Path, typer.Option("--authority", help="The authority's own folder.")]


@app.command()
def request(party: str, keys: Folder = Path("keys")) -> None:
    """Make PARTY's own private key, and the request that its authority signs."""
    path = certificates.make_request(keys, party)
    print(f"{path.with_suffix('.key')}  private key, mode 0600: it never leaves this machine")
    print(f"{path}  request: send it to the authority, which answers `cutlayer keys sign {path.name}`")


@app.command()
def sign(
    request: Annotated[Path, typer.Argument(help="NAME.csr, from a party that you know.")],
    authority: AuthorityFolder = Path("authority"),
    new: Annotated[bool, typer.Option("--new", help="Make the authority first, if there is none.")] = False,
    days: Annotated[int, typer.Option(min=1, help="How long the certificate is valid.")] = authorities.PARTY_DAYS,
) -> None:
    """Sign a party's request. Ask the party, by another way than the request came, whether it is theirs."""
    if not (authority / "ca.key").exists():
        if not new:
            raise CredentialError(f"there is no authority in {authority}: add --new to make one there")
        print(f"{authorities.make_authority(authority)}  new authority; its ca.key stays in {authority}, mode 0600")
    certificate = authorities.sign_request(request, authority, days)
    print(f"{certificate}  certificate, valid for {days} days: send it back with ca.crt")
    print(f"{certificates.public_pin(certificate)}  public key: pin it in the plan as parties.{request.stem}.key")


@app.command()
def demo(
    plan: Annotated[Path, typer.Argument(help="The plan whose parties get keys.")] = Path("plan.toml"),
    keys: Folder = Path("keys"),
) -> None:
    """Make all parties' keys in one folder, for trying things out on one machine."""
    from cutlayer.party.agreement import read_plan_terms

    parties = tuple(read_plan_terms(plan).parties)
    authorities.make_demo_kit(keys, parties)
    print(f"{keys}  keys and certificates of {', '.join(parties)}, and their authority")
    print("For trying things out only: whoever made this kit holds every private key. In earnest each party runs")
    print("`cutlayer keys request` on its own machine, and only the request travels.")
