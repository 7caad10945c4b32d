"""Counters of the service in the text format that Prometheus reads."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Requests by route and status, how long they took, photos answered. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds, self._timed, self._photos = 0.0, 0, 0

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        with self._lock:
            self._requests[route, status] += 1
            if route == "/predict":
                self._seconds += seconds
                self._timed += 1
                self._buckets[next((bound for bound in BUCKETS_S if seconds <= bound), float("inf"))] += 1

    def photos(self, count: int) -> None:
        """Count photos that were answered."""
        with self._lock:
            self._photos += count

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Return everything, with gauges (name -> what it is, value) of the moment."""
        with self._lock:
            lines = _head("dinoneck_requests_total", "counter", "Requests by route and status.")
            lines += [
                f'dinoneck_requests_total{{route="{route}",status="{status}"}} {count}'
                for (route, status), count in sorted(self._requests.items())
            ]
            lines += _head("dinoneck_photos_total", "counter", "Photos answered.")
            lines.append(f"dinoneck_photos_total {self._photos}")
            lines += _head("dinoneck_predict_seconds", "histogram", "Seconds from the head of /predict to its answer.")
            below = 0
            for bound in (*BUCKETS_S, float("inf")):
                below += self._buckets[bound]
                shown = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'dinoneck_predict_seconds_bucket{{le="{shown}"}} {below}')
            lines += [
                f"dinoneck_predict_seconds_sum {self._seconds:.6f}",
                f"dinoneck_predict_seconds_count {self._timed}",
            ]
        for name, (told, value) in gauges.items():
            lines += [*_head(name, "gauge", told), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def memory_bytes() -> tuple[int, int]:
    """Return the resident memory of this process now, and at its peak; (0, peak) where there is no /proc."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        now, peak = (int(told[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        return 0, _peak_bytes()
    return now, peak


def _peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _head(name: str, kind: str, told: str) -> list[str]:
    return [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
