"""A running transfer as Prometheus metrics: ``run --metrics`` and ``resume --metrics``.

They are made from the events that the engine tells anyway, in the process that carries the
transfer: no second look at the journal, no thread that could hold a transfer up. Names and units
follow Prometheus' own rules (base units, ``_total`` for what only grows); nothing here says more
than the journal does.
"""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    start_http_server,
)
from pydantic import ValidationError

from volferry.errors import Usage
from volferry.model import Event, Outcome, Pass, Prediction, Progress
from volferry.report.phases import PHASES, phase_of

# When this process began to count says nothing about the transfer.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


class Metrics:
    """Give every event of one transfer to ``hear``; those of an earlier process first."""

    def __init__(self, transfer: str = "") -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._transfer = transfer

        def gauge(name: str, about: str, *labels: str) -> Gauge:
            return Gauge(name, about, ("transfer", *labels), registry=self.registry)

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, ("transfer", *labels), registry=self.registry)

        self._phase = gauge("volferry_phase", "1 for the phase that is on", "phase")
        self._step = gauge("volferry_step", "1 for the step that is carried", "step")
        self._heard = gauge("volferry_last_event_timestamp_seconds", "Time of the last event")
        self._done = counter("volferry_steps_done_total", "Steps that ended with a receipt")
        self._retries = counter("volferry_retries_total", "Attempts that failed", "step")
        self._errors = counter("volferry_errors_total", "What stopped the transfer", "kind")
        self._passes = counter("volferry_passes_total", "Passes that ended")
        self._pass_s = gauge("volferry_last_pass_seconds", "Duration of the last pass")
        self._copied = counter("volferry_copied_bytes_total", "Bytes written to the target")
        self._compared = counter("volferry_compared_bytes_total", "Bytes read from both sides")
        self._healed = counter("volferry_healed_total", "What differed though nobody wrote it")
        self._wait_done = gauge("volferry_wait_done_bytes", "Of the wait that goes on")
        self._wait_total = gauge("volferry_wait_total_bytes", "Of the wait that goes on")
        self._wait_s = gauge("volferry_wait_seconds", "How long the wait has gone on")
        self._predicted = gauge("volferry_predicted_downtime_seconds", "If it cut over now")
        self._cutovers = counter("volferry_cutovers_total", "By how they ended", "result")
        self._downtime = gauge("volferry_downtime_seconds", "Of the last cutover, as measured")
        self._parts = gauge("volferry_downtime_part_seconds", "Of the last cutover", "part")
        self._ended = gauge("volferry_ended", "1 once it is done or rolled back", "state")

    def hear(self, event: Event) -> None:
        """Take in one event. What another version wrote differently is left out."""
        self._transfer = event.transfer
        id = event.transfer
        if event.kind == "progress":
            self._progress(Progress.model_validate(event.facts))
            return
        self._heard.labels(id).set(event.at)
        if event.step:
            self._step.clear()
            self._step.labels(id, event.step).set(1)
        if phase_of(event) in PHASES:
            self._phase.clear()
            self._phase.labels(id, phase_of(event)).set(1)
        try:
            self._count(id, event)
        except ValidationError:
            return

    def hear_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self.hear(event)

    def _count(self, id: str, event: Event) -> None:
        if event.kind == "receipt":
            self._done.labels(id).inc()
            for wait in (self._wait_done, self._wait_total, self._wait_s):
                wait.clear()
        elif event.kind == "retry":
            self._retries.labels(id, event.step).inc()
        elif event.kind == "error":
            self._errors.labels(id, str(event.facts.get("kind", ""))).inc()
        elif event.kind == "prediction":
            self._predicted.labels(id).set(Prediction.model_validate(event.facts).total_s)
        elif event.kind == "pass":
            self._pass(id, Pass.model_validate(event.facts))
        elif event.kind == "outcome":
            self._outcome(id, Outcome.model_validate(event.facts))
        elif event.kind in ("done", "rolled back"):
            self._ended.labels(id, event.kind).set(1)

    def _pass(self, id: str, one: Pass) -> None:
        self._passes.labels(id).inc()
        self._pass_s.labels(id).set(one.copy_s + one.compare_s)
        self._copied.labels(id).inc(one.bytes_copied)
        self._compared.labels(id).inc(one.bytes_compared)
        self._healed.labels(id).inc(one.healed)

    def _outcome(self, id: str, outcome: Outcome) -> None:
        self._cutovers.labels(id, outcome.result).inc()
        self._downtime.labels(id).set(outcome.downtime_s)
        self._parts.clear()
        for part, seconds in outcome.parts.items():
            self._parts.labels(id, part).set(seconds)
        if outcome.final_pass is not None:
            self._pass(id, outcome.final_pass)

    def _progress(self, one: Progress) -> None:
        self._wait_s.labels(self._transfer).set(one.elapsed_s)
        if one.done_bytes is not None:
            self._wait_done.labels(self._transfer).set(one.done_bytes)
        if one.total_bytes is not None:
            self._wait_total.labels(self._transfer).set(one.total_bytes)

    def serve(self, address: str) -> str:
        """Answer on ``[HOST:]PORT`` until this process ends; where, as ``host:port``.

        Without a host only this machine is answered: there is neither TLS nor a password.
        """
        host, port = _split(address)
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as fault:
            raise Usage(
                f"--metrics cannot listen on {host}:{port}: {fault.strerror or fault}",
                data="nothing was changed",
                hint="--metrics 0 takes any free port and says which",
            ) from fault
        return f"{host}:{server.server_port}"


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    if not port.isdigit() or int(port) > 0xFFFF:
        raise Usage(
            f"'{address}' is not an address for --metrics",
            data="nothing was changed",
            hint="a port on this machine, or HOST:PORT: --metrics 9188",
        )
    return host.strip("[]") or "127.0.0.1", int(port)
