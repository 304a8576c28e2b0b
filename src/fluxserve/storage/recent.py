"""What polls may be answered with from memory: predictions read lately, and places in the queue."""

from fluxserve.core.prediction import Prediction, PredictionStatus
from fluxserve.storage.database import Database, Row
from fluxserve.storage.records import decode_prediction

RECENT_MAX = 1024  # predictions kept decoded, some 3 kB each
LINES_MAX = 64  # engines and priorities whose next place is known
AHEAD_MAX = 1000  # counting further would cost every look at a waiting prediction dearly


class Recent:
    """Predictions read lately: clients poll, and most polls find what the last one found.

    Where nobody else writes to the database, what is kept holds until a commit changes it. Else
    the row is read each time, and one that has not changed is not decoded again. Either way the
    same object tells those who show it that an earlier answer still holds.
    """

    def __init__(self, database: Database, size_max: int = RECENT_MAX) -> None:
        self._size_max = size_max
        self._kept: dict[str, tuple[Row, Prediction]] = {}
        self._positions: dict[str, int] = {}  # of queued ones, while nothing changes
        # By engine and priority: how many are before whoever comes next, while ones only come.
        self._lines: dict[tuple[str, int], int] = {}
        self._last: dict[tuple[str, int], str] = {}  # the last to come in each of them
        self._coming: dict[str, tuple[str, int]] = {}
        self._is_alone = database.watch(self._forget)

    def get(self, prediction_id: str) -> Prediction | None:
        """The prediction, if it is known to stand in the database just so."""
        kept = self._kept.get(prediction_id) if self._is_alone else None
        return kept[1] if kept else None

    def decoded(self, row: Row) -> Prediction:
        """`row` holds PREDICTION_COLUMNS, as just read."""
        kept = self._kept.get(row[0])
        if kept is not None and kept[0] == row:
            return kept[1]
        prediction = decode_prediction(row)
        if kept is None and len(self._kept) >= self._size_max:
            del self._kept[next(iter(self._kept))]
        self._kept[prediction.id] = (row, prediction)
        return prediction

    def outdate(self, prediction_id: str) -> None:
        """Its events were read: they show a commit that its writer may not have told of yet."""
        kept = self._kept.get(prediction_id)
        if kept is not None and not kept[1].is_terminal:
            del self._kept[prediction_id]

    def position(self, prediction_id: str) -> int | None:
        return self._positions.get(prediction_id)

    def keep_position(self, prediction_id: str, position: int) -> int:
        if self._is_alone and len(self._positions) < self._size_max:
            self._positions[prediction_id] = position
        return position

    def expect(self, prediction: Prediction) -> None:
        """It is about to be stored; that alone moves nobody of its priority."""
        if self._lines:
            self._coming[prediction.id] = (prediction.engine, prediction.priority)

    def arrived(self, prediction: Prediction, stored: Prediction | None) -> None:
        """It was stored, or an earlier one was found, and its line grows by it.

        None: refused, or nobody waited for the end, and it may be stored.
        """
        self._coming.pop(prediction.id, None)
        if stored is None:
            self._lines.clear()
        if stored is not prediction or prediction.status is not PredictionStatus.QUEUED:
            return
        own = (prediction.engine, prediction.priority)
        if len(self._last) < LINES_MAX or own in self._last:
            self._last[own] = prediction.id
        if own in self._lines:
            self.keep_position(prediction.id, self._lines[own])
            self._lines[own] = min(AHEAD_MAX, self._lines[own] + 1)

    def counted(self, prediction: Prediction, position: int) -> int:
        """So many are before it; with the last that came, what comes next is known too."""
        own = (prediction.engine, prediction.priority)
        if self._is_alone and self._last.get(own) == prediction.id:
            self._lines[own] = min(AHEAD_MAX, position + 1)
        return self.keep_position(prediction.id, position)

    def _forget(self, prediction_id: str) -> None:
        self._kept.pop(prediction_id, None)
        self._positions.clear()
        own = self._coming.pop(prediction_id, None)
        if own is None:  # it may have moved to any line, and be later than the last to come there
            self._lines.clear()
            self._last.clear()
        else:  # it goes before those of lower priority
            for line in [line for line in self._lines if line[0] == own[0] and line[1] < own[1]]:
                del self._lines[line]
