"""`python -m hpt_ray.main [--config FILE …] [--dry-run] [key=value …]`, the same as `hpt_ray train …`

Read the words, parse, validate, connect to Ray, run the driver; what is slow to import comes after the words. Exit code
0: done. 2: the user must change something, and one message says what. 130: stopped by Ctrl-C, 143: by SIGTERM; one line
says what is saved and how to go on. 1: a failure; the traceback is in the run folder's `logs/driver.log`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from hpt_ray.errors import Stopped, exit_code
from hpt_ray.utils import arguments, signals

if TYPE_CHECKING:
    from hpt_ray.observe.run_folder import RunFolder


def main(words: list[str] | None = None) -> int:
    """Run, and turn what went wrong into an exit code and a message."""
    if words is None:
        signals.watch()
    options = arguments.train(words)
    folder: RunFolder | None = None
    try:
        from hpt_ray.cli.first_look import read_config

        config = read_config(options)  # mistakes in it are told before what is slow to import

        from hpt_ray.cli import train
        from hpt_ray.data.mini.base import tokenizer_path
        from hpt_ray.driver.setup import prepare
        from hpt_ray.observe.console import CommandConsole
        from hpt_ray.observe.run_folder import RunFolder, write_json

        console = CommandConsole()
        config = train.completed(config)
        if options.cards:
            train.show_layouts(config, options.cards, console)
            return 0
        if options.dry_run:
            train.show_plan(config, console)
            return 0
        folder = train.folder_to_resume(config)
        if folder is not None and (why := train.nothing_left(config, folder)):
            print(why)
            return 0
        prepared = prepare(config, tokenizer_path(config.model.path))
        card = train.accepted_card(config, prepared, console)
        with ExitStack() as stack:
            if folder is not None:
                stack.enter_context(train.holding(folder, console))
            cluster, plan = stack.enter_context(train.connected(config, prepared))
            if folder is None:
                folder = RunFolder.create(config.run.dir, config.run.name)
                stack.enter_context(train.holding(folder, console))
            train.write_config(config, folder)
            write_json(folder.data_card, asdict(card))
            console.print(train.start_tables(config, prepared, card, plan, folder.root))
            write_json(folder.plan, plan.memory_mb)
            train.show_warnings(card, console)
            asyncio.run(train.run(cluster, plan.config, prepared, folder, console))
        return 0
    except Stopped as stopped:
        signals.say(f"{stopped} {train.to_go_on(config, folder)}")
        return signals.exit_code()
    except Exception as error:
        return exit_code(error, None if folder is None else folder.logs)


if __name__ == "__main__":
    sys.exit(main())
