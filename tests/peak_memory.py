"""How much memory a command needs: the highest resident set of its process, and of that what is
its own (anonymous), apart from pages of mapped files, which the kernel takes back when it must.

    python tests/peak_memory.py python launch/convert.py SOURCE TARGET --dtype bfloat16

The highest resident set is the kernel's own mark (VmHWM); the anonymous part is looked at every few
milliseconds; each peak has its own moment. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0
    process = subprocess.Popen(sys.argv[1:])
    status = Path(f"/proc/{process.pid}/status")
    peak: dict[str, int] = {}
    start = time.monotonic()
    while process.poll() is None:
        for key, kilobytes in _memory(status).items():
            peak[key] = max(peak.get(key, 0), kilobytes)
        time.sleep(0.005)
    resident, own, mapped = (
        f"{peak[key] * 1024 / 1e6:,.0f} MB" for key in ("VmHWM", "RssAnon", "RssFile")
    )
    seconds = time.monotonic() - start
    print(f"peak {resident} resident, {own} anonymous, {mapped} of mapped files; {seconds:.1f} s")
    return process.returncode


def _memory(status: Path) -> dict[str, int]:
    """Kilobytes by key; nothing where the process is gone."""
    try:
        lines = status.read_text().splitlines()
    except ProcessLookupError:
        return {}
    entries = (line.split(":") for line in lines)
    return {k: int(v.split()[0]) for k, v in entries if k in ("VmHWM", "RssAnon", "RssFile")}


if __name__ == "__main__":
    sys.exit(main())
