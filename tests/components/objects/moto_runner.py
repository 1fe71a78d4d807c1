"""Runs within moto's environment: a server of S3 and of the keys for it, until its standard input ends.

Each line that it reads is answered by one that says where the server listens.
"""

import json
import logging
import os
import sys
import threading
from importlib import import_module

moto = import_module("moto.server")
serving = import_module("werkzeug.serving")


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = serving.make_server("127.0.0.1", 0, moto.DomainDispatcherApplication(moto.create_backend_app), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in sys.stdin:
        answers.write(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
