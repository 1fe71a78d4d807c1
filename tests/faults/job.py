"""One job of a user after the other, each in a process of its own, for tests that kill it or let its system calls fail.

Reads tasks as lines of JSON: the file for the answer, the configuration, and ``ensure REF``, ``disk BACKEND IMAGE PATH``,
``prune`` or ``scrub``.
For each, it forks a process that stops itself until the test has seen to it, says its id, and then how it ended. Nothing is
imported a second time, which is what most of a process's life would go into.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import underlay.disks.flat
import underlay.disks.qcow2
import underlay.sources.file  # noqa: F401 - imported here, so that no job need
from underlay.errors import UnderlayError
from underlay.host import Host

INSTANCE = "instance-1"


def main() -> None:
    """Do the jobs, until there are no more."""
    for line in sys.stdin:
        answer, *job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            try:
                Path(answer).write_text(json.dumps(_do(*job)), encoding="utf-8")
            except BaseException:  # noqa: BLE001 - a job's process ends here, whatever becomes of the job
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def _do(config: str, what: str, *arguments: str) -> dict[str, str]:
    host = Host.open(Path(config))
    try:
        if what == "ensure":
            return {"path": str(host.ensure(arguments[0]).path)}
        if what == "scrub":
            scrubbed = host.scrub(instances=())
            errors = [one.error.code for one in scrubbed.images if one.error] + [one.code for one in scrubbed.problems]
            return {"outcomes": " ".join(one.outcome for one in scrubbed.images), "errors": " ".join(errors)}
        if what == "prune":
            report = host.apply(host.plan_prune(instances=()))
            return {"removed": " ".join(path.name for path in report.removed), "problems": str(list(report.problems))}
        backend, image, path = arguments
        inside = Path(path) == host.config.instances / INSTANCE / "disk"
        disk = host.create_disk(INSTANCE, host.find(image)[0], backend=backend, path=None if inside else Path(path))
        return {"path": str(disk.path)}
    except UnderlayError as error:
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()
