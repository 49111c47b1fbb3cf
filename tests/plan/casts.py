"""Parties for each topology: enough of them to draw what is special about it."""

from cutlayer.plan.topology import TOPOLOGIES, Cast, Topology

SHOPS = {"shop": "client", "bank-a": "client"}
CASTS: dict[str, Cast] = {
    "vanilla": Cast(roles={"a": "client", "b": "client", "lab": "server"}),
    "u_shaped": Cast(roles={"a": "client", "b": "client", "lab": "server"}),
    "vertical": Cast(roles=SHOPS | {"lab": "server"}, features=("shop", "bank-a", "lab")),
    "vertical_u_shaped": Cast(roles=SHOPS | {"bureau": "labels", "lab": "server"}, features=("shop", "bank-a")),
    "extended_vanilla": Cast(roles=SHOPS | {"hub": "middle", "lab": "server"}, features=("shop", "bank-a")),
    "multi_task": Cast(roles=SHOPS | {"lab": "server", "lab-2": "server"}, features=("shop", "bank-a")),
    "multi_hop": Cast(roles={"a": "client", "h": "hop", "i": "hop", "j": "hop", "lab": "server"}),
    "decoupled": Cast(roles={"a": "client", "lab": "server"}, upload_every=3),
    "semi_supervised": Cast(roles={"a": "client", "lab": "server"}),
    "bottleneck": Cast(roles={"a": "client", "b": "client", "lab": "server"}),
}
DRAWN: dict[str, Topology] = {name: make(CASTS[name]) for name, make in TOPOLOGIES.items()}
