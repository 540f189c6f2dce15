"""`python -m mlx_pixword.demo`: a page to look at a model, in a browser."""

import os
import signal
import tempfile
from collections.abc import Sequence

from .apps.settings import DemoArgs
from .common.cli import notice, parse, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C."""
    args = parse(DemoArgs, "-m mlx_pixword.demo", argv)
    from .apps.demo_page import Page, check_packages, launch  # --help answers at once
    from .weights.directory import load

    check_packages()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind either
    model, processor = load(
        args.model or None, revision=args.revision, dtype=args.dtype, adapter_path=args.adapter_path
    )
    with tempfile.TemporaryDirectory(prefix="mlx-pixword-") as folder:  # of pictures that people give
        os.environ["GRADIO_TEMP_DIR"] = folder
        blocks, address = launch(Page(model, processor, args))
        notice(f"the page is at {address} (Ctrl-C ends it)")
        try:
            blocks.block_thread()
        except (KeyboardInterrupt, OSError):
            notice("ended")
        finally:
            blocks.close(verbose=False)


if __name__ == "__main__":
    run_command(main)
