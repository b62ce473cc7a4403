"""Hooks of the documentation site. README.md, CONTRIBUTING.md and CHANGELOG.md become pages without a second copy."""
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {'index.md': 'README.md', 'contributing.md': 'CONTRIBUTING.md', 'changelog.md': 'CHANGELOG.md'}
# The site has no page for these: the link's text remains.
LINK_OUTSIDE_DOCS = re.compile(r'(?<!!)\[([^\]]*)\]\((?!https?://|#)'
                     r'(?!docs/[\w/]+\.(?:md|png|svg)|CONTRIBUTING\.md|README\.md)[^)]*\)')


def on_files(files, config):
    """Add the pages to the site."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding='utf-8')
        files.append(File.generated(config, page, content=make_links_relative(text)))
    return files


def on_page_markdown(markdown, **kwargs):
    """Replace links to files that the site does not show by their text."""
    markdown = markdown.replace('](../README.md', '](index.md').replace('](../CONTRIBUTING.md', '](contributing.md')
    return re.sub(r'(?<!!)\[([^\]]*)\]\((?:\.\./|benchmarks\b|[\w]+\.(?:bib|ipynb))[^)]*\)', r'\1', markdown)


def make_links_relative(text):
    """Make the links of a file in the repository's root relative to docs/."""
    text = LINK_OUTSIDE_DOCS.sub(r'\1', text).replace('](docs/', '](')
    return text.replace('](CONTRIBUTING.md', '](contributing.md').replace('](README.md', '](index.md')


def on_page_content(html, **kwargs):
    """Show the cross-references of docstrings (:class:`~model.heads.Head`) as code: Head."""
    return re.sub(r':(?:class|func|meth|attr|mod|data):<code>(?:~[\w.]*\.)?([^<]+)</code>', r'<code>\1</code>', html)
