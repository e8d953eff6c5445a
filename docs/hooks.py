"""What mkdocs does beside the pages: the explorer is made of the package at every build, so that no copy is kept."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from firstorder.cli.report import explorer


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add explorer.html to the site."""
    files.append(File.generated(config, "explorer.html", content=explorer.page()))
    return files
