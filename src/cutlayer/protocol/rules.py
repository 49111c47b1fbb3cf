"""The rules of the protocol as data: what each is called, and which message may follow which."""

from cutlayer.protocol.messages import Backward, Bye, Forward, Hello, Report, Saved, Sealed, State, Turn, Welcome

RULES: dict[str, str] = {
    "no-message": "a frame's header is one of the messages of this version",
    "wrong-version": "both ends speak the same version of the protocol",
    "wrong-plan": "both ends run the same plan, to the last byte",
    "wrong-task": "both ends train, or both predict",
    "wrong-name": "a party speaks only for itself",
    "out-of-order": "a message comes only when the table of moves allows it",
    "unknown-edge": "tensors travel only on edges of the topology",
    "not-your-edge": "an activation comes from its edge's source, a gradient from its edge's target",
    "not-my-edge": "a message goes to the party at the other end of its edge",
    "unexpected-ticket": "a ticket belongs to an open turn and to the steps that are due",
    "duplicate": "each activation and each gradient comes once",
    "gradient-before-activation": "a gradient answers an activation that was sent",
    "no-gradient-here": "raw data is not answered",
    "wrong-shape": "dtype and shape are those of the plan for this ticket's rows",
    "wrong-size": "what a codec made of a tensor comes where the plan has one, and is not too long",
    "wrong-normaliser": "a loss normaliser is finite, positive (0 for a part of a step), the same on all ways back",
    "wrong-mark": "an activation bears a mark of its rows where several parties bring columns, and only there",
    "wrong-seal": "a sealed message goes once, in order, between two parties that the topology connects",
    "wrong-rows": "the conductor knows the rows that this party announced, and every member once",
    "wrong-report": "a party reports each turn once, and the sums of the losses that it holds, as a loss has them",
    "wrong-state": "a state goes once, from whom and to whom the receiver's own schedule says, and is not too large",
    "wrong-save": "a party says once that its part of a save is written, of the one that is due",
    "wrong-members": "who takes part follows from the log, and the save from what this party has",
    "wrong-payload": "an encoded tensor is what its codec would have made",
    "not-finite": "tensors are finite, and not absurdly large",
    "off-schedule": "a turn is what the receiver's own schedule says",
    "early-bye": "the end comes after the last turn",
}

Kinship = str
"""What a peer is to me: my `conductor`, a `member` whose conductor I am, or a `fellow` to whom I have no link."""
Standing = str

MOVES: dict[tuple[Kinship, Standing, type], Standing] = {
    # (`Refuse`, and a `Bye` with a reason, may come at any time: anyone may give up.)
    # what a member may say to its conductor
    ("member", "connected", Hello): "joined",
    ("member", "running", Forward): "running",
    ("member", "running", Backward): "running",
    ("member", "running", State): "running",
    ("member", "running", Sealed): "running",
    ("member", "running", Report): "running",
    ("member", "running", Saved): "running",
    ("member", "waiting", Hello): "waiting",
    ("member", "closing", Bye): "gone",
    ("member", "away", Hello): "closing",
    # what the conductor may say to a member
    ("conductor", "connected", Hello): "joined",
    ("conductor", "joined", Welcome): "running",
    ("conductor", "running", Turn): "running",
    ("conductor", "running", Forward): "running",
    ("conductor", "running", Backward): "running",
    ("conductor", "running", State): "running",
    ("conductor", "running", Sealed): "running",
    ("conductor", "running", Report): "running",
    ("conductor", "running", Saved): "running",
    ("conductor", "running", Bye): "gone",
    # what a fellow may say, sealed, by the conductor
    ("fellow", "running", Forward): "running",
    ("fellow", "running", Backward): "running",
}
