"""Where to cut: steps a second of every cut, codec and number of micro-batches, predicted from a survey and a link.

Pure: nothing is measured here. `survey` measures the parts, `calibration` this machine, `ping` the link.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from cutlayer.studies.calibration import Overheads
from cutlayer.studies.codecs import RAW
from cutlayer.studies.lines import Measured
from cutlayer.studies.pipeline import Line, Sending, Work, step_seconds
from cutlayer.studies.survey import Place, Survey, Trial

FRAME_BYTES = 160
"""A frame's prelude, header and padding, and what TLS adds to it."""
PRIVACY = (
    "This is about speed alone. What crosses a shallow cut can often be turned back into the rows it was made of, and "
    "compressing it is no defence: do not choose a cut by its speed only."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a prediction rests on beside the survey. `server_speed`: how many times as fast the server computes."""

    line: Line
    overheads: Overheads
    server_speed: float = 1.0
    sending: Sending = Sending()  # noqa: RUF009 (frozen)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One cut, codec and number of micro-batches, and what it would come to. Bytes are of one row."""

    layer: str
    codec: str
    micro_batches: int
    up_bytes: float
    """Labels included."""
    down_bytes: float
    step_s: float
    link_share: float
    """Of a step, what it would take less if the link took no time."""

    @property
    def steps_per_s(self) -> float:
        return 1 / self.step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Federated:
    """Federated averaging of the whole model: `local_steps` steps at the client, then all weights up and down."""

    local_steps: int
    bytes_per_round: int
    """Both ways, of one client."""
    round_s: float

    @property
    def steps_per_s(self) -> float:
        return self.local_steps / self.round_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """All choices, by place and in the order in which they were tried."""

    choices: tuple[Choice, ...]
    federated: Federated

    @property
    def best(self) -> Choice:
        return max(self.choices, key=lambda choice: choice.steps_per_s)

    def best_at(self, layer: str) -> Choice:
        """The fastest one with this cut."""
        return max((each for each in self.choices if each.layer == layer), key=lambda each: each.steps_per_s)

    def sentences(self) -> Iterator[str]:
        """What a person should know."""
        best = self.best
        yield (
            f"Fastest by this estimate: cut after {best.layer!r}, {_how(best)}: {best.steps_per_s:.3g} steps/s, of "
            f"which the link takes {best.link_share:.0%} of the time."
        )
        raw = [choice for choice in self.choices if choice.codec == RAW]
        if best.codec != RAW and raw:
            plain = max(raw, key=lambda choice: choice.steps_per_s)
            yield (
                f"{best.codec} may cost accuracy; with nothing encoded the fastest is a cut after {plain.layer!r}, "
                f"{_how(plain)}: {plain.steps_per_s:.3g} steps/s."
            )
        other = self.federated
        yield (
            f"Federated averaging with {other.local_steps} local steps a round: {other.steps_per_s:.3g} steps/s; the "
            "client computes and holds the whole model."
        )
        yield PRIVACY


def line_of(bandwidth_bytes_per_s: float, rtt_s: float) -> Line:
    """A link as it was given: the same both ways."""
    return Line(up_bytes_per_s=bandwidth_bytes_per_s, down_bytes_per_s=bandwidth_bytes_per_s, delay_s=rtt_s / 2)


def measured_line(measured: Measured, overheads: Overheads, client: str = "") -> Line:
    """A link as `cutlayer ping` found it; what a frame costs at both ends is taken off, as a step's overhead has it."""
    up, down = measured.up_bytes_per_s, measured.down_bytes_per_s
    if client and client == measured.listener:
        up, down = down, up
    delay_s = max(0.0, measured.rtt_s - overheads.loopback_rtt_s) / 2
    return Line(up_bytes_per_s=up, down_bytes_per_s=down, delay_s=delay_s)


def advise(survey: Survey, setting: Setting, local_steps: int = 0) -> Advice:
    """Predicted for every trial of the survey. `local_steps`: of federated averaging; 0: an epoch of the data."""
    choices = tuple(
        _choice(survey, place, trial, setting) for place in survey.places for trial in place.trials
    )  # fmt: skip
    return Advice(choices=choices, federated=_federated(survey, setting, local_steps))


def work_of(survey: Survey, trial: Trial, setting: Setting) -> Work:
    """A trial as the pipeline wants it. Of what a micro-batch costs beside the arithmetic each side bears half."""
    times, half_s = trial.times, setting.overheads.micro_s / 2
    rows = survey.rows / trial.micro_batches
    return Work(
        load_s=survey.load_s[trial.micro_batches] + half_s / 3,
        forward_s=times.forward_s + trial.up.encode_s + half_s / 3,
        server_s=(times.server_s + trial.up.decode_s + trial.down.encode_s) / setting.server_speed + half_s,
        backward_s=times.backward_s + trial.down.decode_s + half_s / 3,
        label_bytes=round(rows * survey.label_bytes) + FRAME_BYTES,
        up_bytes=trial.up.nbytes + FRAME_BYTES,
        down_bytes=trial.down.nbytes + FRAME_BYTES,
        client_step_s=times.client_step_s + setting.overheads.step_s,
        server_step_s=times.server_step_s / setting.server_speed,
    )


def _choice(survey: Survey, place: Place, trial: Trial, setting: Setting) -> Choice:
    work, count, line = work_of(survey, trial, setting), trial.micro_batches, setting.line
    tls = setting.overheads.tls_bytes_per_s
    line = replace(line, up_bytes_per_s=min(line.up_bytes_per_s, tls), down_bytes_per_s=min(line.down_bytes_per_s, tls))
    step_s = step_seconds(work, count, line, setting.sending)
    without_s = step_seconds(work, count, Line(up_bytes_per_s=inf, down_bytes_per_s=inf, delay_s=0.0), setting.sending)
    return Choice(
        layer=place.layer,
        codec=trial.codec,
        micro_batches=count,
        up_bytes=count * (work.up_bytes + work.label_bytes) / survey.rows,
        down_bytes=count * work.down_bytes / survey.rows,
        step_s=step_s,
        link_share=1 - without_s / step_s,
    )


def _federated(survey: Survey, setting: Setting, local_steps: int) -> Federated:
    steps = local_steps or -(-survey.data_rows // survey.rows)
    line, nbytes = setting.line, survey.whole_bytes
    moving_s = nbytes / line.up_bytes_per_s + nbytes / line.down_bytes_per_s + 2 * line.delay_s
    load_s = survey.load_s[1] if 1 in survey.load_s else max(survey.load_s.values())
    round_s = steps * (survey.whole_step_s + load_s) + moving_s + setting.overheads.step_s
    return Federated(local_steps=steps, bytes_per_round=2 * nbytes, round_s=round_s)


def _how(choice: Choice) -> str:
    return f"{choice.codec}, {choice.micro_batches} micro-batch" + ("es" if choice.micro_batches > 1 else "")
