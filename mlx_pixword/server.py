"""`python -m mlx_pixword.server`: a model over HTTP, on the conventions of mlx-lm's server."""

import signal
from collections.abc import Sequence

from .apps.settings import ServerArgs
from .common.cli import notice, parse, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C."""
    args = parse(ServerArgs, "-m mlx_pixword.server", argv)
    from .apps.http_server import ModelServer  # --help answers at once
    from .weights.directory import load

    model, processor = load(
        args.model or None, revision=args.revision, dtype=args.dtype, adapter_path=args.adapter_path
    )
    with ModelServer(model, processor, args) as server:
        notice(f"serving {args.model_name} on http://{server.server_name}:{server.server_port}/v1 (Ctrl-C ends it)")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            notice("ended")


if __name__ == "__main__":
    run_command(main)
