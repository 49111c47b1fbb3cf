"""`cutlayer keys`: each party makes its own keys and a request; the authority only signs; the plan pins."""

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.errors import CredentialError
from cutlayer.keys import authority as authorities
from cutlayer.keys import certificates

app = typer.Typer(help="Keys and certificates: request, sign, pin, demo.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="The party's folder of keys.")]
AuthorityFolder = Annotated[Path, typer.Option("--authority", help="The authority's own folder.")]

_MADE = {
    ".key": "private, mode 0600: it never leaves this machine",
    ".csr": "request: send it to the authority, which answers `cutlayer keys sign {}`",
    ".pub": "public keys for sealed messages: send them along, to be pinned in the plan with `cutlayer keys pin`",
}


@app.command()
def request(party: str, keys: Folder = Path("keys")) -> None:
    """Make PARTY's own private keys, and the request that its authority signs. Adds what is missing, keeps the rest."""
    for path in certificates.complete_request(keys, party):
        print(f"{path}  {_MADE[path.suffix].format(path.name)}")


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
    print(f"`cutlayer keys pin` does that, and pins the keys in the {request.stem}.pub that came along")


@app.command()
def pin(
    plan: Annotated[Path, typer.Argument(help="The plan, which is changed.")] = Path("plan.toml"),
    keys: Annotated[Path, typer.Option(help="The folder with the parties' NAME.crt and NAME.pub.")] = Path("keys"),
    replace: Annotated[bool, typer.Option("--replace", help="Change pins that the plan has already.")] = False,
) -> None:
    """Write the parties' public keys into a plan: those of NAME.crt and NAME.pub, from parties that you know."""
    from cutlayer.keys.pinning import pin_keys

    pins = pin_keys(plan, keys, replace=replace)
    for party in pins:
        told = [
            f"pinned {', '.join(party.written)}" if party.written else "",
            f"pinned already {', '.join(party.equal)}" if party.equal else "",
            f"{keys} has no {' and no '.join(party.missing)}" if party.missing else "",
        ]
        print(f"{party.party}: {'; '.join(filter(None, told))}")
    if any(party.written for party in pins):
        print(f"{plan} is a new plan: all accept it again, and compare its digest")
    else:
        print(f"{plan} is unchanged")


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
    print("`cutlayer keys request` on its own machine, and only the request and the public keys travel.")
    print("What parties tell each other by way of the conductor is sealed (weights that move, the order of rows under")
    print("joint, what goes from hop to hop): for such plans,")
    print(f"`cutlayer keys pin {plan} --keys {keys}` puts the public keys into the plan.")
