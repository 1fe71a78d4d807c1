"""Progress on a terminal: bars."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from underlay.model import Progress as WorkProgress
from underlay.units import format_duration, format_size


@dataclass(slots=True)
class TerminalProgress:
    """Bars with stage, rate and time left, one for each stage of each ref, drawn on a terminal."""

    console: Console
    _bars: Progress | None = None
    _tasks: dict[tuple[str, str], TaskID] = field(default_factory=dict)

    def show(self, progress: WorkProgress) -> None:
        """Draw the work's state."""
        bars = self._started()
        key = (progress.ref, progress.stage)
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(progress.stage, total=progress.total)
        bars.update(self._tasks[key], completed=progress.done, total=progress.total)

    def close(self) -> None:
        """Leave the terminal as it is, the bars at their last state."""
        if self._bars is not None:
            self._bars.stop()

    def _started(self) -> Progress:
        if self._bars is None:
            stage = TextColumn("{task.description:<8}", markup=False)
            self._bars = Progress(stage, BarColumn(bar_width=20), _Amount(), _Rate(), _TimeLeft(), console=self.console)
            self._bars.start()
        return self._bars


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = f" of {format_size(int(task.total))}" if task.total else ""
        return Text(f"{format_size(int(task.completed))}{total}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{format_size(int(speed))}/s" if speed else "")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{format_duration(left)} left")
