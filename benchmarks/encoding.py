"""What codecs cost and save: bytes and accuracy on MNIST, and the speed of encoding and decoding.

    python benchmarks/encoding.py --mnist FILE.npz [--only WORD ...] [--epochs 3] [--rows 60000] [--seed 0] [--json]
    python benchmarks/encoding.py --speed [--mib 0.77 4 16] [--only WORD ...] [--json]

FILE has `x_train y_train x_test y_test`, uint8 images. Two networks of two convolutions and two linear layers are cut
after the second convolution's ReLU: `narrow`, where 64×7×7 numbers of each image cross and as many come back, the cut
of the workload W1; and `wide`, with 64×12×12, as many as cross in the network of FedLite's experiments. Bytes are all
payloads of training, both ways, 200 bytes of header for each message (an activation and a gradient for each batch of
256), and 8 bytes of label for each row. Of two accuracies `coded` is that of the model as it is used: test activations
cross by the same codec; `plain` is that of the model joined without it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.codec.feedback import Coder
from cutlayer.codec.registry import build
from cutlayer.codec.sections import shape_of
from cutlayer.party.memory import keep_freed_memory
from cutlayer.plan.terms import Method, Option

HEADER_BYTES = 200
LABEL_BYTES = 8
BATCH = 256
CUT_ELEMENTS = {"narrow": 64 * 7 * 7, "wide": 64 * 12 * 12}
LR = 2e-3


def stage(name: str, **options: Option) -> Method:
    return Method(name=name, options=options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Codecs of both directions, with their feedback."""

    word: str
    forward: Sequence[Method] = ()
    backward: Sequence[Method] = ()
    forward_feedback: str = "none"
    backward_feedback: str = "none"
    cut: str = "narrow"

    def both(self) -> tuple[Coder, Coder]:
        """Coders of the activations and of the gradients."""
        return (
            Coder(codec=build(self.forward), feedback=self.forward_feedback),
            Coder(codec=build(self.backward), feedback=self.backward_feedback),
        )


def topk(share: float, **options: Option) -> Method:
    return stage("topk", share=share, **options)


def lean(share: float) -> Sequence[Method]:
    """For gradients: most are small, since most rows are classed well."""
    return (topk(share, across="tensor"), stage("int8", scale="tensor"), stage("zstd"))


def parts(part: int, strength: float = 0.0) -> Sequence[Method]:
    """For activations: most parts are zero after a ReLU, so that their numbers pack well."""
    return (stage("pq", part=part, words=16, strength=strength), stage("half"), stage("zstd", level=9))


SETTINGS = [
    Setting(word="raw"),
    Setting(word="half", forward=[stage("half")], backward=[stage("half", kind="bf16")]),
    Setting(word="fp8", forward=[stage("fp8")], backward=[stage("fp8")]),
    Setting(word="int8", forward=[stage("int8")], backward=[stage("int8")]),
    Setting(word="int4", forward=[stage("int4")], backward=[stage("int4", rounding="random")]),
    Setting(word="sign", forward=[stage("sign")], backward=[stage("sign", scale="row")], backward_feedback="channel"),
    Setting(word="topk-10", forward=[topk(0.1)], backward=[topk(0.1)]),
    Setting(word="topk-1", forward=[topk(0.01)], backward=[topk(0.01)]),
    Setting(word="topk-10-masked", forward=[topk(0.1, masked=True)], backward=[topk(0.1)]),
    Setting(word="topk-1-fed-back", forward=[topk(0.01)], backward=[topk(0.01)], backward_feedback="channel"),
    Setting(
        word="topk-1-masked-fed-back",
        forward=[topk(0.01, masked=True)],
        backward=[topk(0.01)],
        backward_feedback="channel",
    ),
    Setting(
        word="topk-1-fed-back-by-sample",
        forward=[topk(0.01)],
        backward=[topk(0.01)],
        forward_feedback="sample",
        backward_feedback="sample",
    ),
    Setting(word="gradient-topk-10", backward=[topk(0.1)]),
    Setting(word="gradient-topk-1", backward=[topk(0.01)]),
    Setting(word="gradient-topk-1-fed-back", backward=[topk(0.01)], backward_feedback="channel"),
    Setting(
        word="gradient-topk-1-across-fed-back",
        backward=[topk(0.01, across="tensor")],
        backward_feedback="channel",
    ),
    Setting(
        word="random-topk",
        forward=[stage("random_topk", share=0.01, alpha=0.1)],
        backward=[topk(0.01)],
        backward_feedback="channel",
    ),
    Setting(
        word="splitfc",
        forward=[stage("feature_dropout", share=0.1), stage("adaptive", bits=2.0)],
        backward=[topk(0.01), stage("int8", scale="row")],
        backward_feedback="channel",
    ),
    Setting(
        word="pq",
        forward=[stage("pq", part=7, words=32)],
        backward=[stage("pq", part=7, words=32)],
    ),
    Setting(word="chain", forward=parts(14), backward=lean(0.003), backward_feedback="channel"),
    Setting(word="chain-corrected", forward=parts(14, 1e-5), backward=lean(0.003), backward_feedback="channel"),
    Setting(word="wide-raw", cut="wide"),
    Setting(word="wide-chain", forward=parts(16), backward=lean(0.0015), backward_feedback="channel", cut="wide"),
    Setting(
        word="wide-chain-corrected",
        forward=parts(12, 3e-6),
        backward=lean(0.002),
        backward_feedback="channel",
        cut="wide",
    ),
]


@dataclass(kw_only=True, slots=True)
class Score:
    """`plain`: accuracy of the joined model; `coded`: where test activations cross by the same codec."""

    word: str
    forward: str
    backward: str
    plain: float
    coded: float
    sent: int
    came: int
    total: int
    times_fewer: float
    seconds: float


def network(cut: str) -> tuple[nn.Sequential, nn.Sequential]:
    """The client's part, from `[B, 1, 28, 28]`, and the server's, to `[B, 10]`."""
    torch.manual_seed(0)
    if cut == "narrow":
        bottom = [nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 64, 3, stride=2, padding=1)]
        top = [nn.Flatten(), nn.Linear(3136, 64)]
    else:
        bottom = [nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 64, 3, padding=1)]
        top = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2304, 64)]
    return nn.Sequential(*bottom, nn.ReLU()), nn.Sequential(*top, nn.ReLU(), nn.Linear(64, 10))


def train(setting: Setting, data: tuple[Tensor, Tensor, Tensor, Tensor], epochs: int, seed: int) -> Score:
    """Train both parts, with everything that crosses encoded and decoded."""
    start = time.perf_counter()
    x, y, x_test, y_test = data
    bottom, top = network(setting.cut)
    sender, answerer = setting.both()
    optimizers = [torch.optim.Adam(part.parameters(), lr=LR) for part in (bottom, top)]
    steps = epochs * -(-len(x) // BATCH)
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps) for optimizer in optimizers]
    order = torch.Generator().manual_seed(seed)
    sent = came = total = step = 0
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=order), BATCH):
            z = bottom(x[rows])
            encoded = sender.encode(z, seed=2 * step, rows=rows)
            arrived = sender.codec.decode(encoded.payload, shape_of(z)).requires_grad_()
            F.cross_entropy(top(arrived), y[rows]).backward()  # type: ignore[no-untyped-call]
            assert arrived.grad is not None
            answer = answerer.encode(arrived.grad, seed=2 * step + 1, rows=rows)
            gradient = answerer.codec.decode(answer.payload, shape_of(arrived))
            torch.autograd.backward(z, sender.codec.correct(gradient, encoded.kept))
            for each, schedule in zip(optimizers, schedules, strict=True):
                each.step()
                each.zero_grad()
                schedule.step()
            sent, came, step = sent + encoded.payload.numel(), came + answer.payload.numel(), step + 1
            total += encoded.payload.numel() + answer.payload.numel() + 2 * HEADER_BYTES + LABEL_BYTES * len(rows)
    plain, coded = accuracy(bottom, top, x_test, y_test, sender)
    return Score(
        word=setting.word, forward=sender.codec.name, backward=answerer.codec.name, plain=plain, coded=coded, sent=sent,
        came=came, total=total, times_fewer=raw_bytes(steps, epochs * len(x), setting.cut) / total,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def raw_bytes(steps: int, rows: int, cut: str) -> int:
    """What as many steps and rows have without a codec."""
    return steps * 2 * HEADER_BYTES + rows * (2 * CUT_ELEMENTS[cut] * 4 + LABEL_BYTES)


@torch.no_grad()
def accuracy(bottom: nn.Module, top: nn.Module, x: Tensor, y: Tensor, sender: Coder) -> tuple[float, float]:
    """Of the joined model, and where activations cross by the codec, without feedback."""
    right = [0, 0]
    for rows in torch.split(torch.arange(len(x)), BATCH):
        z = bottom(x[rows])
        arrived = sender.codec.decode(sender.codec.encode(z, seed=int(rows[0])).payload, shape_of(z))
        for at, given in enumerate((z, arrived)):
            right[at] += int((top(given).argmax(1) == y[rows]).sum())
    return right[0] / len(x), right[1] / len(x)


def mnist(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[N, 1, 28, 28]` from 0 to 1 and labels: of training, of the test."""
    with np.load(path, allow_pickle=False) as arrays:
        x, y, x_test, y_test = (torch.from_numpy(arrays[name]) for name in ("x_train", "y_train", "x_test", "y_test"))
    return x.float().div(255)[:, None], y.long(), x_test.float().div(255)[:, None], y_test.long()


@dataclass(kw_only=True, slots=True)
class Speed:
    """Of float32 bytes per second of encoding, of decoding, of both; and µs for each MiB of them. `copy`: of memcpy."""

    name: str
    mib: float
    payload_bytes: int
    encode_us_per_mib: float
    decode_us_per_mib: float
    both_gb_per_s: float
    copy_gb_per_s: float


def speed(chain: Sequence[Method], cut: str, mib: float, seconds: float = 0.5) -> Speed:
    """The quickest of all repeats within some seconds, since others use this machine too."""
    rows = max(1, round(mib * 2**20 / 4 / CUT_ELEMENTS[cut]))
    tensor = torch.randn(rows, 64, CUT_ELEMENTS[cut] // 64, generator=torch.Generator().manual_seed(0)).relu_()
    codec, shape, copy = build(chain), shape_of(tensor), torch.empty_like(tensor)
    payload = codec.encode(tensor, 0).payload
    copy_s = quickest(lambda: copy.copy_(tensor), seconds / 4)
    encode_s = quickest(lambda: codec.encode(tensor, 0), seconds)
    decode_s = quickest(lambda: codec.decode(payload, shape), seconds)
    unit = 1e6 / (tensor.nbytes / 2**20)
    return Speed(
        name=codec.name, mib=tensor.nbytes / 2**20, payload_bytes=payload.numel(), encode_us_per_mib=encode_s * unit,
        decode_us_per_mib=decode_s * unit, both_gb_per_s=tensor.nbytes / (encode_s + decode_s) / 1e9,
        copy_gb_per_s=tensor.nbytes / copy_s / 1e9,
    )  # fmt: skip


def quickest(work: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest call."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        work()
        best = min(best, time.perf_counter() - start)
    return best


def chains(settings: Sequence[Setting]) -> list[tuple[Sequence[Method], str]]:
    """Each chain of these settings, once, and the cut that it is for."""
    found = {build(chain).name: (chain, each.cut) for each in settings for chain in (each.forward, each.backward)}
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[each.word for each in SETTINGS], metavar="WORD")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mib", type=float, nargs="+", default=[0.77, 4.0, 16.0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    settings = [each for each in SETTINGS if not args.only or each.word in args.only]
    if args.speed:
        for chain, cut in chains(settings):
            for mib in args.mib:
                told(speed(chain, cut, mib), args.json)
        return
    if args.mnist is None or not args.mnist.is_file():
        print("accuracy is left out: give --mnist FILE.npz with x_train, y_train, x_test and y_test", file=sys.stderr)
        return
    x, y, x_test, y_test = mnist(args.mnist)
    for setting in settings:
        told(train(setting, (x[: args.rows], y[: args.rows], x_test, y_test), args.epochs, args.seed), args.json)


def told(result: Score | Speed, as_json: bool) -> None:
    """A line of JSON, or of a table in the docs."""
    if as_json:
        line = json.dumps(asdict(result))
    elif isinstance(result, Score):
        line = (
            f"| {result.word} | `{result.forward}` | `{result.backward}` | {result.coded:.4f} | {result.plain:.4f} | "
            f"{result.total:,} | {result.times_fewer:.1f} | {result.seconds:.0f} |"
        )
    else:
        line = (
            f"| `{result.name}` | {result.mib:.2f} | {result.payload_bytes:,} | {result.encode_us_per_mib:.0f} | "
            f"{result.decode_us_per_mib:.0f} | {result.both_gb_per_s:.2f} | {result.copy_gb_per_s:.1f} |"
        )
    print(line, flush=True)


if __name__ == "__main__":
    main()
