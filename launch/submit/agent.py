"""torchrun, with an exit code that says whether it makes sense to start it again.

Its arguments are those of torchrun, whose own exit code is 1 whatever has happened. Here: 2 where a
rank could not run what it was asked to, 1 where ranks have failed for the last time, 75 where this
node has lost the others, 128 + n after signal n.
"""

from __future__ import annotations

import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main

_ALONE = 75  # sysexits.h: a temporary failure, try again


def run() -> int:
    """Run torchrun to its end; the exit code."""
    try:
        main()
    except ChildFailedError as error:
        return 2 if error.get_first_failure()[1].exitcode == 2 else 1
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except (RendezvousError, DistError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f"agent: a node has not started, has gone, or cannot be reached: {reason}",
              file=sys.stderr)  # fmt: skip
        return _ALONE
    return 0


if __name__ == "__main__":
    sys.exit(run())
