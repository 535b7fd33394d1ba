"""What an evaluation leaves for people: a page, and a Markdown document where there is one."""

import pathlib

from hypenet_jax.evals.present import results as page
from hypenet_jax.evals.present.markdown import write_document
from hypenet_jax.evals.present.page import write_page
from hypenet_jax.evals.present.presentation import Document
from hypenet_jax.evals.results import Results


def write_results(folder: pathlib.Path, results: Results, document: Document | None) -> None:
    """Writes index.html to a folder, and the document to its own path."""
    checks = tuple(page.Check(c.name, c.value, c.bound, c.passed) for c in results.checks)
    shown = page.Results(
        title=results.title,
        lead=results.lead,
        models=results.models,
        summary=results.summary,
        report=results.report,
        checks=checks,
    )
    write_page(folder / "index.html", shown)
    if document is not None:
        write_document(results, document)
