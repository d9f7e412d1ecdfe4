"""`python -m hpt_ray.main [--config FILE …] [--dry-run] [key=value …]`, the same as `hpt_ray train …`

Read the words, parse, validate, connect to Ray, run the driver; what is slow to import comes after the words. Exit code
0: done. 2: the user must change something, and one message says what. 75: SIGTERM came, what was done is saved,
and `resume=auto` goes on. 130: interrupted by Ctrl-C. 1: a failure; the traceback is in the run folder's
`logs/driver.log`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from hpt_ray.errors import STOPPED, Stopped, exit_code
from hpt_ray.utils import arguments


def main(words: list[str] | None = None) -> int:
    """Run, and turn what went wrong into an exit code and a message."""
    options = arguments.train(words)
    logs: Path | None = None  # from when there is a run folder
    try:
        from rich.console import Console

        from hpt_ray.cli import train
        from hpt_ray.data.mini.base import tokenizer_path
        from hpt_ray.driver.data_card import make_card
        from hpt_ray.driver.setup import prepare
        from hpt_ray.observe.run_folder import RunFolder

        console = Console()
        config = train.configured(options)
        if options.dry_run:
            train.show_plan(config, console)
            return 0
        prepared = prepare(config, tokenizer_path(config.model.path))
        card = make_card(config, prepared)
        with ExitStack() as stack:
            folder = train.folder_to_resume(config)
            if folder is not None:
                stack.enter_context(train.holding(folder, console))
            cluster, plan = stack.enter_context(train.connected(config, prepared))
            if folder is None:
                folder = RunFolder.create(config.run.dir, config.run.name)
                stack.enter_context(train.holding(folder, console))
            logs = folder.logs
            train.write_config(config, folder)
            folder.write_data_card(asdict(card))
            console.print(train.start_tables(config, prepared, card, plan, folder.root))
            train.show_warnings(card, console)
            asyncio.run(train.run(cluster, config, prepared, folder, console))
        return 0
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("interrupted; what was written stays, and `resume=auto` continues it", file=sys.stderr)
        return 130
    except Exception as error:
        return exit_code(error, logs)


if __name__ == "__main__":
    sys.exit(main())
