"""The documentation site: `make docs` builds it into build/docs, strictly; any warning is an error.

Sphinx, because Material for MkDocs and MkDocs itself are no longer maintained. The pages stay plain Markdown that a
code-hosting page shows as well.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the docstrings of this checkout

import video_papr  # noqa: E402

# Address of the folder of files on a code-hosting page, e.g. https://HOST/OWNER/video_papr/blob/main
REPOSITORY = os.environ.get("VIDEO_PAPR_REPOSITORY", "").rstrip("/")

project = "video_papr"
author = "The video_papr authors"
version = release = video_papr.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "video_papr"
html_copy_source = False

myst_heading_anchors = 4  # `page.md#heading`, as on a code-hosting page
myst_fence_as_directive = ["mermaid"]

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Warns"]


def links_out_of_the_site(app: Any, page: str, source: list[str]) -> None:
    """Files outside of docs/ are no pages: links go to the code-hosting page, or leave their text without one."""

    def replace(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = os.path.relpath(HERE / target.split("#")[0], HERE.parent)
        return f"[{text}]({REPOSITORY}/{path})" if REPOSITORY else text

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)", replace, source[0])


def setup(app: Any) -> None:
    app.connect("source-read", links_out_of_the_site)
