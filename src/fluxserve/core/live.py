"""What is known of running predictions between two heartbeats: progress, log, last preview."""

from collections import defaultdict
from dataclasses import dataclass, replace

from fluxserve.core.ports import EncodedImage, Progress
from fluxserve.core.prediction import Prediction

LOG_MAX = 64_000  # characters kept of one log; what comes later is cut
BAR = 30  # characters of a progress bar
HELD_MAX = 256  # predictions that one engine holds; of more nobody asks each for its time left


@dataclass(slots=True, eq=False)
class Live:
    """One running prediction, as of now."""

    logs: str = ""
    progress: Progress | None = None
    preview: EncodedImage | None = None
    served_by: str = ""
    has_bar: bool = False  # the log shows a progress bar already
    engine: str = ""

    @property
    def fraction(self) -> float:
        done = self.progress
        return done.step / done.total if done and done.total else 0.0

    def log(self, line: str) -> None:
        if len(self.logs) < LOG_MAX:
            self.logs += line + "\n"


class LiveBoard:
    """The running predictions of this process."""

    def __init__(self) -> None:
        self._rows: dict[str, Live] = {}
        self._held: dict[str, set[Live]] = defaultdict(set)  # by engine

    def open(self, prediction: Prediction) -> Live:
        live = Live(logs=prediction.logs, engine=prediction.engine)
        self._rows[prediction.id] = live
        self._held[live.engine].add(live)
        return live

    def close(self, prediction_id: str, live: Live) -> None:
        """Take `live` off, unless another start of the prediction has its place by now."""
        self._held[live.engine].discard(live)
        if self._rows.get(prediction_id) is live:
            del self._rows[prediction_id]

    def held(self, engine: str) -> tuple[int, float]:
        """What an engine took from the queue: how many wait inside it, and seconds until the last
        of all is done, as far as it told; (0, 0) of an engine that holds very many."""
        rows = self._held.get(engine, ())
        if len(rows) > HELD_MAX:
            return 0, 0.0
        told = [live.progress for live in rows if live.progress]
        waiting = sum(progress.queue_position > 0 for progress in told)
        return waiting, max((progress.eta_s or 0.0 for progress in told), default=0.0)

    def get(self, prediction_id: str) -> Live | None:
        return self._rows.get(prediction_id)

    def merged(self, prediction: Prediction) -> Prediction:
        """The stored prediction with what is known since its last heartbeat."""
        live = self._rows.get(prediction.id)
        if live is None or prediction.is_terminal:
            return prediction
        return replace(
            prediction,
            logs=live.logs,
            progress=max(prediction.progress, live.fraction),
            served_by=live.served_by or prediction.served_by,
        )


def progress_line(progress: Progress, elapsed_s: float) -> str:
    """One full line in the form of tqdm, which several official clients parse for progress."""
    step, total = progress.step, max(progress.total, 1)
    filled = BAR * step // total
    bar = "█" * filled + " " * (BAR - filled)
    rate = step / elapsed_s if elapsed_s > 0 else 0.0
    left = (total - step) / rate if rate else 0.0
    times = f"{_clock(elapsed_s)}<{_clock(left) if rate else '?'}"
    speed = f"{rate:.2f}it/s" if rate else "?it/s"
    return f"{100 * step // total:3d}%|{bar}| {step}/{total} [{times}, {speed}]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes:02d}:{rest:02d}"
