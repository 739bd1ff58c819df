"""`optimum-cli export edgemm CHECKPOINT --output BUNDLE`: `edgemm export` where users of Optimum look for it.

optimum-cli (2.1 and newer) imports every register_*.py of this namespace folder; it must hold no __init__.py, and it
comes into play only where Optimum is installed: pip install 'edgemm[optimum]'.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

__all__ = ["REGISTER_COMMANDS", "EdgemmExportCommand"]


class EdgemmExportCommand(BaseOptimumCLICommand):
    COMMAND = CommandInfo(name="edgemm", help="Export a model that reads and draws to an edgemm bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        from edgemm.cli.export import add_arguments

        add_arguments(parser)

    def run(self) -> None:
        """Through edgemm's own command line, which says what went wrong in one line and has the exit codes."""
        from edgemm.cli.main import main

        sys.exit(main(["export", *sys.argv[sys.argv.index(self.COMMAND.name) + 1 :]]))


REGISTER_COMMANDS = [(EdgemmExportCommand, ExportCommand)]
