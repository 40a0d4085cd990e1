"""The ledger of claims: what a paper says, what was measured, and the verdict by a rule
fixed beforehand.

A claim is data (``minilib/ledger/<paper>.yaml``): whose claim it is, and for each
profile what is compared with what, the smallest effect of interest, further controls,
and preconditions without which the test could not see the effect. The seeds that decide
are named there too; pilot seeds, which helped to choose the test, are shown and never
counted. A notebook records one measurement a seed in its folder ``out``, together with
the digest of the test as it stood; :func:`merge` takes finished runs into the committed
records, :func:`judge` weighs them, and the tables of the notebooks, the book and the
README are made from the outcome.
"""

from minilib.claims.attempts import Attempt, find_attempts, retired
from minilib.claims.gathering import differing, find_records, merge
from minilib.claims.judging import (
    Verdict,
    bootstrap_interval,
    judge,
    seed_bootstrap_interval,
    seeds_needed,
    t_interval,
)
from minilib.claims.pages import Repository, summary, write_pages
from minilib.claims.quoting import (
    NotMeasured,
    fill,
    fill_file,
    filled,
    marked_files,
    quote,
)
from minilib.claims.records import (
    Claim,
    Measurement,
    Records,
    Test,
    load,
    papers,
    read_records,
    record,
    record_result,
)
from minilib.claims.reports import (
    Row,
    VerdictTable,
    collect,
    measured,
    results_folder,
    scoreboard,
    table,
    verdicts,
)

__all__ = [
    "Attempt",
    "Claim",
    "Measurement",
    "NotMeasured",
    "Records",
    "Repository",
    "Row",
    "Test",
    "Verdict",
    "VerdictTable",
    "bootstrap_interval",
    "collect",
    "differing",
    "fill",
    "fill_file",
    "filled",
    "find_attempts",
    "find_records",
    "judge",
    "load",
    "marked_files",
    "measured",
    "merge",
    "papers",
    "quote",
    "read_records",
    "record",
    "record_result",
    "results_folder",
    "retired",
    "scoreboard",
    "seed_bootstrap_interval",
    "seeds_needed",
    "summary",
    "t_interval",
    "table",
    "verdicts",
    "write_pages",
]
